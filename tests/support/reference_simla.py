"""SIMLA once more, in float64 and from its description alone: the authors' names, one head and one row at a time.

Nothing is shared with the package. `Reference(state, heads)` takes tensors under the keys of the authors' checkpoints.
"""

import math

import torch


def normal(x, weight, bias, eps):
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / torch.sqrt((centered**2).mean(dim=-1, keepdim=True) + eps) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def unit(x):
    return x / torch.sqrt((x**2).sum(dim=-1, keepdim=True))


def softmax(x):
    e = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


class Reference:
    def __init__(self, state, heads):
        self.state, self.heads = state, heads
        self.pretraining = "text_encoder.cls.predictions.bias" in state

    def __getitem__(self, name):
        return self.state[name].double()

    def linear(self, x, name):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, x, name, eps):
        return normal(x, self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def attend(self, queries, keys, values, mask):
        """One sequence: (length, width), (others, width) twice, and which of the others are there."""
        size = queries.shape[-1] // self.heads
        parts, rows = [], []
        for head in range(self.heads):
            s = slice(head * size, (head + 1) * size)
            scores = queries[:, s] @ keys[:, s].T / math.sqrt(size)
            scores = scores.masked_fill(~mask[None, :], -math.inf)
            rows.append(softmax(scores))
            parts.append(rows[-1] @ values[:, s])
        return torch.cat(parts, dim=1), torch.stack(rows)

    def image(self, pixels, masked=None, m=""):
        """(1 + patches, width) of one image (3, side, side); `masked` (patches,) bool."""
        root = f"visual_encoder{m}"
        kernel = self[f"{root}.patch_embed.proj.weight"]
        size = kernel.shape[-1]
        grid = pixels.shape[-1] // size
        tokens = []
        for r in range(grid):
            for c in range(grid):
                patch = pixels[:, r * size : (r + 1) * size, c * size : (c + 1) * size].double()
                tokens.append(kernel.flatten(1) @ patch.flatten() + self[f"{root}.patch_embed.proj.bias"])
        x = torch.stack(tokens)
        if masked is not None:
            x[masked] = self[f"{root}.mask_token"][0, 0]
        x = torch.cat([self[f"{root}.cls_token"][0], x]) + self[f"{root}.pos_embed"][0]
        everything = torch.ones(len(x), dtype=torch.bool)
        number = 0
        while f"{root}.blocks.{number}.norm1.weight" in self.state:
            block = f"{root}.blocks.{number}"
            qkv = self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv")
            mixed, _ = self.attend(*qkv.split(x.shape[-1], dim=1), everything)
            x = x + self.linear(mixed, f"{block}.attn.proj")
            inner = gelu(self.linear(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.linear(inner, f"{block}.mlp.fc2")
            number += 1
        return self.norm(x, f"{root}.norm", 1e-6)

    def bert(self, m):
        return f"text_encoder{m}.bert" if self.pretraining else f"text_encoder{m}"

    def embed(self, x, m=""):
        """Of word ids (length,), or of states (length, width) in their place."""
        root = f"{self.bert(m)}.embeddings"
        if x.dim() == 1:
            x = self.state[f"{root}.word_embeddings.weight"][x].double()
        positions = self.state[f"{root}.position_embeddings.weight"][: len(x)].double()
        return self.norm(x + positions, f"{root}.LayerNorm", 1e-12)

    def stack(self, x, mask, looked_at=None, looked_mask=None, m=""):
        """The states after the last layer, and the first token's row of its self-attention, (heads, length)."""
        number, row = 0, None
        while f"{self.bert(m)}.encoder.layer.{number}.output.dense.weight" in self.state:
            layer = f"{self.bert(m)}.encoder.layer.{number}"
            sources = [("attention", x, mask)]
            if looked_at is not None:
                sources.append(("crossattention", looked_at, looked_mask))
            for kind, source, there in sources:
                source = x if kind == "attention" else source
                q = self.linear(x, f"{layer}.{kind}.self.query")
                k = self.linear(source, f"{layer}.{kind}.self.key")
                v = self.linear(source, f"{layer}.{kind}.self.value")
                mixed, rows = self.attend(q, k, v, there)
                row = rows[:, 0] if kind == "attention" else row
                mixed = self.linear(mixed, f"{layer}.{kind}.output.dense")
                x = self.norm(mixed + x, f"{layer}.{kind}.output.LayerNorm", 1e-12)
            inner = gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(self.linear(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm", 1e-12)
            number += 1
        return x, row

    def image_feature(self, pixels, m=""):
        return unit(self.linear(self.image(pixels, m=m)[0], f"vision_proj{m}"))

    def text_feature(self, ids, mask, m=""):
        return unit(self.linear(self.stack(self.embed(ids, m), mask, m=m)[0][0], f"text_proj{m}"))

    def together(self, ids, mask, image, m=""):
        """The text's states and the first token's attention, in the light of an image's states."""
        return self.stack(self.embed(ids, m), mask, image, torch.ones(len(image), dtype=torch.bool), m)

    def itm_logits(self, ids, mask, image):
        return self.linear(self.together(ids, mask, image)[0][0], "itm_head")

    def word_logits(self, ids, mask, image, m=""):
        root = f"text_encoder{m}.cls.predictions"
        x = gelu(self.linear(self.together(ids, mask, image, m)[0], f"{root}.transform.dense"))
        x = self.norm(x, f"{root}.transform.LayerNorm", 1e-12)
        return x @ self[f"{self.bert(m)}.embeddings.word_embeddings.weight"].T + self[f"{root}.bias"]

    def code_logits(self, pixels, masked, ids, mask, m=""):
        """(patches, codes): the masked image as queries, the text's embedding layer as keys."""
        queries = self.embed(self.image(pixels, masked, m), m)
        there = torch.ones(len(queries), dtype=torch.bool)
        states, _ = self.stack(queries, there, self.embed(ids, m), mask, m)
        return self.linear(states[1:], f"mim_head{m}")

    def concept_logits(self, feature, m=""):
        return self.linear(feature, f"concept_head{m}")


def keywords(rows, may_vote, votes_per_head=4, most=5):
    """Positions, by the vote of (heads, length) attention rows."""
    votes = [0] * rows.shape[1]
    for row in rows:
        there = sorted((p for p in range(len(row)) if may_vote[p]), key=lambda p: -float(row[p]))
        for p in there[:votes_per_head]:
            votes[p] += 1
    ranked = sorted(range(len(votes)), key=lambda p: (-votes[p], -float(rows[:, p].sum())))
    return {p for p in ranked[:most] if votes[p] > 0}


def log_softmax(x, dim=-1):
    return x - torch.logsumexp(x, dim=dim, keepdim=True)


def distilled(logits, target, teacher, a, log_q=None):
    """(1 - a) CE + a soft CE of one row."""
    hard = -log_softmax(logits)[target]
    q = log_softmax(logits) if log_q is None else log_q
    soft = -sum(p * log_p for p, log_p in zip(softmax(teacher), q))
    return (1 - a) * hard + a * soft


def binary(logits, targets):
    """Mean over the vocabulary of the binary cross-entropy of one row."""
    p = 1 / (1 + torch.exp(-logits))
    return -(targets * torch.log(p) + (1 - targets) * torch.log(1 - p)).mean()
