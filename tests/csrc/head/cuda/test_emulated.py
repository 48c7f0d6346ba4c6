"""What only the head's CUDA kernels do, in the emulator. tests/head/test_operators.py has what every backend does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import head_bwd_ref
from tests.support.comparisons import assert_all_close
from tests.support.features import in_layout, to_float64
from tests.support.tolerances import HEAD_GRAD_TOLERANCE

ROOT = Path(__file__).parents[4]
CUDA = ROOT / "csrc" / "head" / "cuda"
BARRIERS = [
    (path.name, number)
    for path in sorted(CUDA.glob("*.cu*"))
    for number, line in enumerate(path.read_text().splitlines(), start=1)
    if "__syncthreads()" in line
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# N, channels, size, layout. With 521 tiles, all blocks but the last take two for the gradients to the weights.
FEW_TILES = [(1, 300, (3, 4), "nchw"), (1, 200, (9, 9), "channels_last"), (1, 1500, (3, 5), "sliced")]
MANY_TILES = [(521, 8, (1, 4), "nchw"), (521, 8, (1, 1), "channels_last"), (521, 3, (1, 1), "sliced")]


def inputs(case, dtype=torch.float32):
    n, channels, size, layout = case
    gen = torch.Generator().manual_seed(0)
    feats = [[in_layout(torch.rand(n, channels, *size, generator=gen).to(dtype), layout)] for _ in range(2)]
    weights = [torch.rand(channels, generator=gen, dtype=torch.float64 if dtype == torch.float64 else torch.float32)]
    return HeadInput(*feats, weights, Norm())


def results(case, dtype=torch.float32):
    """Values, maps, gradients with and without those to the weights; of many tiles, the gradients with them alone."""
    operands = inputs(case, dtype).operands()
    lpips = torch.ops.lpips_fast
    grads = [torch.ones(case[0], 1, dtype=operands[2][0].dtype)]
    found = lpips.head_bwd_cuda(grads, *operands, True, True, True, True)
    if case in FEW_TILES:
        found += lpips.head_bwd_cuda(grads, *operands, True, True, True, False)
        found += [lpips.head_fwd_cuda(*operands), *lpips.head_maps_fwd_cuda(*operands)]
    return found


def are_equal(found, expected):
    return all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", [*FEW_TILES, *MANY_TILES], ids=str)
def test_the_order_of_threads_changes_nothing(emulator, case):
    for dtype in DTYPES if case in FEW_TILES else DTYPES[:1]:
        expected = results(case, dtype)
        for seed in range(4 if case in FEW_TILES else 1):
            emulator.set_seed(seed)
            assert are_equal(results(case, dtype), expected), f"{dtype}, seed {seed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MANY_TILES, ids=str)
def test_blocks_with_several_tiles(emulator, case, dtype):
    feats0, feats1, weights, norm = inputs(case, dtype)
    exact = HeadInput(*map(to_float64, (feats0, feats1, weights)), norm)
    grads = [torch.ones(case[0], 1, dtype=torch.float64)]
    expected = head_bwd_ref(exact, grads, mean=True, need0=True, need1=True, need_weights=True)
    for found, e in zip(results(case, dtype), expected, strict=True):
        assert_all_close([found], [e], HEAD_GRAD_TOLERANCE, "gradient")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_blocks_fit_in_each_multiprocessor(emulator, dtype):
    """With the larger tile where two of its blocks fit; CUDA reserves 1 KiB for each block."""
    case, reserved, blocks = FEW_TILES[0], 1 << 10, {}
    for kibibytes in (100, 164, 228):
        emulator.reset(shared_memory=kibibytes << 10)
        results(case, dtype)
        blocks[kibibytes] = emulator.shared_memory_of_main_kernel()
        assert 2 * (blocks[kibibytes] + reserved) <= kibibytes << 10
    assert blocks[164] == blocks[228] > blocks[100]
    for bytes_of_two, larger in ((2 * (blocks[228] + reserved), True), (2 * (blocks[228] + reserved) - 1, False)):
        emulator.reset(shared_memory=bytes_of_two)
        results(case, dtype)
        assert (emulator.shared_memory_of_main_kernel() == blocks[228]) == larger


@pytest.fixture(scope="module")
def expected():
    return {}


@pytest.mark.parametrize("barrier", BARRIERS, ids=lambda barrier: ":".join(map(str, barrier)))
def test_every_barrier_is_needed(emulator, expected, barrier):
    """Without it some results change, in some order of the threads. A barrier that changes none is to be removed."""
    for case in [*FEW_TILES, *MANY_TILES]:
        if case not in expected:
            emulator.leave_out_barrier("", 0)
            expected[case] = results(case)
        emulator.leave_out_barrier(*barrier)
        for seed in range(10 if case in FEW_TILES else 1):
            emulator.set_seed(seed)
            if not are_equal(results(case), expected[case]):
                return
    pytest.fail("no result changes without this barrier")


def test_there_are_barriers():
    assert len(BARRIERS) > 5
