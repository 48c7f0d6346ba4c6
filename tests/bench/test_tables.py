"""Tables of records."""

from __future__ import annotations

from lpips_fast.bench import tables
from tests.support.records import TIMES, WHOLE, whole


def test_table_of_lpips_whole(run):
    step = {"mode": "step", "kept_bytes": 3 << 20, "peak_bytes": 5 << 20}
    found = [
        whole("lpips 0.1.4", 0.2),
        whole("lpips 0.1.4", 0.6, **step),
        whole("ours", 0.05),
        whole("ours", 0.12, **step),
        {**WHOLE, "provider": "piq", "error": "a | b"},
    ]
    lines = tables.markdown({"end_to_end": [run.complete("end_to_end", record) for record in found]}).splitlines()
    assert lines[0].startswith("**LPIPS, VGG16, 4 pairs of 64 x 64**")
    assert "| ours | float32 | 50.0 (25.0 to 100) | 4.00 |  | 120 (60.0 to 240) | 5.00 | 5 | 3 |" in lines
    assert "- not measured: piq: a \\| b" in lines


def test_table_of_the_head(run):
    case = {**WHOLE, "layout": "channels_last"}
    found = [
        {**case, **TIMES, "provider": "reference", "bytes": 10**8},
        {**case, **TIMES, "provider": "cpu", "bytes": 10**8, "median_s": 0.005},
        {**case, **TIMES, "provider": "copy", "bytes": 10**9},
    ]
    table = tables.markdown({"head": [run.complete("head", record) for record in found]})
    assert "| channels-last | forward | cpu | 5.00 (10.0 to 40.0) | 4.00 | 20.0 | 40% |" in table
    assert "| copy |" not in table


def test_table_of_layers(run):
    case = {**WHOLE, "images": 8, "flops": 10**9}
    found = [
        {**case, **TIMES, "layer": layer, "provider": name}
        for layer in ("conv1", "conv2")
        for name in ("torch", "ours")
    ]
    found[1]["median_s"] = 0.01
    found.append({**case, "layer": "conv2", "provider": "broken", "error": "why"})
    table = tables.markdown({"layers": [run.complete("layers", record) for record in found]})
    assert "| conv1 | 20.0 | 10.0 | 100 |" in table
    assert "| all | 40.0 | 30.0 |  |" in table
    assert "not measured: broken: why" in table


def test_table_of_ceilings(run):
    found = [
        {"what": "copy", "precision": None, **TIMES, "bytes": 4 * 10**8, "bytes_per_s": 2e10},
        {"what": "product", "precision": "tf32", **TIMES, "flops": 10**9, "flops_per_s": 5e10},
        {"what": "product", "precision": "float16", "error": "no such type"},
    ]
    table = tables.markdown({"ceilings": [run.complete("ceilings", record) for record in found]})
    assert "20.0 GB/s" in table
    assert "| a large matrix product, tf32 | 20.0 (10.0 to 40.0) | 50.0 GFLOP/s |" in table
    assert "| not measured: no such type |" in table
