"""Tables of translation pairs: English texts, their translations, and the languages of those."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .hashes import hex_digest
from .loading import load_table
from .sources import check_columns, is_blank


class TranslationPairs:
    """Texts, each with the English text that it translates. It is indexed by `(epoch, index)` or `index`.

    Args:
        english: (n,) the English texts.
        translations: (n,) in other languages, or in English.
        languages: (n,) of the translations.
        name: what errors call the data.

    Attributes:
        sources: the distinct English texts, in the order in which they come first.
        source_rows: (n,) int64, the index into `sources` of each pair.
    """

    def __init__(self, english: Sequence[str], translations: Sequence[str], languages: Sequence[str], name: str):
        rows: dict[str, int] = {}
        self.source_rows = np.array([rows.setdefault(text, len(rows)) for text in english], dtype=np.int64)
        self.sources, self.translations, self.languages, self.name = list(rows), translations, languages, name

    def __len__(self) -> int:
        return len(self.translations)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, str | int]:
        """`{"text": ..., "source_row": ...}`; every epoch has the same."""
        index = key[1] if isinstance(key, tuple) else key
        return {"text": self.translations[index], "source_row": int(self.source_rows[index])}

    def english(self) -> list[str]:
        """(n,) the English text of each pair."""
        return [self.sources[row] for row in self.source_rows]

    def with_sources(self, language: str = "en") -> "TranslationPairs":
        """The pairs, and each distinct English text once more as the translation of itself."""
        languages = [*self.languages, *[language] * len(self.sources)]
        translations = [*self.translations, *self.sources]
        return TranslationPairs([*self.english(), *self.sources], translations, languages, self.name)

    def fingerprint(self) -> str:
        """16 hexadecimal digits: blake2b over English texts and translations in their order."""
        rows = zip(self.english(), self.translations)
        return hex_digest((f"{english}\0{text}\0".encode() for english, text in rows), digest_size=8)


def load_translations(
    data: str,
    split: str = "train",
    english_column: str = "english",
    translation_column: str = "translation",
    language_column: str | None = "language",
    languages: Sequence[str] = (),
    separator: str | None = None,
) -> TranslationPairs:
    """Load a table of translation pairs.

    Args:
        data, split, separator: as for [`load_table`].
        english_column, translation_column: of texts.
        language_column: of the translations' languages; None for one language, whose name is not known.
        languages: those to keep; all if there are none.

    Raises:
        FileNotFoundError: if there is no such data.
        ValueError: naming the column that is missing, the rows without text, or the language of which there is no row.
    """
    columns = [column for column in (english_column, translation_column, language_column) if column]
    table = load_table(data, split, columns=columns, separator=separator)
    flags = {"english_column": english_column, "translation_column": translation_column}
    check_columns(data, table.column_names, **flags, language_column=language_column)
    if languages and language_column is None:
        raise ValueError("--languages needs the column of languages: give it with --language_column")
    if languages:
        present = Counter(table[language_column])
        if missing := [language for language in languages if language not in present]:
            known = ", ".join(sorted(map(str, present)))
            raise ValueError(f"{data} has no rows in {', '.join(missing)}; its languages are {known}")
        wanted = set(languages)
        table = table.select([row for row, each in enumerate(table[language_column]) if each in wanted])
    for column in (english_column, translation_column):
        if blank := [row for row, cell in enumerate(table[column]) if is_blank(cell)]:
            shown = ", ".join(map(str, blank[:10])) + (", ..." if len(blank) > 10 else "")
            raise ValueError(
                f"{data}: column '{column}' is empty or not a text in {len(blank)} row(s), counted from 0"
                f"{' among those of --languages' if languages else ''}: {shown}. Remove or fill them"
            )
    named = list(map(str, table[language_column])) if language_column else [""] * len(table)
    return TranslationPairs(list(table[english_column]), list(table[translation_column]), named, data)
