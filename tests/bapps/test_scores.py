"""The scores against the reference's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lpips_fast.bapps import score_2afc, score_jnd


class Loader:
    """What the reference's functions read: batches as dicts."""

    def __init__(self, **columns):
        self.columns = {name: torch.from_numpy(values) for name, values in columns.items()}

    def load_data(self):
        n = len(next(iter(self.columns.values())))
        for start in range(0, n, 7):
            yield {name: values[start : start + 7] for name, values in self.columns.items()}


@pytest.mark.parametrize("seed", range(3))
def test_as_the_reference(seed):
    lpips = pytest.importorskip("lpips")
    rng = np.random.default_rng(seed)
    n = 100
    d0, d1, share = rng.permutation(n) / n, rng.permutation(n) / n, rng.integers(0, 6, n) / 5
    d1[:10] = d0[:10]  # ties
    loader = Loader(ref=np.zeros(n), p0=d0, p1=d1, judge=share)
    expected, _ = lpips.score_2afc_dataset(loader, lambda ref, other: other)
    assert score_2afc(d0, d1, share) == pytest.approx(expected, abs=1e-12)
    loader = Loader(p0=np.zeros(n), p1=d0, same=share)
    expected, _ = lpips.score_jnd_dataset(loader, lambda p0, p1: p1)
    assert score_jnd(d0, share) == pytest.approx(expected, abs=1e-12)


def test_known_values():
    assert score_2afc([1, 2, 3], [2, 1, 3], [0, 1, 0.2]) == pytest.approx((1 + 1 + 0.5) / 3)
    assert score_jnd([0.1, 0.2, 0.3], [1, 1, 0]) == 1
    assert score_jnd([0.3, 0.2, 0.1], [1, 0, 0]) == pytest.approx(1 / 3)


def test_errors():
    with pytest.raises(ValueError, match=r"d0 and d1 and judge must be vectors of one length"):
        score_2afc([1.0], [1.0, 2.0], [0.5])
    with pytest.raises(ValueError, match="d must be finite, got 1 values that are not"):
        score_jnd([np.nan, 1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="same is 0 throughout"):
        score_jnd([1.0, 2.0], [0, 0])
