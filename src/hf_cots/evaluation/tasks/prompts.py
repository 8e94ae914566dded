"""Prompt templates for zero-shot classification. Light to import, as the command line shows the default."""

from collections.abc import Sequence
from pathlib import Path


DEFAULT_TEMPLATE = "a photo of a {}."


def read_templates(given: Sequence[str]) -> list[str]:
    """Read prompt templates: texts with `{}` for the class name, or files of such lines.

    Raises:
        ValueError: naming the text, or the line of a file, that has no `{}`.
    """
    templates = []
    for text in given:
        path = Path(text)
        is_file = "{}" not in text and path.is_file()
        lines = path.read_text(encoding="utf-8").splitlines() if is_file else [text]
        for number, line in enumerate(lines, start=1):
            if "{}" in line:
                templates.append(line)
            elif line.strip() or not is_file:
                where = f"{text}, line {number}: '{line}'" if is_file else f"'{line}'"
                raise ValueError(
                    f"the template {where} has no {{}} for the class name, and is not a file of templates"
                )
    return templates
