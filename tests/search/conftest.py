"""A distance, images and queries for the tests of the index."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.search import Index
from tests.support.images import image
from tests.support.indexes import SIZE, N, Q


@pytest.fixture(scope="module")
def fn(make_ours):
    return make_ours()


@pytest.fixture(scope="module")
def images():
    x = image(N, SIZE, SIZE, seed=0)
    x[7] = x[2] + 1e-2 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    return x


@pytest.fixture(scope="module")
def queries(images):
    noise = torch.randn(Q, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    return images[[2, 5, 9]] + 0.02 * noise


@pytest.fixture(scope="module")
def distances(fn, images, queries):
    with torch.no_grad():
        return torch.stack([fn(q[None], images).flatten() for q in queries])


@pytest.fixture(scope="module")
def saved(fn, images, tmp_path_factory):
    """The file of an index with all that one may have."""
    path = tmp_path_factory.mktemp("index") / "sound.index"
    index = Index.build(fn, images[:2], names=["a", "bü"], sketch=128, vectors=True)
    index.stamps = torch.tensor([[1, 2], [3, 4]])
    index.save(path)
    return path
