"""Records: written, read and chosen."""

from __future__ import annotations

import json

import pytest
import torch

from lpips_fast.bench import records
from lpips_fast.bench.records import Run
from tests.support.records import WHOLE, whole


def test_a_record_says_all(run):
    complete = run.complete("end_to_end", whole("ours"))
    assert {"date", "commit", "device", "threads", "torch", "python", "run", "lpips_fast"} <= set(complete)
    assert run.complete("end_to_end", {**WHOLE, "provider": "piq", "error": "piq is not installed"})["error"]
    with pytest.raises(ValueError, match="lacks provider, median_s"):
        run.complete("end_to_end", {**WHOLE, "q20_s": 1.0, "q80_s": 1.0})


FLAGS = "fpu sse2 avx2 avx512f avx512_bf16"


@pytest.mark.parametrize(
    "flags,limits,told",
    (
        (FLAGS, {}, "A CPU with avx512_bf16, 3 threads"),
        (f"{FLAGS} amx_tile amx_bf16", {}, "A CPU with amx, 3 threads"),
        ("fpu sse2 avx2 avx512f", {}, "A CPU with avx512, 3 threads"),
        ("fpu sse2 avx2", {}, "A CPU with avx2, 3 threads"),
        ("fpu sse2", {}, "A CPU, 3 threads"),
        (FLAGS, {"ATEN_CPU_CAPABILITY": "avx2"}, "A CPU with avx512_bf16, ATEN_CPU_CAPABILITY=avx2, 3 threads"),
        (
            FLAGS,
            {"LPIPS_FAST_CPU_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
            "A CPU with avx512_bf16, limited to avx2, 3 threads",
        ),
    ),
)
def test_a_device_says_its_instructions(monkeypatch, tmp_path, flags, limits, told):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n\n" * 2)
    monkeypatch.setattr(records, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for name in ("LPIPS_FAST_CPU_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    assert records.device_name(torch.device("cpu")) == told


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
