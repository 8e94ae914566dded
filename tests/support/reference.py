"""The formulas once more, as slow loops over scalars: what the fast code is compared with."""

import math

import torch


def dot(a, b):
    return sum(a[d] * b[d] for d in range(len(a)))


def entries(query, positive, queue, ignored, tau):
    """`[ f . k, f . q_1, ... ] / tau` without the ignored slots."""
    scores = [dot(query, positive) / tau]
    scores += [dot(query, queue[j]) / tau for j in range(len(queue)) if not bool(ignored[j])]
    return scores


def probabilities(scores):
    exponentials = [torch.exp(s) for s in scores]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def instance(queries, positives, queue, ignored, tau):
    """`-log( exp(f.k / tau) / sum )` of each query."""
    return [
        -torch.log(probabilities(entries(queries[i], positives[i], queue, ignored[i], tau))[0])
        for i in range(len(queries))
    ]


def divergence(p, q):
    return sum(a * torch.log(a / b) for a, b in zip(p, q))


def task(images, texts, image_keys, text_keys, image_queue, text_queue, ignored, tau):
    """KL(D_T2I || D_I2T) and KL(D_I2T || D_T2I) of each pair."""
    both = []
    for i in range(len(images)):
        i2t = probabilities(entries(images[i], text_keys[i], text_queue, ignored[i], tau))
        t2i = probabilities(entries(texts[i], image_keys[i], image_queue, ignored[i], tau))
        both.append((divergence(t2i, i2t), divergence(i2t, t2i)))
    return both


def token(logits, targets, masked):
    """Mean over the row's own masked positions of -log p(target); `logits` (n, positions, vocabulary)."""
    losses = []
    for i in range(len(masked)):
        terms = [
            -torch.log(torch.exp(logits[i, j, targets[i, j]]) / sum(torch.exp(v) for v in logits[i, j]))
            for j in range(masked.shape[1])
            if bool(masked[i, j])
        ]
        losses.append(sum(terms) / len(terms) if terms else logits.new_zeros(()))
    return losses


def centered(keys):
    """Subtract the mean key and normalize again; keys nearly equal to the mean are divided by 1e-3 only."""
    mean = [sum(float(k[d]) for k in keys) / len(keys) for d in range(keys.shape[1])]
    if len(keys) == 1:
        mean = [0.0] * keys.shape[1]
    rows = []
    for key in keys:
        row = [float(key[d]) - mean[d] for d in range(len(mean))]
        length = max(math.sqrt(sum(v * v for v in row)), 1e-3)
        rows.append([v / length for v in row])
    return torch.tensor(rows, dtype=torch.float64)
