"""Checkpoints of SIMLA's authors with random tensors: every key and shape as written down from their code."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sizes:
    """Of the model in a file; the defaults are the authors'."""

    width: int = 768
    inner: int = 3072
    layers: int = 12
    words: int = 30522
    positions: int = 512
    patch: int = 16
    grid: int = 16
    codes: int = 8192
    joint: int = 256
    queue: int = 65_536


TINY = Sizes(width=128, inner=160, layers=2, words=200, positions=40, patch=8, grid=4, codes=64, joint=16, queue=12)


def towers(sizes: Sizes, retrieval: bool, suffix: str) -> dict[str, tuple[int, ...]]:
    """Shape of each key of the trained model, or with the suffix "_m" of its twin."""
    d, inner = sizes.width, sizes.inner
    vision = f"visual_encoder{suffix}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}.cls_token": (1, 1, d),
        f"{vision}.pos_embed": (1, 1 + sizes.grid**2, d),
        f"{vision}.patch_embed.proj.weight": (d, 3, sizes.patch, sizes.patch),
        f"{vision}.patch_embed.proj.bias": (d,),
        f"{vision}.norm.weight": (d,),
        f"{vision}.norm.bias": (d,),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (d,), (d,)

    for n in range(sizes.layers):
        block = f"{vision}.blocks.{n}"
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 3 * d, d)
        linear(f"{block}.attn.proj", d, d)
        linear(f"{block}.mlp.fc1", inner, d)
        linear(f"{block}.mlp.fc2", d, inner)
    root = f"text_encoder{suffix}"
    text = root if retrieval else f"{root}.bert"
    shapes[f"{text}.embeddings.position_ids"] = (1, sizes.positions)
    shapes[f"{text}.embeddings.word_embeddings.weight"] = (sizes.words, d)
    shapes[f"{text}.embeddings.position_embeddings.weight"] = (sizes.positions, d)
    norm(f"{text}.embeddings.LayerNorm")
    for n in range(sizes.layers):
        layer = f"{text}.encoder.layer.{n}"
        for attention in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                linear(f"{layer}.{attention}.self.{part}", d, d)
            linear(f"{layer}.{attention}.output.dense", d, d)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, d)
        linear(f"{layer}.output.dense", d, inner)
        norm(f"{layer}.output.LayerNorm")
    linear(f"vision_proj{suffix}", sizes.joint, d)
    linear(f"text_proj{suffix}", sizes.joint, d)
    if not suffix:
        linear("itm_head", 2, d)
    if not retrieval:
        shapes[f"{vision}.mask_token"] = (1, 1, d)
        head = f"{root}.cls.predictions"
        shapes[f"{head}.bias"] = (sizes.words,)
        linear(f"{head}.transform.dense", d, d)
        norm(f"{head}.transform.LayerNorm")
        linear(f"{head}.decoder", sizes.words, d)
        linear(f"mim_head{suffix}", sizes.codes, d)
        linear(f"concept_head{suffix}", sizes.words, sizes.joint)
    return shapes


def authors_state(sizes: Sizes, retrieval: bool = False, shared_above: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors under `model`.

    Args:
        sizes: of the model.
        retrieval: the kind of file: pre-training, or fine-tuned for retrieval.
        shared_above: the twin's tensors of more elements than this are the trained model's own; torch writes them
            once, which halves the file.
    """
    source = torch.Generator().manual_seed(0)

    def random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("position_ids"):
            return torch.arange(shape[1])[None]
        normal = torch.empty(shape).normal_(std=0.05, generator=source)
        scale = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "LayerNorm.weight"))
        return normal + 1 if scale else normal

    state = {name: random(name, shape) for name, shape in towers(sizes, retrieval, "").items()}
    for name, shape in towers(sizes, retrieval, "_m").items():
        root, _, rest = name.partition(".")
        own = state[f"{root.removesuffix('_m')}.{rest}"]
        shared = shared_above is not None and own.numel() > shared_above
        state[name] = own if shared else random(name, shape)
    for suffix in ("", "_m"):
        text = f"text_encoder{suffix}"
        if not retrieval:  # tied
            head = f"{text}.cls.predictions"
            state[f"{head}.decoder.weight"] = state[f"{text}.bert.embeddings.word_embeddings.weight"]
            state[f"{head}.decoder.bias"] = state[f"{head}.bias"]
    state["temp"] = torch.tensor(0.05)
    for name in ("image_queue", "text_queue"):
        keys = torch.empty(sizes.joint, sizes.queue).normal_(generator=source)
        state[name] = keys / keys.norm(dim=0)
    state["queue_ptr"] = torch.tensor([sizes.queue // 2])
    if retrieval:
        state["idx_queue"] = torch.randint(0, 1000, (1, sizes.queue), generator=source)
    return state
