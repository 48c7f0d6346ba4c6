"""`evaluate` with a baseline."""

from __future__ import annotations

import json

import pytest

import lpips_fast


def test_baselines(judged, call):
    samples = lpips_fast.bapps.TwoAFCDataset(judged / "judged", ["val/synthetic"])
    for model in ("l2", "ssim"):
        call("evaluate", "judged", "--model", model, "--json", f"{model}.json", "--workers", 0)
        found = json.loads((judged / f"{model}.json").read_text())
        assert found["settings"] == {"model": model}
        if model == "l2":
            d = [[((s.ref - s[k]) ** 2).mean().item() for s in samples] for k in (1, 2)]
            expected = lpips_fast.bapps.score_2afc(*d, [s.judge.item() for s in samples])
            assert found["means"]["2afc"] == pytest.approx(expected)
        assert 0.5 < found["means"]["jnd"] <= 1
