"""Converted weights compute what the public implementations compute; a pickle can do nothing but hold tensors."""

import runpy
import zipfile

import pytest
import torch
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from hf_cots import COTSImageTokenizer
from hf_cots.conversion.image_tokenizers import convert_dalle, convert_flava, read_dalle, to_flava
from tests.support.cli import call, error_of, succeed
from tests.support.paths import ROOT


dall_e = pytest.importorskip("dall_e", reason="`make test` installs DALL-E's package")

SIZES = {"n_hid": 64, "vocab_size": 512, "n_blk_per_group": 2}  # the smallest that their code takes


def publish(folder, seed=0, **sizes):
    """Whole modules of DALL-E's own classes with random weights and biases, saved as OpenAI saved theirs."""
    torch.manual_seed(seed)
    encoder, decoder = dall_e.Encoder(**(SIZES | sizes)), dall_e.Decoder(n_init=16, **(SIZES | sizes))
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        torch.save(module, folder / f"{name}.pkl")
    return encoder, decoder


def patchwork(side):
    """Two images of plain patches: noise alone would give all positions the same few codes."""
    return torch.rand(2, 3, side // 4, side // 4).repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_dalle_codes_logits_and_pixels_are_theirs(tmp_path):
    encoder, decoder = publish(tmp_path)
    ours = convert_dalle(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", image_size=48)
    pixels = patchwork(48)
    with torch.no_grad():
        theirs = encoder(dall_e.map_pixels(pixels))
        logits = ours.get_logits(pixels)
        torch.testing.assert_close(logits, theirs, rtol=0, atol=1e-5)
        codes = ours.get_codebook_indices(pixels)
        assert torch.equal(codes, theirs.argmax(dim=1))
        assert len(codes.unique()) > 10
        one_hot = torch.nn.functional.one_hot(codes, 512).permute(0, 3, 1, 2).float()
        decoded = dall_e.unmap_pixels(torch.sigmoid(decoder(one_hot)[:, :3]).float())
        torch.testing.assert_close(ours.decode(codes), decoded, rtol=0, atol=1e-5)
    assert decoded.std() > 0.001


def test_what_dalle_s_sizes_become(tmp_path):
    publish(tmp_path, n_blk_per_group=1)
    config = convert_dalle(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl").config
    sizes = (config.hidden_size, config.codebook_size, config.decoder_input_size, config.blocks_per_group)
    assert (*sizes, config.image_size, config.num_groups, config.num_channels) == (64, 512, 16, 1, 192, 4, 3)
    assert config.reconstruction == "logit_laplace"


def test_an_encoder_alone_tokenizes_and_says_that_it_cannot_decode(tmp_path):
    publish(tmp_path)
    ours = convert_dalle(tmp_path / "encoder.pkl", image_size=32)
    ours.save_pretrained(tmp_path / "ours")
    loaded = COTSImageTokenizer.from_pretrained(tmp_path / "ours")
    codes = loaded.get_codebook_indices(torch.rand(1, 3, 32, 32))
    assert not any(name.startswith("decoder") for name in loaded.state_dict())
    for use in (lambda: loaded.decode(codes), lambda: loaded(torch.rand(1, 3, 32, 32))):
        with pytest.raises(ValueError, match="no decoder"):
            use()


def test_the_format_before_torch_1_6_is_read_too(tmp_path):
    encoder, _ = publish(tmp_path)
    torch.save(encoder, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pkl")
    old, new = (read_dalle(tmp_path / name, "Encoder") for name in ("old.pkl", "encoder.pkl"))
    torch.testing.assert_close(old, new, rtol=0, atol=0)


def test_other_files_are_refused_with_the_reason(tmp_path):
    encoder, _ = publish(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pkl"):
        convert_dalle(tmp_path / "nothing.pkl")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "state.pkl")
    for name, held in (("decoder.pkl", "Decoder"), ("state.pkl", "dict")):
        with pytest.raises(ValueError, match=f"must hold DALL-E's Encoder, but holds {held}"):
            convert_dalle(tmp_path / name, tmp_path / "encoder.pkl")
    torch.save(encoder, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for name in ("encoder.pkl", "old.pkl"):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 4, len(whole) // 2, len(whole) - 4):
            (tmp_path / "half.pkl").write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"half\.pkl is not read: it is"):
                convert_dalle(tmp_path / "half.pkl")


def test_an_encoder_with_a_part_missing_is_refused(tmp_path):
    encoder, _ = publish(tmp_path)
    del encoder.blocks.group_3.block_2
    torch.save(encoder, tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match=r"does not fit together in 8 parameters, the first is encoder.groups.2.1"):
        convert_dalle(tmp_path / "encoder.pkl")
    del encoder.blocks.input
    torch.save(encoder, tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match=r"lacks the parameter 'stem\.weight'"):
        convert_dalle(tmp_path / "encoder.pkl")


def flava(seed=0, **sizes):
    """Random weights, and biases that give every code the same mean logit: otherwise a few codes win everywhere."""
    torch.manual_seed(seed)
    config = FlavaImageCodebookConfig(**({"hidden_size": 16, "vocab_size": 96, "num_blocks_per_group": 2} | sizes))
    model = FlavaImageCodebook(config).eval()
    for parameter in model.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.02
        parameter.data = scale * torch.randn_like(parameter)
    with torch.no_grad():
        model.blocks.output.conv.bias -= model.blocks(dall_e.map_pixels(patchwork(64))).mean(dim=(0, 2, 3))
    return model


def test_flava_s_codes_and_logits_are_theirs(tmp_path):
    theirs = flava()
    theirs.save_pretrained(tmp_path / "flava")
    ours = convert_flava(FlavaImageCodebook.from_pretrained(tmp_path / "flava"), image_size=112)
    pixels = patchwork(112)
    with torch.no_grad():
        mapped = dall_e.map_pixels(pixels)
        torch.testing.assert_close(ours.get_logits(pixels), theirs.blocks(mapped), rtol=0, atol=1e-5)
        codes = ours.get_codebook_indices(pixels)
        assert torch.equal(codes, theirs.get_codebook_indices(mapped))
    assert len(codes.unique()) > 10
    assert (codes.shape, ours.config.has_decoder) == ((2, 14, 14), False)


def test_flava_and_back_is_bit_for_bit(tmp_path):
    theirs = flava()
    again = to_flava(convert_flava(theirs))
    assert again.config.vocab_size == 96
    torch.testing.assert_close(again.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_our_own_tokenizer_becomes_flava_s(tmp_path):
    publish(tmp_path)
    ours = convert_dalle(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", image_size=32)
    theirs, pixels = to_flava(ours), torch.rand(2, 3, 32, 32)
    assert torch.equal(theirs.get_codebook_indices(dall_e.map_pixels(pixels)), ours.get_codebook_indices(pixels))
    ours.config.num_groups = 3
    with pytest.raises(ValueError, match="4 groups, this image tokenizer 3"):
        to_flava(ours)


def test_flava_takes_dalle_s_decoder_if_it_fits(tmp_path):
    publish(tmp_path)
    fitting = convert_flava(flava(hidden_size=64, vocab_size=512), tmp_path / "decoder.pkl", image_size=32)
    assert fitting.decode(torch.zeros(1, 4, 4, dtype=torch.long)).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="does not fit together"):
        convert_flava(flava(hidden_size=64, vocab_size=256), tmp_path / "decoder.pkl")


def test_the_command(tmp_path):
    publish(tmp_path)
    succeed("convert", "dalle", tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", "--output", tmp_path / "dalle")
    ours = COTSImageTokenizer.from_pretrained(tmp_path / "dalle")
    assert not any(zipfile.is_zipfile(path) for path in (tmp_path / "dalle").iterdir()), "safetensors only"
    succeed("convert", "flava", tmp_path / "dalle", "--output", tmp_path / "flava", "--to-flava")
    succeed("convert", "flava", tmp_path / "flava", "--output", tmp_path / "again", "--image-size", 32)
    again, pixels = COTSImageTokenizer.from_pretrained(tmp_path / "again"), torch.rand(1, 3, 32, 32)
    assert torch.equal(again.get_logits(pixels), ours.get_logits(pixels))
    missing = call("convert", "dalle", tmp_path / "none.pkl", "--output", tmp_path / "x")
    assert "error: no such file:" in error_of(missing)


@pytest.mark.parametrize("name", ["convert_dalle_dvae", "convert_flava_codebook", "convert_simla"])
def test_the_scripts_are_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "conversion" / f"{name}.py"), run_name="__main__")
    assert "--output" in capsys.readouterr().out
