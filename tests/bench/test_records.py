"""Records, and the tables and plots made of them."""

from __future__ import annotations

import json

import pytest
import torch

from lpips_fast.bench import plots, records, tables
from lpips_fast.bench.records import Run

TIMES = {"q20_s": 0.01, "median_s": 0.02, "q80_s": 0.04}
WHOLE = {"net": "vgg", "pairs": 4, "size": 64, "mode": "forward", "precision": "float32"}


def whole(provider, seconds=0.02, **fields):
    return {**WHOLE, "provider": provider, "q20_s": seconds / 2, "median_s": seconds, "q80_s": 2 * seconds, **fields}


@pytest.fixture
def run():
    return Run(torch.device("cpu"))


def test_a_record_says_all(run):
    complete = run.complete("end_to_end", whole("ours"))
    assert {"date", "commit", "device", "threads", "torch", "python", "run", "lpips_fast"} <= set(complete)
    assert run.complete("end_to_end", {**WHOLE, "provider": "piq", "error": "piq is not installed"})["error"]
    with pytest.raises(ValueError, match="lacks provider, median_s"):
        run.complete("end_to_end", {**WHOLE, "q20_s": 1.0, "q80_s": 1.0})


def test_written_and_read(run, tmp_path):
    written = [run.complete("end_to_end", whole(name)) for name in ("a", "b")]
    for record in written:
        records.append(tmp_path / "new" / "end_to_end.jsonl", record)
    assert records.results(tmp_path / "new") == {"end_to_end": written}
    assert records.results(tmp_path / "new" / "end_to_end.jsonl") == {"end_to_end": written}


def test_bad_files_are_named(run, tmp_path):
    good = json.dumps(run.complete("end_to_end", whole("ours")))
    for text, told in ((f"{good}\n{{}}\n", "line 2: .*lacks net"), (good[:-9], "line 1")):
        (tmp_path / "end_to_end.jsonl").write_text(text)
        with pytest.raises(ValueError, match=told):
            records.results(tmp_path)
    with pytest.raises(ValueError, match=r"head\.jsonl"):
        records.read(tmp_path / "other.jsonl")
    (tmp_path / "end_to_end.jsonl").unlink()
    with pytest.raises(ValueError, match="has none"):
        records.results(tmp_path)


def test_the_last_run_of_each_case_counts():
    first, second = Run(torch.device("cpu")), Run(torch.device("cpu"))
    written = [first.complete("end_to_end", whole(name)) for name in ("a", "b")]
    written.append(first.complete("end_to_end", whole("a", size=128)))
    written.append(second.complete("end_to_end", whole("c")))
    found = records.by_case("end_to_end", written)
    assert [[r["provider"] for r in of_case] for of_case in found.values()] == [["c"], ["a"]]


def test_the_last_record_of_each_measurement_counts(run):
    written = [run.complete("end_to_end", whole("a", seconds)) for seconds in (0.1, 0.2)]
    written.insert(1, run.complete("end_to_end", whole("b")))
    assert list(records.by_case("end_to_end", written).values()) == [[written[2], written[1]]]


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
    assert "failed: no such type" in table


def test_plots_show_the_records(run):
    pytest.importorskip("matplotlib")
    found = [
        whole(name, seconds * pairs, pairs=pairs, mode=mode, peak_bytes=pairs << 20)
        for name, seconds in (("lpips 0.1.4", 0.2), ("ours", 0.1), ("limit", 0.01))
        for pairs in (1, 4)
        for mode in ("forward", "step")
    ]
    figures = plots.figures({"end_to_end": [run.complete("end_to_end", record) for record in found]})
    assert set(figures) == {"time_against_batch", "memory_against_batch"}  # of sizes there is but one
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
