"""The trunk's layers: a wrong layer is not timed."""

from __future__ import annotations

import torch

from lpips_fast.bench import layers
from lpips_fast.bench.cases import Case
from lpips_fast.bench.ceilings import Ceilings

CPU = torch.device("cpu")
LIMITS = Ceilings(1e10, {"float32": 1e11})


class WrongLayer(layers.Torch):
    def convolution(self, unit, x):
        return super().convolution(unit, x) * 1.0001


def test_wrong_layer_is_not_timed():
    candidates = {**layers.providers("alex", CPU, ["float32"]), "wrong": WrongLayer("float32")}
    names = set()
    for record in layers.measure(Case("alex", 1, 32), CPU, 1, candidates, LIMITS):
        assert ("error" in record) == (record["provider"] == "wrong"), record
        names.add((record["layer"], record["mode"], record["provider"]))
    assert len(names) == 5 * 2 * (1 + len(candidates))
