"""Results of a run as they come in, and their statistics."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from lpips_fast.cli.results import FilePair, Results, summarize

PAIRS = [FilePair(f"{i}.png", f"a/{i}.png", f"b/{i}.png") for i in range(6)]


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_statistics_of_known_values(n):
    values = np.random.default_rng(n).uniform(size=n).tolist()
    found = summarize([math.nan, *values, math.nan], 3)
    assert found == {
        "count": n,
        "errors": 3,
        "mean": pytest.approx(statistics.fmean(values)),
        "std": pytest.approx(statistics.pstdev(values)),
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
    }


def test_statistics_of_nothing():
    assert summarize([], 0) == {"count": 0, "errors": 0}
    assert summarize([math.nan], 1) == {"count": 0, "errors": 1}


def test_statistics_do_not_depend_on_the_order():
    """To the bit, where plain sums in these orders differ."""
    rng = np.random.default_rng(0)
    values = (rng.uniform(size=1000) * 10.0 ** rng.integers(-8, 1, 1000)).tolist()
    assert sum(values) != sum(values[::-1])
    expected = summarize(values, 0)
    assert summarize(values[::-1], 0) == expected
    assert summarize(rng.permutation(values).tolist(), 0) == expected


def test_rows_of_what_is_there():
    results = Results(PAIRS)
    assert all(results.missing(i) for i in range(6))
    assert list(results.rows()) == []
    results.put(4, 0.25)
    results.put(1, "b/1.png cannot be read")
    results.put(0, 0.0)
    assert [i for i in range(6) if results.missing(i)] == [2, 3, 5]
    assert list(results.rows()) == [
        {"name": "0.png", "a": "a/0.png", "b": "b/0.png", "lpips": 0.0},
        {"name": "1.png", "a": "a/1.png", "b": "b/1.png", "lpips": None, "error": "b/1.png cannot be read"},
        {"name": "4.png", "a": "a/4.png", "b": "b/4.png", "lpips": 0.25},
    ]
    assert summarize(results.values, len(results.errors)) == summarize([0.0, 0.25], 1)


def test_an_earlier_run_goes_on_by_name():
    """Whatever the order of its rows is; a pair that is gone is left out."""
    results = Results(PAIRS)
    results.add([{"name": "5.png", "lpips": 0.5}, {"name": "gone.png", "lpips": 9.0}, {"name": "2.png", "lpips": 0.2}])
    assert [i for i in range(6) if not results.missing(i)] == [2, 5]
    assert [row["lpips"] for row in results.rows()] == [0.2, 0.5]


def test_the_worst():
    """Of equal distances the first pair comes first. Errors and missing pairs are none of them."""
    results = Results(PAIRS)
    for i, outcome in ((0, 0.5), (1, 0.7), (2, "broken"), (3, 0.7), (5, 0.1)):
        results.put(i, outcome)
    assert results.worst(3) == [1, 3, 0]
    assert results.worst(9) == [1, 3, 0, 5]
    assert results.worst(0) == []


def test_distances_take_8_bytes_each():
    values = Results(PAIRS).values
    assert memoryview(values).nbytes == 8 * len(PAIRS)
