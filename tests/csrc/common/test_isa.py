"""The CPU kernels of every instruction set that this processor has, each in processes of their own.

A process chooses once (csrc/common/isa.h). The other tests run with the best set, these run them with the others.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lpips_fast import _library

ROOT = Path(__file__).parents[3]
VARIABLE = "LPIPS_FAST_CPU_ISA"
NAMES = ("portable", "avx2", "avx512")

pytestmark = [
    pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error)),
    pytest.mark.skipif(VARIABLE in os.environ, reason=f"{VARIABLE} is set already"),
]

# Each operator is tried twice: a choice that is refused must be refused again. What works prints its bits.
PROBE = """
import hashlib, torch
from lpips_fast import LPIPS, sketch  # define the operators
ops = torch.ops.lpips_fast
generator = torch.Generator().manual_seed(0)
feats = [[torch.randn(16, 65, 9, 11, generator=generator)] for _ in range(2)]
filters, turned = (torch.randn(shape, generator=generator) for shape in ((36, 2, 65, 16), (36, 5, 20, 16)))
program = [2, 2, 65, 20, 3, 1, 1, 0, 1, 0, 0, 0]  # one convolution by Winograd's algorithm
tap = torch.randn(16, 20, 9, 11, generator=generator)
rows = feats[0][0].contiguous(memory_format=torch.channels_last)
tables = sketch.signs_and_offsets(sketch.Sketch(100), 65 * 99, torch.device("cpu"))
queries, sketches = torch.randn(5, 100, generator=generator), torch.randn(9, 100, generator=generator).half()
for call in (
    lambda: ops.head_fwd_cpu(*feats, [torch.ones(65)], 1e-10, False),
    lambda: ops.head_maps_fwd_cpu(*feats, [torch.ones(65)], 1e-10, False)[0],
    lambda: ops.head_bwd_cpu([torch.ones(16, 1)], *feats, [torch.ones(65)], 1e-10, False, True, True, False, False)[0],
    lambda: ops.trunk_fwd_cpu(feats[0], None, None, [filters, torch.zeros(32)], program, False)[0],
    lambda: ops.trunk_bwd_cpu([tap], [], [tap], None, [turned], program, 9, 11),
    lambda: ops.sketch_cpu([rows], [torch.ones(65)], 1e-10, False, *tables, 100),
    lambda: ops.sketch_distances_cpu(queries, sketches),
) * 2:
    try:
        print("bits", hashlib.sha256(call().contiguous().numpy().tobytes()).hexdigest())
    except RuntimeError as error:
        print("error", str(error).splitlines()[0])
"""
CALLS = 14
# Of the suites, what is slow and says nothing about an instruction set.
SLOW = "(compiled or opcheck or gradcheck or 2_31 or matrix or packed)"


def child(isa, *command):
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    if isa is not None:
        environment[VARIABLE] = isa
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@functools.cache
def probe(isa):
    """What each call of PROBE gives with this choice."""
    run = child(isa, "-c", PROBE)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = run.stdout.splitlines()
    assert len(lines) == CALLS
    return lines


@functools.cache
def supported():
    """The sets of this processor, from the least to the best, as the error names them."""
    return re.search(r"\((.*)\)", probe("sse2")[0])[1].split(", ")


def test_unknown_name_is_an_error_in_every_operator():
    for line in probe("sse2"):
        assert re.fullmatch(rf"error .*{VARIABLE} must be .*\(portable.*\) or unset, got 'sse2'", line), line


@pytest.mark.parametrize("isa", NAMES)
def test_a_set_that_the_processor_lacks_is_an_error_in_every_operator(isa):
    outcome = "bits" if isa in supported() else "error"
    assert {line.split()[0] for line in probe(isa)} == {outcome}


def test_supported_sets_are_the_processors():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = set(re.findall(r"\w+", re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)[2]))
    expected = ["portable"]
    if {"avx2", "fma"} <= flags:
        expected += ["avx2"] + ["avx512"] * ("avx512f" in flags)
    assert supported() == expected


@pytest.mark.parametrize("name", (None, ""))
def test_best_set_is_the_default(name):
    assert probe(name) == probe(supported()[-1])


def test_choice_reaches_head_trunk_and_sketches():
    """Sums with fused multiply-adds round in other ways than those without."""
    if "avx2" not in supported():
        pytest.skip("one instruction set only")
    differ = [a != b for a, b in zip(probe("portable")[: CALLS // 2], probe("avx2")[: CALLS // 2], strict=True)]
    *head, forward, backward, sketches, distances = differ
    assert any(head)
    assert forward
    assert backward
    assert sketches
    assert distances


SUITES = {
    "head": ("tests/head", "tests/csrc/head/test_cpu.py", "-k", "(cpu-cpu or test_cpu) and not " + SLOW),
    "trunk": ("tests/trunk/test_operators.py", "-k", "not " + SLOW),
    "sketch": ("tests/test_sketch.py", "-k", "not torch- and not " + SLOW),
}


@pytest.mark.parametrize(
    "isa, part",
    (("portable", "head"), ("portable", "trunk"), ("avx2", "trunk"), ("portable", "sketch"), ("avx2", "sketch")),
)
def test_suite(isa, part):
    """The best set runs in all other tests; of the head's kernels those for AVX2 are the best ones."""
    if isa not in supported()[:-1]:
        pytest.skip("the processor lacks it, or has nothing better")
    run = child(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SUITES[part])
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
