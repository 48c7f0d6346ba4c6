"""The tables from the committed records, and what was measured against what is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cost import program, records, tables
from benchmarks.cost.devices import DEVICES
from lpips_fast.bench.cases import Case

CASE = Case("vgg", 32, 256)
MEASURED = Path(__file__).parents[3] / "benchmarks" / "results" / "nvidia-h200" / "head.jsonl"


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "][2:]


def test_bytes_are_those_of_the_benchmark():
    measured = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    compared = [x for x in measured if x["provider"] == "cuda" and x["mode"] in tables.MODES]
    assert compared
    for x in compared:
        case = x["mode"], x["precision"], x["layout"]
        assert tables.whole(tables.of_cuda(DEVICES["H200"], CASE, *case)).bytes == x["bytes"]


def test_no_measured_time_is_below_the_computed():
    """The model adds nothing for latency."""
    found = rows(tables.head(DEVICES["H200"], CASE, MEASURED))
    assert len(found) == 12
    assert all(float(row[-1]) >= 1 for row in found)


def test_layers_add_up():
    found = rows(tables.layers(DEVICES["H200"], CASE))
    assert len(found) == 8 * 6
    for i in range(0, len(found), 6):
        megabytes = [int(row[4]) for row in found[i : i + 6]]
        assert abs(sum(megabytes[:5]) - megabytes[5]) <= 3  # each is rounded


@pytest.mark.parametrize(
    "device, code",
    (("H200", "cuda 90"), ("H100", "cuda 90"), ("RTX 4090", "cuda 80"), ("A100", "cuda 80"), ("RTX 5090", "cuda 100")),
)
def test_code_for_a_device(device, code):
    assert (
        tables.target(DEVICES[device], [{"target": f"cuda {x}"} for x in (80, 90, 100)] + [{"target": "hip x"}]) == code
    )


def test_the_tile_of_a_device():
    """The largest of which two blocks fit, or else the smallest."""
    large, small = ({"packs": n, "registers": 80, "shared": shared} for n, shared in ((8, 75808), (4, 43040)))
    assert tables.chosen(DEVICES["A100"], [small, large]) == (large, 2)
    assert tables.chosen(DEVICES["RTX 4090"], [small, large]) == (small, 2)
    assert tables.chosen(DEVICES["RTX 4090"], [large]) == (large, 1)


def test_triton_has_a_row_for_each_kernel():
    found = rows(tables.code_of_triton(DEVICES["A100"]))
    assert len(found) == sum(x["target"] == "cuda 80" for x in records.read("triton")) > 40
    assert {x["target"] for x in records.read("triton")} == {" ".join(x.split()[:2]) for x in program.TARGETS}
