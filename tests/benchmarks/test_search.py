"""What is found and what is counted, and the tables, of records made here and of a few small patches."""

from __future__ import annotations

import time
from argparse import Namespace

import pytest
import torch

from benchmarks import search
from lpips_fast.bench.records import Run
from lpips_fast.search import Index

RUN = Run(torch.device("cpu"))
ARGUMENTS = {"images": 60, "queries": 12, "k": 3, "sketch": 256, "batch": 8, "faiss": (), "rounds": 1, "threads": 1}


def test_of_equally_near_images_any_count():
    exact = torch.tensor([[0.3, 0.1, 0.2, 0.2, 0.4]])
    assert search.score(exact, torch.tensor([[1, 2]]), 2).tolist() == [1]
    assert search.score(exact, torch.tensor([[1, 3]]), 2).tolist() == [1]
    assert search.score(exact, torch.tensor([[1, 2, 3]]), 2).tolist() == [1]
    assert search.score(exact, torch.tensor([[0, 1, 4]]), 2).tolist() == [0.5]


def test_wrong_distances_are_not_timed():
    """Of what was found, an image that is expected has the distance expected; another one is a miss."""
    expected = torch.tensor([[0.1, 0.2], [0.1, 0.3]]), torch.tensor([[5, 6], [7, 8]])
    missed = torch.tensor([[0.2, 0.25], [0.1, float("inf")]]), torch.tensor([[6, 9], [7, -1]])
    assert search.agreement(missed, expected) == 0.5
    with pytest.raises(SystemExit, match="nothing was timed"):
        search.agreement((torch.tensor([[0.1, 0.19], [0.1, 0.3]]), expected[1]), expected)


def measured(name, fn, size=64):
    """The records of a part, as `main` makes them."""
    found = search.PARTS[name].measure(fn, size, Namespace(**ARGUMENTS))
    return [{"benchmark": name, "net": "alex", "size": size, "images": 60, **r, **RUN.context} for r in found]


def test_recall(make_ours):
    pytest.importorskip("skimage")
    records = measured("recall", make_ours())
    assert [record["provider"] for record in records] == ["search", "the 20 best by sketch", "the 50 best by sketch"]
    assert all(0.9 < record["recall"] <= 1 for record in records)
    assert 3 <= records[0]["confirmed_mean"] <= 60
    title, _, head, _, *rows = search.tables(records).splitlines()
    assert title.startswith("**recall**, ")
    assert head.startswith("| net | images |  | recall |")
    assert rows[0].startswith("| alex | 60 of 64 x 64 | search | ")


def test_bytes(make_ours):
    pytest.importorskip("skimage")
    whole, sketches = measured("bytes", make_ours())
    assert whole["bytes_in_memory"] == 2 * 31_872
    assert sketches["bytes_in_memory"] == 2 * 256
    assert 2 * 256 + len("photographs/000000.png") <= sketches["bytes_in_file"] < 2 * 256 + 100
    assert f"| 512 | {sketches['bytes_in_file']:,.0f} |" in search.tables([whole, sketches])


def test_query(make_ours, monkeypatch):
    """Every part of a search is timed, and the limit is the sketches' bytes at the rate of the copy."""
    pytest.importorskip("skimage")
    monkeypatch.setattr(search.ceilings, "copy", lambda device: (lambda: time.sleep(0.01), 60 * 2 * 256))
    records = measured("query", make_ours())
    by_name = {(record["provider"], record["queries"]): record for record in records}
    assert len(by_name) == len(records) == 9
    assert by_name[search.WHOLE, 1]["recall"] == by_name[search.WHOLE, 16]["recall"] == 1
    assert by_name["sketches", 1]["recall"] > 0.9
    assert 3 <= by_name[search.CONFIRMING, 1]["confirmed_mean"] <= 60
    assert records[-1]["provider"].startswith("limit")
    assert records[-1]["median_s"] >= 0.01


def test_build(make_ours):
    pytest.importorskip("skimage")
    records = measured("build", make_ours())
    assert [record["provider"] for record in records] == ["embedding alone", "sketches", search.WHOLE]
    assert records[0]["times_embedding"] == 1


def test_random_sketches_are_an_index(make_ours, tmp_path):
    """Few of them are near one of them, and it is the nearest to itself."""
    fn = make_ours()
    header = Index.build(fn, torch.rand(1, 3, 64, 64), sketch=256).header
    search.write_random(tmp_path / "index", header, 2 * search.ROWS, tmp_path / "scratch")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    index = Index.load(tmp_path / "index", fn)
    distances, rows = search.estimates(index, search.stored_query(index, 7), 10)
    assert rows[0, 0] == 7
    assert distances[0, 0] == 0
    assert rows.max() < search.ROWS
    assert len(index.candidates(search.stored_query(index, 7), 10)[0].rows) < search.ROWS


def test_tables_have_the_last_record_of_each():
    case = {"benchmark": "query", "net": "alex", "size": 64, "images": 100_000, "queries": 1, **RUN.context}
    times = {"q20_s": 0.5, "median_s": 1.0, "q80_s": 2.0, "times_faster": 1.0}
    records = [
        {**case, "provider": "sketches", **times, "median_s": 99.0},
        {**case, "provider": "whole vectors", **times, "recall": 1.0},
        {**case, "provider": "sketches", **times, "median_s": 0.02, "times_faster": 50.0, "recall": 0.9995},
        {**case, "benchmark": "build", "provider": "sketches", **times, "times_embedding": 1.05},
    ]
    text = search.tables(records)
    assert "| alex | 100,000 of 64 x 64 | sketches | 1 | 20.0 (500 to 2000) | 50 | 99.95% |  |" in text
    assert "| sketches | 1000 (500 to 2000) | 1.050 |" in text
    assert text.count("whole vectors") == 1
    assert "99000" not in text
