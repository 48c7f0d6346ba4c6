"""What would take long, by a small call, is left out; what takes as long as plain torch is not."""

from __future__ import annotations

import functools

import pytest
import torch

from lpips_fast.bench.patience import Patience

CPU = torch.device("cpu")


@pytest.fixture
def left_out(elapse):
    """What is left out of calls that are ten times a small one, given the seconds of small calls."""

    def left_out(small, plain, device=CPU):
        turns = iter(small)
        patience = Patience("a step", device, 10, lambda: functools.partial(elapse, plain))
        return patience.left_out(lambda: lambda: elapse(next(turns)))

    return left_out


def test_what_is_slow_is_left_out(left_out):
    found = left_out([0.2] * 3, plain=0.01)
    assert found["expected_s"] == pytest.approx(10 * 0.201)
    assert found["error"] == "left out: a step would take about 2.0 s, 18 times as long as plain torch in float32"


@pytest.mark.parametrize(
    "small,plain",
    (
        ([0.09], 0.001),  # less than a second
        ([2.0] * 3, 0.5),  # four times as long as plain torch
        ([2.0, 0.05], 0.001),  # the first call made something once
    ),
)
def test_what_is_not(left_out, small, plain):
    assert left_out(small, plain) == {}


def test_each_try_has_a_call_of_its_own(elapse):
    """A backward runs only once."""
    made = []

    def small():
        made.append(True)
        once = iter([1.0])
        return lambda: elapse(next(once))

    patience = Patience("a backward", CPU, 10, lambda: functools.partial(elapse, 0.01))
    assert "left out" in patience.left_out(small)["error"]
    assert len(made) == 3


def test_what_fails_is_not_left_out(left_out):
    assert left_out([], plain=0.01) == {}


def test_on_a_gpu_nothing_is_left_out(left_out):
    assert left_out([2.0] * 3, plain=0.01, device=torch.device("cuda")) == {}
