"""Patches of photographs: the pixels of their places, and queries of each kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import photographs

pytest.importorskip("skimage")
SIZE = 64


@pytest.fixture(scope="module")
def indexed():
    return photographs.places(200, SIZE, seed=0)


def test_places_are_the_same_each_time(indexed):
    assert np.array_equal(photographs.places(200, SIZE, seed=0), indexed)
    assert not np.array_equal(photographs.places(200, SIZE, seed=1), indexed)
    assert len(np.unique(indexed[:, 0])) > 10


def test_patches_are_parts_of_photographs(indexed):
    from skimage import data

    patches = photographs.cut(indexed, SIZE)
    of_astronaut = photographs.PHOTOGRAPHS.index("astronaut.png")
    numbers = np.flatnonzero(indexed[:, 0] == of_astronaut)
    assert len(numbers)
    for i in numbers:
        _, top, left = indexed[i]
        assert np.array_equal(patches.values[i], data.astronaut()[top : top + SIZE, left : left + SIZE])


def test_slices_are_images(indexed):
    patches = photographs.cut(indexed, SIZE)
    images = patches[3:5]
    assert images.dtype == torch.float32
    assert images.shape == (2, 3, SIZE, SIZE)
    assert torch.equal((images + 1).mul(127.5).round().byte(), torch.from_numpy(patches.values[3:5]).movedim(3, 1))
    assert images.min() >= -1
    assert images.max() <= 1
    patches[198:]
    assert patches.taken == [3, 4, 198, 199]


def test_queries_are_of_each_kind(indexed):
    """None is in the index; a noisy copy is near the patch it was made of, other patches are not."""
    queries = photographs.queries(40, indexed, SIZE, seed=1).values.astype(float)
    patches = photographs.cut(indexed, SIZE).values.astype(float)
    assert len(queries) == 40
    nearest = np.array([np.sqrt(np.square(patches - query).mean(axis=(1, 2, 3)).min()) for query in queries])
    assert (nearest[-6:] < 1.1 * photographs.NOISE).all()
    assert np.median(nearest[:28]) > 2 * photographs.NOISE
