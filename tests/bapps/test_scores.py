"""The scores against those of lpips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpips_fast.bapps import score_2afc, score_jnd
from tests.support.tolerances import SCORE_TOLERANCE


class Loader:
    """The loader that the functions of lpips read: batches as dicts."""

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
    assert score_2afc(d0, d1, share) == pytest.approx(expected, abs=SCORE_TOLERANCE)
    loader = Loader(p0=np.zeros(n), p1=d0, same=share)
    expected, _ = lpips.score_jnd_dataset(loader, lambda p0, p1: p1)
    assert score_jnd(d0, share) == pytest.approx(expected, abs=SCORE_TOLERANCE)


def test_known_values():
    assert score_2afc([1, 2, 3], [2, 1, 3], [0, 1, 0.2]) == pytest.approx((1 + 1 + 0.5) / 3)
    assert score_jnd([0.1, 0.2, 0.3], [1, 1, 0]) == 1
    assert score_jnd([0.3, 0.2, 0.1], [1, 0, 0]) == pytest.approx(1 / 3)


@given(st.data())
def test_jnd_does_not_depend_on_the_order_of_the_pairs(data):
    """There are few distances, so many are equal."""
    pairs = data.draw(st.lists(st.tuples(st.sampled_from((0.0, -0.0, 0.25, 1.0)), st.floats(0, 1)), min_size=1))
    pairs.append((0.5, 1.0))  # at least one pair that people find the same
    d, same = np.array(pairs).T
    order = data.draw(st.permutations(range(len(pairs))))
    assert score_jnd(d[order], same[order]) == score_jnd(d, same)


def test_jnd_of_tied_pairs_is_that_of_one_threshold():
    """The score is the area under the envelope of the precision at each threshold."""
    rng = np.random.default_rng(0)
    d, same = rng.integers(0, 8, 200) / 8, rng.integers(0, 6, 200) / 5
    taken = [d <= threshold for threshold in np.unique(d)]
    recall = [same[t].sum() / same.sum() for t in taken]
    precision = [same[t].mean() for t in taken]
    expected = sum((r - before) * max(precision[k:]) for k, (r, before) in enumerate(zip(recall, [0, *recall])))
    assert score_jnd(d, same) == pytest.approx(expected, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("same", ([0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0.2, 0.8, 0.4, 1.0]))
def test_a_constant_distance_scores_the_mean_of_the_judgements(same):
    """The authors' `voc_ap` gives the same for one threshold."""
    lpips = pytest.importorskip("lpips")
    assert score_jnd([0.3] * 4, same) == pytest.approx(np.mean(same), abs=SCORE_TOLERANCE)
    assert lpips.voc_ap(np.ones(1), np.array([np.mean(same)])) == pytest.approx(np.mean(same), abs=SCORE_TOLERANCE)


def test_errors():
    with pytest.raises(ValueError, match=r"d0 and d1 and judge must be vectors of one length"):
        score_2afc([1.0], [1.0, 2.0], [0.5])
    with pytest.raises(ValueError, match="d must be finite, got 1 values that are not"):
        score_jnd([np.nan, 1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="same is 0 throughout"):
        score_jnd([1.0, 2.0], [0, 0])
