"""GPUs as their makers describe them, and a model of the time that a kernel takes on one.

A kernel cannot be faster than memory delivers its bytes, nor than the multiprocessors issue its instructions: each
issues four warp instructions a cycle. Blocks run in waves of as many as fit at a time, and the last wave takes as long
as a full one. So

    seconds = max(bytes / bandwidth, warp instructions / (4 clock multiprocessors)) (whole waves / waves)

The time for the bytes is a lower bound. The time for the instructions is an estimate: each warp counts as if it took a
thread's longest way (sass.py). Latencies, caches, conflicts of memory banks, the launch, and pipes narrower than the
issue (float64; float32 on an A100; integers) are not in this model. docs/gpu.md has it beside measured times.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.cost.sass import RESERVED

ISSUED = 4  # warp instructions a cycle in each multiprocessor
WARP = 32
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # a warp's registers are allocated in units of this
SHARED_UNIT = 128  # bytes


class Device(NamedTuple):
    """Figures of one GPU.

    Bandwidth, boost clock and multiprocessors are those of NVIDIA's data sheets and architecture white papers. Where
    these name no clock (H100, H200, B200), it is the rate of float32 by two operations in each of 128 lanes of each
    multiprocessor. Memory and limits are those of the compute capability in the CUDA programming guide.
    """

    name: str
    capability: int  # 90 for 9.0
    bandwidth: float  # bytes a second
    clock: float  # hertz
    multiprocessors: int
    shared: int  # KiB of shared memory a multiprocessor
    threads: int  # the most on a multiprocessor
    blocks: int  # the most on a multiprocessor

    def resident(self, registers: int, shared: int, threads: int) -> int:
        """The blocks that fit on a multiprocessor, by a thread's registers and a block's bytes of shared memory."""
        of_warp = REGISTER_UNIT * math.ceil(registers * WARP / REGISTER_UNIT)
        of_block = SHARED_UNIT * math.ceil(shared / SHARED_UNIT) + RESERVED
        by_registers = REGISTERS // of_warp // (threads // WARP)
        return min(by_registers, self.shared * 1024 // of_block, self.threads // threads, self.blocks)

    def memory_seconds(self, n_bytes: float) -> float:
        return n_bytes / self.bandwidth

    def issue_seconds(self, warp_instructions: float) -> float:
        return warp_instructions / (ISSUED * self.clock * self.multiprocessors)

    def seconds(self, n_bytes: float, warp_instructions: float, blocks: int, resident: int) -> float:
        """The time of a launch of `blocks` blocks."""
        waves = blocks / (resident * self.multiprocessors)
        longest = max(self.memory_seconds(n_bytes), self.issue_seconds(warp_instructions))
        return longest * math.ceil(waves) / waves if blocks else 0.0


DEVICES = {
    device.name: device
    for device in (
        Device("H200", 90, 4.8e12, 1.98e9, 132, 228, 2048, 32),
        Device("H100", 90, 3.35e12, 1.98e9, 132, 228, 2048, 32),  # SXM
        Device("B200", 100, 8.0e12, 1.98e9, 148, 228, 2048, 32),
        Device("A100", 80, 2.039e12, 1.41e9, 108, 164, 2048, 32),  # SXM, 80 GB
        Device("RTX 3090", 86, 0.936e12, 1.695e9, 82, 100, 1536, 16),
        Device("RTX 4090", 89, 1.008e12, 2.52e9, 128, 100, 1536, 24),
        Device("RTX 5090", 120, 1.792e12, 2.407e9, 170, 100, 1536, 24),
    )
}
