"""Processes that share a run: how torchrun tells them apart, which units each has, and what reaches rank 0."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch.distributed as dist
import typer

from lpips_fast.cli import errors, processes
from lpips_fast.cli.command import exit_status
from tests.support.commands import TIMEOUT, environment


@pytest.fixture
def as_rank(monkeypatch):
    """Makes this process one of several, in its environment."""

    def as_rank(rank, count):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))

    return as_rank


def test_numbers_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.count(), processes.local_rank()) == (0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (processes.rank(), processes.count(), processes.local_rank()) == (5, 8, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("n", [0, 1, 7, 10])
def test_each_unit_belongs_to_one_process(as_rank, count, n):
    units = list(range(n))
    own, runs = [], []
    for rank in range(count):
        as_rank(rank, count)
        own.append(processes.own(units))
        runs.append(processes.own_run(units))
    assert sorted(unit for part in own for unit in part) == units
    assert [unit for part in runs for unit in part] == units, "runs of neighbours, in order"
    for parts in (own, runs):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= -(-n // count), "as many as `gathered` has rounds"


def test_one_process_needs_no_group(as_rank):
    as_rank(0, 1)
    made = []
    with processes.group():
        assert processes.from_first(lambda: made.append(1) or "made") == "made"
        assert list(processes.gathered(iter("abc"), 3)) == [["a"], ["b"], ["c"]]
    assert made == [1]
    with pytest.raises(ValueError, match="as it is"), processes.group():
        raise ValueError("as it is")


def test_what_fails_otherwise_is_told_as_it_is(as_rank, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("Timed out waiting 1800000ms for recv operation to complete")

    monkeypatch.setattr(dist, "broadcast_object_list", fails)
    as_rank(0, 2)
    with pytest.raises(RuntimeError, match="Timed out waiting"):
        processes.from_first(lambda: "made")


def test_a_process_that_is_lost(as_rank, monkeypatch, capsys):
    """Rank 0 says so; gloo's words tell a user nothing."""

    def lost(*arguments, **options):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:541] Connection closed by peer")

    for name in ("broadcast_object_list", "gather_object", "barrier"):
        monkeypatch.setattr(dist, name, lost)
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)

    def fails(unit):
        raise RuntimeError("of the unit itself")

    def leaves():
        with processes.group():
            pass

    for rank, said in ((0, "lpips-fast: another process has ended, and the run with it\n"), (1, "")):
        as_rank(rank, 2)
        for use in (lambda: processes.from_first(int), lambda: next(processes.gathered([1], 2)), leaves):
            with pytest.raises(typer.Exit) as ended, exit_status():
                use()
            assert ended.value.exit_code == errors.FAILED
            assert capsys.readouterr().err == said
    with pytest.raises(RuntimeError, match="of the unit itself"):
        next(processes.gathered(map(fails, [1]), 2))


SCRIPT = """
import json, pathlib, sys
from lpips_fast.cli import processes

units = list(range(7))
with processes.group():
    listed = processes.from_first(lambda: {"made by": processes.rank()})
    shares = processes.own(units), processes.own_run(units)
    rounds = [list(processes.gathered((unit**2 for unit in share), 7)) for share in shares]
    nothing = list(processes.gathered([], 0))
found = {"listed": listed, "rounds": rounds, "nothing": nothing}
pathlib.Path(sys.argv[1], str(processes.rank())).write_text(json.dumps(found))
"""


def test_three_processes(tmp_path):
    """With units that do not share out evenly. Results come in the order of ranks, to rank 0 alone."""
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    subprocess.run(
        [*torchrun, tmp_path / "script.py", tmp_path],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=TIMEOUT,
    )
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [of_rank["listed"] for of_rank in found] == [{"made by": 0}] * 3
    assert found[0]["rounds"] == [[[0, 1, 4], [9, 16, 25], [36]], [[0, 4, 16], [1, 9, 25], [36]]]
    assert found[1]["rounds"] == found[2]["rounds"] == [[[], [], []]] * 2
    assert [of_rank["nothing"] for of_rank in found] == [[]] * 3
