"""LPIPS whole: a wrong provider is not timed, and a failing one does not stop the others."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.bench import cases, end_to_end, providers, timing
from lpips_fast.bench.cases import Case
from lpips_fast.bench.ceilings import Ceilings
from lpips_fast.bench.providers import Provider

CPU = torch.device("cpu")
LIMITS = Ceilings(1e10, {"float32": 1e11})
SMALL = Case("alex", 3, 32)


def scaled(factor, gradient_factor):
    """Our LPIPS with its distances and gradients multiplied by factors, and the list of its calls."""
    calls = []

    def make(weights, sample):
        fn = providers.copied(weights, sample[0])

        def distance(in0, in1):
            calls.append(in0)
            value = fn(in0, in1)
            return value * gradient_factor + (value * (factor - gradient_factor)).detach()

        return distance

    return Provider(make), calls


def whole(mode, others, rounds=2, memory=False):
    tried = {"ours": providers.PROVIDERS["ours"], **others}
    records = end_to_end.measure(SMALL, mode, CPU, rounds, tried, LIMITS, memory)
    return {record["provider"]: record for record in records}


@pytest.mark.parametrize("mode,factor,gradient_factor", (("forward", 1.001, 1), ("step", 1, 1.01), ("step", 1, -1)))
def test_wrong_provider_is_not_timed(mode, factor, gradient_factor):
    wrong, calls = scaled(factor, gradient_factor)
    found = whole(mode, {"wrong": wrong})
    assert "wrong, not timed" in found["wrong"]["error"]
    assert "median_s" not in found["wrong"]
    assert len(calls) == 1 + 1  # a small one, and the check
    assert found["ours"]["median_s"] > 0


def test_right_provider_is_timed():
    right, calls = scaled(1, 1)
    assert whole("step", {"right": right}, rounds=3)["right"]["median_s"] > 0
    assert len(calls) == 1 + 1 + 1 + 3  # a small one, checked, warmed up, timed


def test_what_is_compiled_keeps_no_record_back(monkeypatch):
    """A run that is stopped while it compiles has the records of the others. In the end all take turns."""
    told, turns = [], []

    def compile(fn, dynamic):
        assert [record["provider"] for record in told] == ["ours"]
        return fn

    def interleaved(setups, clock, rounds):
        turns.append(list(setups))
        return timing.interleaved(setups, clock, rounds)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(end_to_end, "interleaved", interleaved)
    ours = providers.PROVIDERS["ours"]
    tried = {"compiled": ours._replace(wrapper="compile"), "ours": ours}
    for record in end_to_end.measure(SMALL, "forward", CPU, 1, tried, LIMITS, False):
        told.append(record)
    assert turns == [["ours"], ["ours", "compiled"]]
    assert [record["provider"] for record in told] == ["ours", "ours", "compiled", "limit"]


@pytest.mark.parametrize("wrapper", (None, "compile"))
def test_what_would_take_long_is_left_out(monkeypatch, elapse, wrapper):
    """Of it there are only small calls: it is not compiled, not checked, and has no process for its memory."""
    calls, remembered = [], []

    def make(weights, sample):
        fn = providers.copied(weights, sample[0])

        def distance(in0, in1):
            calls.append(tuple(in0.shape))
            elapse(1.0)
            return fn(in0, in1)

        return distance

    def memory(name, *_):
        remembered.append(name)
        return {}

    monkeypatch.setattr(end_to_end, "_memory", memory)
    tried = {"slow": Provider(make, "bfloat16", wrapper=wrapper), "ours": providers.PROVIDERS["ours"]}
    limits = Ceilings(1e10, {"float32": 1e11, "bfloat16": 1e12})
    records = list(end_to_end.measure(Case("alex", 2, 128), "step", CPU, 1, tried, limits, True))
    found = {(record["provider"], record["precision"]): record for record in records}
    slow = found["slow", "bfloat16"]
    assert "left out: a step would take about 8.0 s" in slow["error"]
    assert slow["expected_s"] == pytest.approx(8 * 1.001)
    assert set(calls) == {(1, 3, 64, 64)}
    assert remembered == ["ours"]
    assert "median_s" in found["ours", "float32"]
    assert ("limit", "bfloat16") in found


def test_failures_and_absence_are_told():
    def fails(weights, sample):
        raise RuntimeError("out of\n memory")

    def fails_later(weights, sample):
        fn = providers.copied(weights, sample[0])
        turns = iter([True, True])
        return lambda in0, in1: fn(in0, in1) if next(turns, False) else fails(None, None)

    absent = Provider(fails, package="no_such_package")
    found = whole("forward", {"fails": Provider(fails), "later": Provider(fails_later), "absent": absent})
    assert found["fails"]["error"] == found["later"]["error"] == "RuntimeError: out of memory"
    assert found["absent"]["error"] == "no_such_package is not installed"
    assert found["ours"]["median_s"] > 0


def test_limit_is_the_larger_of_two():
    flops, n_bytes = cases.work(SMALL, "step", itemsize=4)
    for limits, expected in (
        (Ceilings(1e30, {"float32": 1e9}), flops / 1e9),
        (Ceilings(1e6, {"float32": 1e30}), n_bytes / 1e6),
    ):
        *_, record = end_to_end.measure(SMALL, "step", CPU, 1, {"ours": providers.PROVIDERS["ours"]}, limits, False)
        assert record["provider"] == "limit"
        assert record["median_s"] == pytest.approx(expected)
