"""The ranking layers against those of lpips."""

from __future__ import annotations

import pytest
import torch

import lpips_fast


@pytest.mark.parametrize("name,arguments", (("Dist2LogitLayer", (8,)), ("BCERankingLoss", (8,))))
def test_ranking_layers_give_the_same_as_those_of_lpips(name, arguments):
    lpips = pytest.importorskip("lpips")
    ours, theirs = (getattr(module, name)(*arguments) for module in (lpips_fast, lpips))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    d0, d1, judge = torch.rand(3, 4, 1, 1, 1).unbind(0)
    inputs = (d0, d1) if name == "Dist2LogitLayer" else (d0, d1, 2 * judge - 1)
    torch.testing.assert_close(ours(*inputs), theirs(*inputs))
