"""Files that claim more than they hold are refused before memory is taken, in one line that says what is wrong."""

import re
import resource
import struct
import sys
import types
import zipfile

import pytest
import torch

from hf_cots.conversion.image_tokenizers import convert_dalle
from hf_cots.conversion.saved_modules import find_misfit, read_saved_module
from hf_cots.conversion.simla import convert_simla
from tests.support.authors_simla import TINY, authors_state
from tests.support.cli import call, error_of


CLASSES = ("torch.nn.modules.linear.Linear",)
MEGA = 1 << 20


def linear(weight):
    module = torch.nn.Linear(1, 1, bias=False)
    module._parameters["weight"] = weight
    return module


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    """The archive with some records replaced: `change(name, data)` gives the new content, or None. A number of
    megabytes of zeros comes after it piece by piece, so that the test itself does not take that memory."""
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w", compression, compresslevel=1) as forged:
        for name in whole.namelist():
            data = whole.read(name)
            new = change(name, data)
            with forged.open(name, "w", force_zip64=True) as record:
                if not isinstance(new, int):
                    record.write(data if new is None else new)
                else:
                    record.write(data if name.endswith("data.pkl") else b"")
                    for _ in range(new):
                        record.write(bytes(MEGA))
    return target


def in_storage(new):
    return lambda name, data: new if re.search(r"/data/\d+$", name) else None


def in_pickle(old, new):
    return lambda name, data: data.replace(old, new) if name.endswith("data.pkl") else None


def refused(path, *reasons, read=lambda path: read_saved_module(path, CLASSES)):
    """The file is refused in one line with these words, and without taking memory in which it would fit."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=".*".join(map(re.escape, (path.name, *reasons)))) as found:
        read(path)
    assert len(str(found.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kilobytes


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.pkl"
    torch.save(linear(torch.zeros(8)), path)
    return path


@pytest.mark.parametrize("change", [in_storage(512), lambda name, _: 512 if name.endswith("data.pkl") else None])
def test_a_bomb_is_refused_by_the_archives_directory(saved, tmp_path, change):
    """A storage, and the pickle itself, of half a gigabyte of zeros."""
    bomb = rewritten(saved, tmp_path / "bomb.pkl", change, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 20 * MEGA
    refused(bomb, "claims to hold", "torch.save compresses nothing")


def test_a_directory_that_lies(saved, tmp_path):
    """The directory says 32 bytes where half a gigabyte comes out."""
    bomb = rewritten(saved, tmp_path / "bomb.pkl", in_storage(512), zipfile.ZIP_DEFLATED)
    whole = bytearray(bomb.read_bytes())
    at = whole.rfind(b"PK\1\2")
    while at >= 0:
        if whole[at + 24 : at + 28] == struct.pack("<I", 512 * MEGA):
            whole[at + 24 : at + 28] = struct.pack("<I", 32)
        at = whole.rfind(b"PK\1\2", 0, at)
    bomb.write_bytes(whole)
    refused(bomb, "torch.save compresses nothing")


def test_records_that_share_their_bytes(saved, tmp_path):
    """Entries of the directory that all point to one record: more than the file has, without compression."""
    path = rewritten(saved, tmp_path / "one.pkl", in_storage(bytes(MEGA)))
    with zipfile.ZipFile(path, "a") as archive:
        big = next(info for info in archive.infolist() if info.file_size == MEGA)
        for i in range(20):
            copy = zipfile.ZipInfo(f"{big.filename}{i}")
            copy.header_offset, copy.file_size, copy.compress_size, copy.CRC = (
                big.header_offset,
                big.file_size,
                big.compress_size,
                big.CRC,
            )
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True
    refused(path, "its records claim to hold")


@pytest.mark.parametrize("name", ["../../evil/data.pkl", "/etc/data.pkl"])
def test_names_that_lead_outside(saved, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "out.pkl", "w") as archive:
        archive.writestr(name, b"N.")
    refused(tmp_path / "out.pkl", f"its record '{name}' lies outside of it")


def test_records_of_one_name_and_archives_in_archives(saved, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.pkl", "w") as archive:
        archive.writestr("two/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("two/data.pkl", b"N.")
    refused(tmp_path / "two.pkl", "it has two records 'two/data.pkl'")
    nested = rewritten(saved, tmp_path / "nested.pkl", in_storage(saved.read_bytes()))
    refused(nested, "must hold 8 numbers of torch.float32")


TENSORS = {
    "stride 0": (torch.zeros(1, dtype=torch.float16).expand(2**31), "overlaps itself in a storage of 1 numbers"),
    "rows that overlap": (torch.zeros(100).as_strided((90, 10), (1, 1)), "overlaps itself"),
    "many axes": (torch.zeros(1).view([1] * 60), "has 60 axes"),
}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_claims_more_than_its_storage(tmp_path, kind, old_format):
    tensor, reason = TENSORS[kind]
    path = tmp_path / "claims.pkl"
    torch.save(linear(tensor), path, _use_new_zipfile_serialization=not old_format)
    refused(path, reason)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"K\x08\x85", b"J\x00\x00\x00\x7f\x85", "out of bounds of a storage of 8 numbers"),
        (b"K\x08\x85", b"J\xff\xff\xff\xff\x85", "must be whole numbers from 0 on"),
        (b"K\x08\x85", b"G\x40\x20\0\0\0\0\0\0\x85", "must be whole numbers from 0 on"),
        (b"K\x08\x85", b"K\x02K\x04\x86", "must be whole numbers from 0 on, one of each for an axis"),
        (b"K\x08t", b"J\xff\xff\xff\xfft", "must hold -1 numbers"),
        (b"K\x08t", b"\x8a\x06\0\0\0\0\0\x01t", "must hold 1,099,511,627,776 numbers of torch.float32"),
        (b"FloatStorage", b"DoubleStorage", "must hold 8 numbers of torch.float64, and has 32 bytes"),
        (b"FloatStorage", b"ComplexFloatStorage", "asks for 'torch.ComplexFloatStorage', which is refused"),
        (b"\x80\x02", b"\x80\x02Nr\xff\xff\xff\x7f", "it asks for room for 2,147,483,647 objects"),
        (b"\x80\x02", b"\x80\x02\x96\0\0\0\0\0\x01\0\0", "it is damaged"),
    ],
)
def test_numbers_that_do_not_fit(saved, tmp_path, old, new, reason):
    path = rewritten(saved, tmp_path / "odd.pkl", in_pickle(old, new))
    assert path.read_bytes() != saved.read_bytes()
    refused(path, reason)


def test_a_record_that_is_cut_off(saved, tmp_path):
    refused(rewritten(saved, tmp_path / "cut.pkl", in_storage(bytes(31))), "must hold 8 numbers", "has 31 bytes")
    whole = saved.read_bytes()
    for part in (0.3, 0.6, 0.9):
        path = tmp_path / "half.pkl"
        path.write_bytes(whole[: int(part * len(whole))])
        refused(path, "it is damaged")


def test_what_may_lie_in_a_storage():
    assert find_misfit((2, 3), (3, 1), 0, 6) is None
    assert find_misfit((3, 2), (1, 3), 0, 6) is None  # transposed
    assert find_misfit((2, 2), (3, 1), 1, 6) is None  # a part of each row
    assert find_misfit((1, 3), (0, 1), 3, 6) is None  # the stride of an axis of one does not matter
    assert find_misfit((0, 9), (9, 1), 0, 0) is None
    assert find_misfit((), (), 0, 1) is None
    assert find_misfit((), (), 1, 1) is not None
    assert find_misfit((2, 3), (3, 1), 1, 6) is not None
    assert find_misfit((2, 3), (2, 1), 0, 6) is not None


@pytest.fixture
def dall_e(monkeypatch):
    """Modules under the names of OpenAI's package."""
    for name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module, name in (("dall_e.encoder", "Encoder"), ("dall_e.utils", "Conv2d")):
        cls = type(name, (torch.nn.Module,), {"__module__": module, "__qualname__": name})
        setattr(sys.modules[module], name, cls)
    return sys.modules


def make_encoder(modules, tensors):
    encoder, blocks = modules["dall_e.encoder"].Encoder(), torch.nn.Sequential()
    encoder._modules["blocks"] = blocks
    for name, tensor in tensors.items():
        conv = modules["dall_e.utils"].Conv2d()
        conv._parameters["w"] = tensor
        blocks._modules[name] = conv
    return encoder


def test_an_encoder_of_a_few_numbers_builds_no_large_model(dall_e, tmp_path):
    """Widths of a million, of one number each axis that counts: the model would take terabytes."""
    output = torch.nn.Sequential()
    output._modules["conv"] = dall_e["dall_e.utils"].Conv2d()
    output._modules["conv"]._parameters["w"] = torch.zeros(100_000, 1, 1, 1)
    encoder = make_encoder(dall_e, {"input": torch.zeros(1_000_000, 1, 1, 1)})
    blocks = encoder._modules["blocks"]
    blocks._modules["output"] = output
    group = blocks._modules["group_1"] = torch.nn.Sequential()
    group._modules["block_1"] = torch.nn.Sequential()
    path = group._modules["block_1"]._modules["id_path"] = dall_e["dall_e.utils"].Conv2d()
    path._parameters["w"] = torch.zeros(1, 1, 1, 1)
    torch.save(encoder, tmp_path / "wide.pkl")
    refused(tmp_path / "wide.pkl", "does not fit together", read=convert_dalle)


def test_parameters_that_share_one_storage_are_not_multiplied(dall_e, tmp_path):
    """In half precision each would become a copy of its own."""
    shared, encoder = torch.zeros(MEGA, dtype=torch.float16), dall_e["dall_e.encoder"].Encoder()
    blocks = encoder._modules["blocks"] = torch.nn.Sequential()
    for group in range(1, 200):
        inner = blocks._modules[f"group_{group}"] = torch.nn.Sequential()
        block = inner._modules["block_1"] = torch.nn.Sequential()
        path = block._modules["id_path"] = dall_e["dall_e.utils"].Conv2d()
        path._parameters["w"] = shared
    torch.save(encoder, tmp_path / "shared.pkl")
    refused(tmp_path / "shared.pkl", "parameters that share them claim", read=convert_dalle)


# ---------------------------------------------------------------------- SIMLA's checkpoints


FIELDS = {"image_tokenizer_config": {"hidden_size": 8, "decoder_input_size": 8, "blocks_per_group": 1}}


def write_simla(path, change=lambda state: None):
    state = authors_state(TINY)
    change(state)
    torch.save({"model": state}, path)
    return path


WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
CHANGES = {
    "stride 0": (lambda s: s.update({WORDS: torch.zeros(1, 1).expand(2**31, 64)}), f"'{WORDS}': a tensor of size"),
    "no tensor": (lambda s: s.update({"temp": "os.system"}), "'temp' is no tensor of weights"),
    "complex": (lambda s: s.update({"temp": torch.zeros(1, dtype=torch.cfloat)}), "'temp' is no tensor of weights"),
    "sparse": (lambda s: s.update({"temp": torch.zeros(9, 9).to_sparse()}), "'temp' is no tensor of weights"),
    "no axes": (lambda s: s.update({"image_queue": torch.tensor(1.0)}), "a weight has another shape"),
    "no patches": (lambda s: s.update({"visual_encoder.pos_embed": torch.zeros(1, 1, 64)}), "another shape"),
    "a queue of another width": (lambda s: s.update({"text_queue": s["text_queue"][:3]}), "key_queue.text_keys"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_simla_that_claims_too_much(tmp_path, kind):
    change, reason = CHANGES[kind]
    path = write_simla(tmp_path / "odd.pth", change)
    refused(path, reason, read=lambda path: convert_simla(path, **FIELDS))


def test_a_simla_bomb(tmp_path):
    path = write_simla(tmp_path / "plain.pth")
    bomb = rewritten(path, tmp_path / "bomb.pth", in_storage(64), zipfile.ZIP_DEFLATED)
    refused(bomb, "torch.save compresses nothing", read=lambda path: convert_simla(path, **FIELDS))
    message = error_of(call("convert", "simla", bomb, "--output", tmp_path / "o"))
    assert message.startswith("error: ")
    assert "bomb.pth" in message
