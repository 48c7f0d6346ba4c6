"""The trunk's layers: a wrong layer is not timed."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.bench import layers
from lpips_fast.bench.cases import Case
from lpips_fast.bench.ceilings import Ceilings

CPU = torch.device("cpu")
LIMITS = Ceilings(1e10, {"float32": 1e11})


class WrongLayer(layers.Torch):
    def convolution(self, unit, x):
        return super().convolution(unit, x) * 1.0001


def test_slow_layers_are_left_out(elapse):
    """Of them there are only small calls, of one pair."""
    images = set()

    class SlowLayer(layers.Torch):
        def forward(self, unit, x):
            elapse(1.0)
            images.add(len(x))
            return super().forward(unit, x)

        def backward(self, unit, x):
            gradient = super().backward(unit, x)

            def slow(d_y):
                elapse(1.0)
                images.add(len(d_y))
                return gradient(d_y)

            return slow

    candidates = {"torch": layers.Torch("float32"), "slow": SlowLayer("bfloat16")}
    found = list(layers.measure(Case("alex", 3, 64), CPU, 1, candidates, LIMITS))
    slow = [record for record in found if record["provider"] == "slow"]
    assert len(slow) == 5 * 2
    for record in slow:
        assert f"left out: a {record['mode']} of all layers would take about 15.0 s" in record["error"]
        assert record["expected_s"] == pytest.approx(3 * 5.001)
    assert not [record for record in found if record["provider"] != "slow" and "error" in record]
    assert images == {1, 2}


def test_wrong_layer_is_not_timed():
    candidates = {**layers.providers("alex", CPU, ["float32"]), "wrong": WrongLayer("float32")}
    names = set()
    for record in layers.measure(Case("alex", 1, 32), CPU, 1, candidates, LIMITS):
        assert ("error" in record) == (record["provider"] == "wrong"), record
        names.add((record["layer"], record["mode"], record["provider"]))
    assert len(names) == 5 * 2 * (1 + len(candidates))
