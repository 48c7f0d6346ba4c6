"""The machine's limits from records."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.bench import ceilings

CPU = torch.device("cpu")


def test_ceilings(monkeypatch):
    small = torch.ones(64, 64)
    monkeypatch.setattr(ceilings, "copy", lambda device: (small.clone, 2 * small.nbytes))
    monkeypatch.setattr(ceilings, "product", lambda device, precision, n: (lambda: small @ small, 2 * 64**3))
    records = list(ceilings.measure(CPU, ["float32"], rounds=2))
    found = ceilings.of_records(records)
    assert found.bytes_per_s == 2 * small.nbytes / records[0]["median_s"]
    assert found.flops_per_s == {"float32": 2 * 64**3 / records[1]["median_s"]}


def test_a_slow_product_is_left_out(monkeypatch, elapse):
    made = []

    def product(device, precision, n):
        made.append((precision, n))
        return lambda: elapse(n**3 * (1e-8 if precision == "bfloat16" else 1e-12)), 2 * n**3

    monkeypatch.setattr(ceilings, "copy", lambda device: (lambda: None, 1))
    monkeypatch.setattr(ceilings, "product", product)
    records = list(ceilings.measure(CPU, ["float32", "bfloat16"], rounds=2))
    assert "a product would take about" in records[2]["error"]
    assert records[2]["expected_s"] == pytest.approx(8**3 * (1e-8 * 256**3 + 1e-3))
    assert ("float32", 2048) in made
    assert ("bfloat16", 2048) not in made
    assert set(ceilings.of_records(records).flops_per_s) == {"float32"}
