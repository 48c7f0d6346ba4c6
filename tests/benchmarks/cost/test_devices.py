"""What fits on a multiprocessor, and the model of time."""

from __future__ import annotations

import pytest

from benchmarks.cost.devices import DEVICES

H200 = DEVICES["H200"]


@pytest.mark.parametrize("device, blocks", (("H200", 3), ("B200", 3), ("A100", 2), ("RTX 3090", 1), ("RTX 5090", 1)))
def test_blocks_of_the_head(device, blocks):
    """Its largest block has 75,808 bytes of shared memory and 256 threads of 80 registers."""
    assert DEVICES[device].resident(80, 75808, 256) == blocks


def test_each_limit_of_blocks():
    assert H200.resident(16, 0, 256) == 2048 // 256
    assert H200.resident(16, 0, 32) == 32
    assert H200.resident(81, 0, 256) == 65536 // (88 * 256)  # registers are allocated by eights
    # A block takes a kilobyte besides its own, and whole units of 128 bytes: 3 x 76,800 + 3 x 1,024 is all there is.
    assert H200.resident(16, 76800, 256) == 3
    assert H200.resident(16, 76801, 256) == 2


def test_the_slower_of_memory_and_issue():
    """A whole number of waves of three blocks on 132 multiprocessors."""
    blocks = 10 * 3 * 132
    assert H200.seconds(4.8e12, 0, blocks, 3) == 1
    assert H200.seconds(4.8e12, 2 * 4 * 1.98e9 * 132, blocks, 3) == 2


def test_the_last_wave_is_a_whole_one():
    assert H200.seconds(4.8e12, 0, 3 * 132 // 2, 3) == 2
    assert H200.seconds(0, 0, 0, 3) == 0
