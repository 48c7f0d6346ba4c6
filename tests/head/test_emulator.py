"""The emulator of CUDA (tests/head/emulator) reports the faults of kernels; the head's kernels have none."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch

from tests.support.emulator import SOURCES, Unavailable, build

FAULTS = {  # in the order of faults.cpp: the error, or how many of the 64 results are wrong
    "none": 0,
    "barrier in a branch": "a thread ended while others wait at a barrier|a barrier .* after a thread has ended",
    "two barriers": "threads at different barriers",
    "no barrier": range(1, 65),
    "shuffle in a branch": "deadlock",
    "two shuffles": "lanes at different shuffles",
    "no wait": "a thread ended before it waited for its asynchronous copies",
    "no commit": "a wait for copies that are not committed",
    "read before wait": 64,
    "copy misaligned": "an asynchronous copy at a misaligned address",
    "copy to global memory": "an asynchronous copy that is not to shared memory",
    "read-only load of shared memory": "__ldg of shared memory",
    "read-only load misaligned": "__ldg of a misaligned address",
    "shared memory not written": 1,
    "too much shared memory": "that no device takes",
    "too many parameters": "that no device takes",
}


@pytest.fixture(scope="module")
def library():
    try:
        path = build(SOURCES / "faults.cpp")
    except Unavailable as reason:
        pytest.skip(str(reason))
    found = ctypes.CDLL(path)
    found.run_with_fault.restype = ctypes.c_char_p
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_reported(library, fault, seed):
    values = torch.arange(256.0)
    out = torch.full((64,), torch.nan)
    library.emulator_set_seed(ctypes.c_uint64(seed))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (out, values))
    error = library.run_with_fault(list(FAULTS).index(fault), *pointers)
    expected = FAULTS[fault]
    if isinstance(expected, str):
        assert error is not None
        assert re.search(expected, error.decode())
    else:
        assert error is None
        wrong = int((out != values[::4].flip(0) + 1).sum())
        assert wrong in (expected if isinstance(expected, range) else (expected,))
