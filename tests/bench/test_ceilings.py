"""The machine's limits from records."""

from __future__ import annotations

import torch

from lpips_fast.bench import ceilings

CPU = torch.device("cpu")


def test_ceilings(monkeypatch):
    small = torch.ones(64, 64)
    monkeypatch.setattr(ceilings, "copy", lambda device: (small.clone, 2 * small.nbytes))
    monkeypatch.setattr(ceilings, "product", lambda device, precision: (lambda: small @ small, 2 * 64**3))
    records = list(ceilings.measure(CPU, ["float32"], rounds=2))
    found = ceilings.of_records(records)
    assert found.bytes_per_s == 2 * small.nbytes / records[0]["median_s"]
    assert found.flops_per_s == {"float32": 2 * 64**3 / records[1]["median_s"]}
