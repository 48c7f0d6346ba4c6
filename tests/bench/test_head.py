"""The head alone: a wrong backend is not timed, and the bytes are those of the features."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.bench import cases, head
from lpips_fast.bench.cases import Case

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", head.MODES)
def test_wrong_head_is_not_timed(mode):
    right = head.providers(CPU, compile=False)
    wrong = lambda *lists: right["reference"](*lists) * 1.001  # noqa: E731
    measured = head.measure(Case("alex", 1, 32), "float32", "nchw", mode, CPU, 1, {**right, "wrong": wrong})
    found = {record["provider"]: record for record in measured}
    assert "wrong, not timed" in found["wrong"]["error"]
    for name in (*right, "copy"):
        assert found[name]["median_s"] > 0
        assert found[name]["bytes"] > 0


def test_head_bytes():
    feats = head.features(Case("vgg", 2, 32), torch.bfloat16, "channels_last", "backward", CPU)
    _, taps = cases.trunk_layers("vgg", 32)
    assert feats.bytes_moved == 3 * 2 * 2 * sum(c * h * w for c, h, w in taps)
