"""Extend a text tower's vocabulary by the words of other languages.

Existing tokens are kept: English texts keep their tokens and embeddings, except for words that are now one token. The
embedding of a new token starts as the mean of those of the English tokens that the translation pairs align it with.
"""

import copy
import json
import logging
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

ITERATIONS = 5  # of IBM Model 1, as is usual (Och and Ney, 2003)
MOST_ALIGNED = 100_000  # pairs, evenly spaced, that the alignment reads
LONGEST_ALIGNED = 32  # tokens of a text


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], vocab_size: int
) -> PreTrainedTokenizerBase:
    """Copy a WordPiece tokenizer and add the pieces of another one, which is trained on texts.

    Normalization and the ids of existing tokens are kept. An uncased BERT's normalization strips accents in every
    script.

    Args:
        tokenizer: a tokenizer with a WordPiece model, such as BERT's.
        texts: texts in other languages.
        vocab_size: vocabulary size of the tokenizer trained on them; common pieces are not added twice.

    Raises:
        ValueError: if the tokenizer has another model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    if state["model"].get("type") != "WordPiece":
        name = tokenizer.name_or_path or "the teacher"
        raise ValueError(f"{name}: only a WordPiece tokenizer, such as BERT's, can be extended")
    # Their ids would be in the order of a hash table, by which the trainer breaks ties.
    prefix = state["model"]["continuing_subword_prefix"]
    normalize = backend.normalizer.normalize_str if backend.normalizer is not None else str
    letters = sorted({f"{prefix}{c}" for text in texts for c in normalize(text) if not c.isspace()})
    trained = tokenizer.train_new_from_iterator(texts, vocab_size, new_special_tokens=letters)
    added = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    vocabulary = state["model"]["vocab"]
    first = 1 + max(tokenizer.get_vocab().values())
    new = [token for token, _ in added if token not in vocabulary]
    vocabulary |= {token: first + number for number, token in enumerate(new)}
    extended = copy.deepcopy(tokenizer)
    extended._tokenizer = Tokenizer.from_str(json.dumps(state))
    return extended


def align_tokens(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], iterations: int = ITERATIONS
) -> csr_matrix:
    """Align the tokens of translations with those of their English texts: IBM Model 1 (Brown et al., 1993, section
    4.1), in which each token of a translation comes from one of the English text, wherever that stands.

    Args:
        sources: tokens of the English texts.
        targets: tokens of their translations.
        iterations: of expectation maximization.

    Returns:
        (targets, sources) probabilities of the English tokens given a token of the translations; rows add up to 1, or
        to 0 for what does not occur.
    """
    pairs = [(s, t) for s, t in zip(sources, targets) if s and t]
    if not pairs:
        return csr_matrix((1, 1))
    english = np.concatenate([np.tile(np.asarray(s, dtype=np.int64), len(t)) for s, t in pairs])
    foreign = np.concatenate([np.repeat(np.asarray(t, dtype=np.int64), len(s)) for s, t in pairs])
    lengths = np.concatenate([np.full(len(t), len(s)) for s, t in pairs])
    place = np.repeat(np.arange(len(lengths)), lengths)  # of each token of a translation
    width = int(english.max()) + 1
    kinds, entry = np.unique(foreign * width + english, return_inverse=True)
    target, source = kinds // width, kinds % width
    probability = np.ones(len(kinds))  # of the translation's token given the English one
    for iteration in range(iterations + 1):
        share = probability[entry]
        share /= np.bincount(place, share)[place]
        counts = np.bincount(entry, share, len(kinds))
        if iteration < iterations:
            probability = counts / np.bincount(source, counts)[source]
    return csr_matrix((counts / np.bincount(target, counts)[target], (target, source)))


@torch.no_grad()
def add_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extended: PreTrainedTokenizerBase,
    english: Sequence[str],
    translations: Sequence[str],
) -> None:
    """Add the embeddings of an extended tokenizer's new tokens to a model: each is the mean of the embeddings of the
    English tokens that [`align_tokens`] aligns it with or, if it occurs in no pair, of all. Tokens in other scripts,
    which an English model has but hardly knows, are initialized in the same way.

    Args:
        model: the model, with the embeddings of `tokenizer`.
        tokenizer, extended: before and after [`extend_tokenizer`].
        english, translations: pairs of texts.
    """
    chosen = sorted({i * len(english) // MOST_ALIGNED for i in range(MOST_ALIGNED)})
    if len(chosen) == MOST_ALIGNED:
        logger.info("initializing new embeddings from an alignment of %d of %d pairs", MOST_ALIGNED, len(english))
    options = {"add_special_tokens": False, "truncation": True, "max_length": LONGEST_ALIGNED}
    sources = tokenizer([english[i] for i in chosen], **options)["input_ids"]
    targets = extended([translations[i] for i in chosen], **options)["input_ids"]
    aligned = align_tokens(sources, targets)
    known = model.get_input_embeddings().weight.detach().clone()
    first = 1 + max(tokenizer.get_vocab().values())
    model.resize_token_embeddings(1 + max(extended.get_vocab().values()), mean_resizing=False)
    words = model.get_input_embeddings().weight
    words[first:] = known[:first].mean(dim=0)
    occurring = np.flatnonzero(np.diff(aligned.indptr))
    foreign = [i for token, i in extended.get_vocab().items() if i >= first or not token.isascii()]
    occurring = occurring[np.isin(occurring, foreign)]
    means = aligned[occurring] @ known.numpy()[: aligned.shape[1]]
    words[torch.from_numpy(occurring)] = torch.from_numpy(means).to(words.dtype)
    logger.info("added %d tokens to %d; initialized %d embeddings", len(words) - first, first, len(occurring))
