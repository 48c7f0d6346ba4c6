"""What the Triton kernels share on the host."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")

import lpips_fast  # noqa: E402

if lpips_fast.backends()["triton"] is not None:
    pytest.skip("no GPU, and Triton's interpreter is off", allow_module_level=True)

from lpips_fast.kernels import common  # noqa: E402

NUMBERS = (1, 2, 3, 7, 8, 9, 63, 64, 65, 511, 512, 513, 2**31 - 1, 2**31, 2**31 + 1)


@pytest.mark.parametrize("n", NUMBERS)
def test_like_tritons(n):
    assert common.next_power_of_2(n) == triton.next_power_of_2(n)
    assert [common.cdiv(n, b) for b in NUMBERS] == [triton.cdiv(n, b) for b in NUMBERS]
    assert common.cdiv(0, n) == 0


@pytest.mark.parametrize("channels", (0, 1, 63, 64, 65, 192, 384, 512, 4096))
def test_block_of_all_channels(channels):
    block = common.block_of_all_channels(channels)
    assert block >= max(channels, common.MIN_BLOCK_C)
    assert block & (block - 1) == 0
    assert block == common.MIN_BLOCK_C or block < 2 * channels
