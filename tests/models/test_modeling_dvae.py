"""The image tokenizer: shapes, DALL-E's architecture, and that it learns."""

import pytest
import torch
from torch.distributions import Laplace
from transformers import AutoModel, FlavaImageCodebook, FlavaImageCodebookConfig

from hf_cots import COTSImageTokenizer, COTSImageTokenizerConfig
from hf_cots.models.modeling_dvae import logit_laplace_nll, map_pixels, unmap_pixels


def tiny_tokenizer(**fields):
    defaults = {
        "image_size": 32,
        "codebook_size": 32,
        "hidden_size": 16,
        "decoder_input_size": 16,
        "num_groups": 3,
        "blocks_per_group": 1,
    }
    return COTSImageTokenizer(COTSImageTokenizerConfig(**(defaults | fields)))


def test_shapes():
    model = tiny_tokenizer().eval()
    pixels = torch.rand(2, 3, 32, 32)
    codes, output = model.get_codebook_indices(pixels), model(pixels)
    assert model.get_logits(pixels).shape == output.logits.shape == (2, 32, 8, 8)
    assert codes.shape == (2, 8, 8)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < 32
    assert torch.equal(codes, output.logits.argmax(dim=1))
    assert model.decode(codes).shape == output.reconstruction.shape == pixels.shape
    assert model.get_codebook_indices(torch.rand(1, 3, 16, 40)).shape == (1, 4, 10), "other sizes that fit"


def test_codes_are_local():
    """A change in one corner leaves the codes of the far corner alone, and reaches its own."""
    model = tiny_tokenizer(codebook_size=256, image_size=96).eval()
    pixels = torch.rand(1, 3, 96, 96)
    changed = pixels.clone()
    changed[:, :, :8, :8] = 1 - changed[:, :, :8, :8]
    a, b = model.get_logits(pixels), model.get_logits(changed)
    assert torch.equal(a[..., 20:, 20:], b[..., 20:, 20:])
    assert not torch.equal(a[..., :2, :2], b[..., :2, :2])


def test_default_encoder_is_dall_es():
    """Parameter for parameter the encoder that transformers knows, and the same logits from the same weights."""
    with torch.device("meta"):
        ours = COTSImageTokenizer(COTSImageTokenizerConfig())
        theirs = FlavaImageCodebook(FlavaImageCodebookConfig())
    a, b = ([tuple(p.shape) for p in m.parameters()] for m in (ours.encoder, theirs))
    assert sorted(a) == sorted(b)
    assert sum(p.numel() for p in ours.encoder.parameters()) == 53_786_240


def test_encoder_logits_equal_the_known_implementation():
    """A narrow encoder, weights copied in order. Theirs orders a block's shortcut as ours; it takes mapped pixels."""
    torch.manual_seed(0)
    ours = tiny_tokenizer(num_groups=4, blocks_per_group=2, codebook_size=48).eval()
    theirs = FlavaImageCodebook(
        FlavaImageCodebookConfig(num_groups=4, num_blocks_per_group=2, hidden_size=16, vocab_size=48)
    ).eval()
    source, target = list(ours.encoder.parameters()), list(theirs.parameters())
    assert [p.shape for p in source] == [p.shape for p in target]
    with torch.no_grad():
        for a, b in zip(source, target):
            b.copy_(a)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        mapped = map_pixels(pixels)
        torch.testing.assert_close(ours.get_logits(pixels), theirs.blocks(mapped), rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.get_codebook_indices(pixels), theirs.get_codebook_indices(mapped))


def test_pixel_maps_are_inverse_and_clamped():
    pixels = torch.rand(2, 3, 4, 4)
    assert map_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])
    torch.testing.assert_close(unmap_pixels(map_pixels(pixels)), pixels)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_decoded_pixels_lie_between_0_and_1():
    model = tiny_tokenizer().eval()
    with torch.no_grad():
        model.decoder.head.weight.mul_(100)
        decoded = model.decode(torch.randint(0, 32, (4, 8, 8)))
    assert decoded.min() == 0
    assert decoded.max() == 1


def test_evaluation_is_deterministic_and_training_is_not():
    model = tiny_tokenizer()
    pixels = torch.rand(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model(pixels).reconstruction, model(pixels).reconstruction)
    model.train()
    assert not torch.equal(model(pixels).reconstruction, model(pixels).reconstruction)


def test_loss_is_reconstruction_and_kl():
    model = tiny_tokenizer(kl_weight=0.3).eval()
    pixels = torch.rand(2, 3, 32, 32)
    output = model(pixels)
    p = output.logits.double().softmax(dim=1).movedim(1, -1).reshape(-1, 32)
    kl = sum((row * (row * 32).log()).sum() for row in p) / len(p)
    torch.testing.assert_close(output.kl.double(), kl, rtol=1e-4, atol=1e-6)
    squared = (map_pixels(output.reconstruction) - map_pixels(pixels)).pow(2).mean()
    torch.testing.assert_close(output.reconstruction_loss, squared, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.3 * output.kl)


def test_kl_of_uniform_codes_is_zero():
    model = tiny_tokenizer().eval()
    with torch.no_grad():
        model.encoder.head.weight.zero_()
    assert model(torch.rand(1, 3, 32, 32)).kl.item() == pytest.approx(0, abs=1e-6)


def test_training_lowers_the_loss_and_the_codes_tell_pictures_apart():
    """Sixty steps on four plain images: hard-coded reconstructions come near, and colors get codes of their own."""
    colors = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.9]])
    pixels = colors.view(4, 3, 1, 1).expand(4, 3, 32, 32).contiguous()
    model = tiny_tokenizer(kl_weight=0.0)
    before = model.eval()(pixels).reconstruction_loss.item()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(60):
        loss = model(pixels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = model.eval()(pixels)
    assert output.reconstruction_loss.item() < 0.25 * before
    middle = model.get_codebook_indices(pixels)[:, 4, 4]
    assert len(set(middle.tolist())) == 4
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32), (1, 3, 30, 32), (1, 3, 32, 35)])
def test_wrong_channels_or_sides_are_refused(shape):
    with pytest.raises(ValueError, match=r"3 channels and sides that are multiples of 4"):
        tiny_tokenizer()(torch.rand(shape))


@pytest.mark.parametrize("cls", [COTSImageTokenizer, AutoModel])
def test_save_and_load(tmp_path, cls):
    model = tiny_tokenizer().eval()
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert isinstance(loaded, COTSImageTokenizer)
    assert not loaded.training
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(pixels).logits, loaded(pixels).logits)
    assert torch.equal(model(pixels).reconstruction, loaded(pixels).reconstruction)


def test_bf16_weights_take_float32_pixels():
    model = tiny_tokenizer().to(torch.bfloat16)
    output = model(torch.rand(1, 3, 32, 32))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)


def test_initial_weights_have_unit_gain():
    model = tiny_tokenizer(hidden_size=64)
    weight = model.encoder.groups[1][0].convs[1].weight
    assert weight.std().item() == pytest.approx((weight.shape[1] * 9) ** -0.5, rel=0.1)
    assert (model.encoder.stem.bias == 0).all()


def test_logit_laplace_is_the_density_in_dalle_s_appendix():
    """Against torch's own Laplace distribution in float64: the change of variables x -> logit(x) by hand."""
    location, log_scale = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    x = map_pixels(torch.rand(50, dtype=torch.float64))
    wanted = -Laplace(location, log_scale.exp()).log_prob(x.logit()) + (x * (1 - x)).log()
    torch.testing.assert_close(logit_laplace_nll(location, log_scale, x), wanted, rtol=1e-12, atol=1e-12)
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:-1]
    density = (-logit_laplace_nll(torch.tensor(0.4), torch.tensor(-0.5), grid)).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)


def test_logit_laplace_trains_location_and_scale():
    model = tiny_tokenizer(reconstruction="logit_laplace", kl_weight=0.2)
    output = model(torch.rand(2, 3, 32, 32), kl_weight=0.5)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.5 * output.kl)
    output.loss.backward()
    assert (model.decoder.head.weight.grad.flatten(1).abs().sum(dim=1) > 0).all(), "six channels, all at work"


def test_a_low_temperature_decodes_nearly_hard_codes():
    model = tiny_tokenizer().train()
    pixels = torch.rand(2, 3, 32, 32)
    seen = []
    model.decoder.stem.register_forward_hook(lambda module, args, output: seen.append(args[0].amax(dim=1).mean()))
    for temperature in (1.0, 0.01):
        model(pixels, temperature=temperature)
    assert seen[0] < 0.9
    assert seen[1] > 0.95


def test_logits_stay_float32_under_autocast():
    """The rest is halved; of logits in bf16, with eight bits, many would tie for the greatest."""
    model, dtypes = tiny_tokenizer().eval(), []
    model.encoder.groups[0].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model.get_logits(torch.rand(2, 3, 32, 32))
    assert (dtypes, logits.dtype) == ([torch.bfloat16], torch.float32)
    assert len(logits.unique()) > 0.9 * logits.numel()
