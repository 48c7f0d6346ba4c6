"""The suite itself: on a GPU, in several processes, and without the packages that it compares with."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lpips_fast.head import backends
from tests import conftest

ROOT = Path(__file__).resolve().parents[1]

# A sitecustomize.py that hides lpips and piq from a process.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *arguments):
        return None if name.partition(".")[0] in ("lpips", "piq") else super().find_spec(name, *arguments)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def test_what_compares_with_a_missing_package_is_skipped(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    tests = [
        "tests/compat/test_monkeypatch.py",
        "tests/bapps/test_scores.py",
        "tests/compat/test_piq.py::test_keys_strictly_both_ways",
        "tests/lpips/test_drop_in.py::test_attributes",
        "tests/lpips/test_drop_in.py::test_helpers_give_the_same_as_those_of_lpips",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("4 passed, "), done.stdout  # of test_scores.py
    for told in ("could not import 'lpips'", "could not import 'piq", "lpips is not installed"):
        assert told in done.stdout


def test_what_needs_real_weights_is_skipped_where_they_cannot_be_had(tmp_path):
    tests = [
        "tests/lpips/test_golden.py::test_records_are_of_these_images_and_weights",
        "tests/compat/test_taming.py::test_numbers_and_gradients_on_real_weights",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "TORCH_HOME": str(tmp_path), "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 skipped"), done.stdout
    assert f"not in {tmp_path / 'hub' / 'checkpoints'}" in done.stdout


def test_float32_is_float32_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    runpy.run_path(conftest.__file__)
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize("processes", (2, 5, 12))
def test_no_process_ends_with_the_longest_tests(monkeypatch, processes):
    """The longest tests are spread evenly over the shares that --dist worksteal makes, at the beginning of each."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(processes))
    names = [f"{i}" for i in range(500)] + ["test_aot"] * 6 + ["z"] * 30
    items = [SimpleNamespace(path=Path(f"{name}.py")) for name in names]
    found = list(items)
    conftest.pytest_collection_modifyitems(found)
    assert sorted(map(id, found)) == sorted(map(id, items))
    for left in range(processes, 0, -1):
        share, found = found[: len(found) // left], found[len(found) // left :]
        where = [i for i, item in enumerate(share) if item.path.stem == "test_aot"]
        assert len(where) in (6 // processes, -(-6 // processes))
        assert all(i < processes + 6 for i in where)


def test_one_process_keeps_its_order(monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    items = [SimpleNamespace(path=Path(f"{name}.py")) for name in ("a", "test_aot")]
    found = list(items)
    conftest.pytest_collection_modifyitems(found)
    assert found == items


def test_every_backend_that_works_takes_part_in_the_heads_tests():
    command = [sys.executable, "-m", "pytest", "tests/head/test_autograd.py", "--collect-only", "-q"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    works = [name for name in backends.BACKENDS if backends.why_not(name, torch.device("cpu")) is None]
    for name in {*works, "cuda"}:
        assert f"[{'cuda-emulated' if name == 'cuda' else f'{name}-cpu'}-" in listed, name
