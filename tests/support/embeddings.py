"""Random embeddings with ids, and the comparison of per-query columns bit for bit."""

import numpy as np
import torch


def unit(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1).to(dtype)


def many_to_many(queries=50, gallery=70, classes=6, seed=0):
    """Embeddings and ids where each query has many correct answers and each entry many queries."""
    generator = torch.Generator().manual_seed(seed)
    query_ids = torch.randint(classes, (queries,), generator=generator)
    gallery_ids = torch.cat([torch.arange(classes), torch.randint(classes, (gallery - classes,), generator=generator)])
    return unit(queries, 16, seed=seed), unit(gallery, 16, seed=seed + 1), query_ids, gallery_ids


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_close(actual, expected, **options):
    """`torch.testing.assert_close` of tensors and arrays alike."""
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), **options)


def equal(one, other):
    """`torch.equal` of tensors and arrays alike."""
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))
