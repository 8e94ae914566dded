"""A small WordPiece tokenizer whose special tokens have BERT's ids, and a processor around it."""

from transformers import BertTokenizer

from hf_cots import COTSImageProcessor, COTSProcessor


WORDS = "a photo of the dog cat house red green blue sky tree runs big small two on in . , !".split()  # noqa: SIM905


def tiny_tokenizer(model_max_length: int = 32) -> BertTokenizer:
    """200 ids: [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103, then words, letters and word pieces."""
    vocab = {"[PAD]": 0, **{f"[unused{i}]": i for i in range(1, 100)}}
    pieces = [f"{prefix}{letter}" for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
    for token in dict.fromkeys(["[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces]):
        vocab[token] = len(vocab)
    assert vocab["[MASK]"] == 103
    assert len(vocab) <= 200
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=model_max_length)


def tiny_processor() -> COTSProcessor:
    return COTSProcessor(COTSImageProcessor(size={"height": 32, "width": 32}), tiny_tokenizer())
