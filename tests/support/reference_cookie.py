"""COOKIE written down slowly in float64: loops over texts, tokens, heads and pairs, from the formulas alone."""

import math

import torch

from hf_cots import CookieModel
from tests.support.reference_simla import gelu, normal


def linear(x, module):
    return x @ module.weight.t() + module.bias


def norm(x, module):
    return normal(x, module.weight, module.bias, module.eps)


def shared(tokens: torch.Tensor, transformer) -> torch.Tensor:
    """S of (length, d) tokens of one item without padding."""
    for layer in transformer.layers:
        normed = norm(tokens, layer.attention_norm)
        queries, keys, values = (linear(normed, part) for part in (layer.query, layer.key, layer.value))
        size = tokens.shape[1] // layer.num_heads
        mixed = torch.zeros_like(tokens)
        for head in range(layer.num_heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(tokens)):
                scores = torch.stack([queries[i, part] @ keys[j, part] / math.sqrt(size) for j in range(len(tokens))])
                mixed[i, part] = scores.softmax(dim=0) @ values[:, part]
        tokens = tokens + linear(mixed, layer.output)
        tokens = tokens + linear(gelu(linear(norm(tokens, layer.feed_forward_norm), layer.expand)), layer.contract)
    return norm(tokens, transformer.norm) if len(transformer.layers) else tokens


def pooled(states: torch.Tensor, pooling: str) -> torch.Tensor:
    return {"mean": states.mean(dim=0), "max": states.max(dim=0).values, "first": states[0]}[pooling]


def image_embeds(model: CookieModel, pixel_values: torch.Tensor) -> torch.Tensor:
    rows = []
    for pixels in pixel_values:
        patches = model.vision_model(pixel_values=pixels[None]).last_hidden_state[0, 1:]
        rows.append(pooled(shared(linear(patches, model.visual_projection), model.transformer), model.config.pooling))
    return torch.stack([row / row.norm() for row in rows])


def text_embeds(model: CookieModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    rows = []
    for ids, mask in zip(input_ids, attention_mask):
        tokens = model.text_model(input_ids=ids[mask == 1][None]).last_hidden_state[0]
        transformer = model.transformer if model.config.share_weights else model.text_transformer
        rows.append(pooled(shared(linear(tokens, model.text_projection), transformer), model.config.pooling))
    return torch.stack([row / row.norm() for row in rows])


def nce(p: torch.Tensor, q: torch.Tensor, image_ids: torch.Tensor, temperature) -> torch.Tensor:
    """`1/2 (CE over rows + CE over columns)` of p q^T / tau, pairs of one image left out off the diagonal."""
    losses = []
    for i in range(len(p)):
        others = [j for j in range(len(p)) if j == i or image_ids[j] != image_ids[i]]
        row = torch.stack([p[i] @ q[j] for j in others]) / temperature
        column = torch.stack([p[j] @ q[i] for j in others]) / temperature
        own = p[i] @ q[i] / temperature
        losses.append((row.logsumexp(dim=0) + column.logsumexp(dim=0)) / 2 - own)
    return torch.stack(losses).mean()


def hinge(p: torch.Tensor, q: torch.Tensor, image_ids: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean over pairs of `[a - s_ii + max_j s_ij]_+ + [a - s_ii + max_j s_ji]_+`, pairs of the same image left out."""
    total = torch.zeros((), dtype=p.dtype)
    for i in range(len(p)):
        others = [j for j in range(len(p)) if image_ids[j] != image_ids[i]]
        for scores in ([p[i] @ q[j] for j in others], [p[j] @ q[i] for j in others]):
            if scores:
                total = total + (margin - p[i] @ q[i] + torch.stack(scores).max()).clamp(min=0)
    return total / len(p)
