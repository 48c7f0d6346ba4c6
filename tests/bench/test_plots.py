"""Pictures of records."""

from __future__ import annotations

import pytest

from lpips_fast.bench import plots
from tests.support.records import TIMES, WHOLE, whole


def test_plots_show_the_records(run):
    pytest.importorskip("matplotlib")
    found = [
        whole(name, seconds * pairs, pairs=pairs, mode=mode, peak_bytes=pairs << 20)
        for name, seconds in (("lpips 0.1.4", 0.2), ("ours", 0.1), ("limit", 0.01))
        for pairs in (1, 4)
        for mode in ("forward", "step")
    ]
    figures = plots.figures({"end_to_end": [run.complete("end_to_end", record) for record in found]})
    assert set(figures) == {"time_against_batch", "memory_against_batch"}  # there is only one size
    for name, expected in (("time_against_batch", [100, 400]), ("memory_against_batch", [1, 4])):
        axes = figures[name].axes
        assert len(axes) == 2
        for of_mode in axes:
            lines = {line.get_label(): line for line in of_mode.get_lines()}
            assert set(lines) == {"lpips 0.1.4", "ours", "limit, float32"}
            assert list(lines["ours"].get_xdata()) == [1, 4]
            assert list(lines["ours"].get_ydata()) == pytest.approx(expected)


def test_roofline(run):
    pytest.importorskip("matplotlib")
    ceilings = [
        {"what": "copy", "precision": None, **TIMES, "bytes_per_s": 1e10},
        {"what": "product", "precision": "float32", **TIMES, "flops_per_s": 1e11},
    ]
    layer = {**WHOLE, **TIMES, "layer": "conv1", "flops": 10**9}
    layers = [{**layer, "provider": "ours"}, {**layer, "provider": "limit", "bytes": 10**8}]
    results = {"ceilings": ceilings, "layers": layers}
    figures = plots.figures({name: [run.complete(name, r) for r in rs] for name, rs in results.items()})
    (axes,) = figures["roofline"].axes
    (points,) = axes.collections
    assert points.get_offsets().tolist() == [[10.0, pytest.approx(50.0)]]  # operations a byte, GFLOP/s
    (roof,) = axes.get_lines()
    assert list(roof.get_ydata()) == pytest.approx([50, 100, 100])  # bandwidth at half the intensity, then the rate
