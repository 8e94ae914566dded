"""A pickle can do nothing but hold tensors in modules of the expected classes; whatever else it asks for is named."""

import os
import pickle
import re
import struct
import zipfile
from fractions import Fraction

import pytest
import torch

from hf_cots.conversion.saved_modules import StandIn, read_saved_module


CLASSES = ("torch.nn.modules.linear.Linear", "torch.nn.modules.container.Sequential")
FORMATS = [{"pickle_protocol": protocol} for protocol in (2, 4, 5)] + [{"_use_new_zipfile_serialization": False}]


def nested():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)))


@pytest.mark.parametrize("form", FORMATS)
def test_a_module_becomes_stand_ins_with_its_tensors(tmp_path, form):
    module = nested()
    torch.save(module, tmp_path / "module.pkl", **form)
    read = read_saved_module(tmp_path / "module.pkl", CLASSES)
    assert isinstance(read, StandIn)
    assert (type(read).__name__, callable(read)) == ("Sequential", False)
    first, second = vars(read)["_modules"].values()
    (third,) = vars(second)["_modules"].values()
    assert torch.equal(vars(first)["_parameters"]["weight"], module[0].weight)
    assert torch.equal(vars(first)["_parameters"]["bias"], module[0].bias)
    assert torch.equal(vars(third)["_parameters"]["weight"], module[1][0].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMATS)
def test_views_and_precisions(tmp_path, form, dtype):
    whole = torch.arange(24, dtype=dtype).view(4, 6)
    torch.save([whole[1:, ::2].t(), whole], tmp_path / "views.pkl", **form)
    part, read = read_saved_module(tmp_path / "views.pkl", CLASSES)
    assert (read.dtype, part.stride()) == (dtype, (2, 6))
    assert torch.equal(read, whole)
    assert torch.equal(part, whole[1:, ::2].t())


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class ByEval(Attack):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class ByModule(Attack):
    def __reduce__(self):
        return torch.hub.load, ("some/repository", "model")


class ByPickleInPickle(Attack):
    def __reduce__(self):
        return pickle.loads, (pickle.dumps(Attack(self.marker)),)


class AsState(Attack):
    """The call is not the object's own, but in the state that a harmless class would be given."""

    def __reduce__(self):
        return torch.nn.Sequential, (), {"training": Attack(self.marker)}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (Attack, "posix.system"),
        (ByEval, r"(builtins|__builtin__).eval"),
        (ByModule, "torch.hub.load"),
        (ByPickleInPickle, r"_?pickle\.loads"),
        (AsState, "posix.system"),
    ],
)
def test_an_attack_in_the_depth_is_refused_by_name_and_nothing_runs(tmp_path, attack, name, form):
    module, marker, path = nested(), tmp_path / "owned", tmp_path / "module.pkl"
    module[1].payload = {"list": [attack(marker)]}
    torch.save(module, path, **form)
    with pytest.raises(ValueError, match=f"module.pkl is not read: it asks for '{name}', which is refused"):
        read_saved_module(path, CLASSES)
    assert not marker.exists()
    if attack is not ByModule:  # the same file does harm elsewhere
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_harmless_classes_that_were_not_named_are_refused_too(tmp_path):
    for found, name in ((torch.nn.ReLU(), "torch.nn.modules.activation.ReLU"), (Fraction(1, 3), "fractions.Fraction")):
        torch.save({"found": found}, tmp_path / "other.pkl")
        with pytest.raises(ValueError, match=f"asks for '{name}', which is refused"):
            read_saved_module(tmp_path / "other.pkl", CLASSES)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def named(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


STAND_IN = named("torch.nn.modules.linear", "Linear")
CALL = text("touch owned") + b"\x85R."
OPCODES = {
    "through a dotted name": (
        named("torch.nn.modules.linear", "os.system") + CALL,
        "torch.nn.modules.linear.os.system",
    ),
    "from a stand-in's insides": (
        text(CLASSES[0][:-7]) + text("Linear.__init__.__globals__") + b"\x93.",
        "__globals__",
    ),
    "as an old instance": (b"(" + text("touch owned") + b"ios\nsystem\n.", "os.system"),
    "as an object": (b"(" + named("os", "system") + text("touch owned") + b"o.", "os.system"),
    "as a new object": (named("subprocess", "Popen") + text("touch owned") + b"\x85\x81.", "subprocess.Popen"),
    "by getattr": (named("builtins", "getattr") + STAND_IN + text("__class__") + b"\x86R.", "builtins.getattr"),
    "as a storage's class": (b"(" + text("storage") + named("os", "system") + b"tQ.", "os.system"),
    "as a partial": (named("functools", "partial") + named("os", "system") + b"\x85R.", "functools.partial"),
    "as a tensor's rebuilder": (named("torch._utils", "_rebuild_tensor_v2") + named("os", "system"), "os.system"),
    "as another rebuilder": (named("torch.storage", "_load_from_bytes") + CALL, "torch.storage._load_from_bytes"),
    "as a class's setter": (STAND_IN + b"N}" + text("__setstate__") + named("os", "system") + b"s\x86b.", "os.system"),
    "a stand-in that is called": (STAND_IN + CALL, "takes no arguments"),
    "a storage that is none": (b"(" + text("storage") + text("x") + b"tQ.", "outside of itself"),
    "a storage that is not there": (
        b"(" + text("storage") + named("torch", "FloatStorage") + text("7") + text("cpu") + b"K\x01tQ.",
        "data/7",
    ),
    "a tensor beyond its storage": (
        named("torch._utils", "_rebuild_tensor_v2")
        + (b"((" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x06tQ")
        + b"K\x00K\x63\x85K\x01\x85tR.",
        "out of bounds",
    ),
    "an extension code": (b"\x82\x01.", "unregistered extension code"),
    "an empty stack": (b"R.", "damaged"),
    "no end": (b"]", "damaged"),
    "no pickle": (b"hello", "damaged"),
    "nothing": (b"", "damaged"),
}


@pytest.mark.parametrize("attack", OPCODES)
def test_what_no_pickler_would_write(tmp_path, monkeypatch, attack):
    code, reason = OPCODES[attack]
    monkeypatch.chdir(tmp_path)
    torch.save(nested(), tmp_path / "module.pkl")
    with zipfile.ZipFile(tmp_path / "module.pkl") as whole, zipfile.ZipFile(tmp_path / "forged.pkl", "w") as forged:
        for name in whole.namelist():
            forged.writestr(name, code if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(ValueError, match=f"forged.pkl is not read: .*{re.escape(reason)}"):
        read_saved_module(tmp_path / "forged.pkl", CLASSES)
    assert not (tmp_path / "owned").exists()


def test_what_one_file_does_to_a_stand_in_is_gone_with_it(tmp_path):
    """Attributes of a stand-in's class, and a method among its state."""
    torch.save(nested(), tmp_path / "module.pkl")
    with zipfile.ZipFile(tmp_path / "forged.pkl", "w") as forged:
        state = b"N}" + text("__setstate__") + named("collections", "OrderedDict") + b"s\x86b."
        forged.writestr("module/data.pkl", STAND_IN + state)
    changed = read_saved_module(tmp_path / "forged.pkl", CLASSES)
    assert changed.__setstate__
    first, _second = vars(read_saved_module(tmp_path / "module.pkl", CLASSES))["_modules"].values()
    assert not hasattr(type(first), "__setstate__")
    module = nested()
    module.__dict__["__setstate__"] = "os.system"
    torch.save(module, tmp_path / "module.pkl")
    assert vars(read_saved_module(tmp_path / "module.pkl", CLASSES))["__setstate__"] == "os.system"


def test_files_of_others(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_saved_module(tmp_path / "none.pkl", CLASSES)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"weight": 1}))
    (tmp_path / "five.pkl").write_bytes(5 * pickle.dumps([1]))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "none")
    for name, reason in (
        ("bare.pkl", "it is damaged, or no file of torch.save"),
        ("five.pkl", "it was not written by torch.save"),
        ("other.zip", "it is an archive, but not of torch.save"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{name} is not read: {reason}")):
            read_saved_module(tmp_path / name, CLASSES)
