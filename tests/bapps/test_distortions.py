"""The distortions do what they are named for, and keep size and type."""

from __future__ import annotations

import numpy as np
import pytest

from lpips_fast.bapps.distortions import DISTORTIONS, blurred, compressed, noisy, recoloured, shifted
from tests.support.tolerances import NOISE_STD_TOLERANCE

IMAGE = np.random.default_rng(0).integers(60, 196, (50, 61, 3), dtype=np.uint8)


@pytest.mark.parametrize("distort", (*DISTORTIONS.values(), recoloured))
def test_an_image_of_the_same_size(distort):
    before = IMAGE.copy()
    found = distort(IMAGE)
    assert found.shape == IMAGE.shape
    assert found.dtype == np.uint8
    assert not np.array_equal(found, IMAGE)
    assert np.array_equal(IMAGE, before)


def test_amounts():
    assert np.array_equal(shifted(IMAGE, 5)[:, 5:], IMAGE[:, :-5])
    assert np.array_equal(shifted(IMAGE, 5)[:, :5], IMAGE[:, :1].repeat(5, axis=1))
    assert np.std(noisy(IMAGE, 20).astype(float) - IMAGE) == pytest.approx(20, rel=NOISE_STD_TOLERANCE)
    assert np.array_equal(noisy(IMAGE, seed=3), noisy(IMAGE, seed=3))
    assert not np.array_equal(noisy(IMAGE, seed=3), noisy(IMAGE, seed=4))
    assert np.array_equal(recoloured(IMAGE, (7, 0, -9)), IMAGE + np.array([7, 0, -9]))
    assert recoloured(IMAGE, (255, 0, -255)).max(axis=(0, 1)).tolist() == [255, IMAGE[..., 1].max(), 0]
    assert blurred(IMAGE, 3).std() < 0.5 * IMAGE.std()
    errors = [np.abs(compressed(IMAGE, quality).astype(float) - IMAGE).mean() for quality in (10, 50, 95)]
    assert errors == sorted(errors, reverse=True)
