"""What is left out, because it would take long for a result that nobody can use.

A processor without bfloat16 instructions takes dozens of times as long for a matrix product or a convolution in
bfloat16 as for one in float32. So on a CPU a small call is timed before a whole one is made. Its time, scaled up by the
work, is what the whole one is expected to take. A whole call is left out if that is more than a second, and more than
five times as long as plain torch takes in float32. What suits the processor stays far below five times. A record of
what is left out has the reason as its `error`, and the seconds as `expected_s`. That is no failure.

The time is the processor's, divided by the threads: other processes on the machine do not make it longer. On a GPU
nothing is left out: no precision is slow there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import torch

from lpips_fast.bench.records import Record
from lpips_fast.bench.timing import Call

SECONDS = 1.0
TIMES = 5.0
_TRIES = 3  # the first call may also make what is made once


class Patience:
    """Tells which calls of one kind to leave out.

    Args:
        what: the kind, for the reason.
        device: where they compute.
        scale: how many times as much work a whole call is as a small one.
        plain: makes a small call of plain torch in float32; not timed.
    """

    def __init__(self, what: str, device: torch.device, scale: float, plain: Callable[[], Call]) -> None:
        self.what = what
        self.device = device
        self.scale = scale
        self.plain = plain

    def left_out(self, small: Callable[[], Call]) -> Record:
        """What the record of a call says if it is left out; nothing if it is to be made.

        Args:
            small: makes the small call of a try. It is not timed.
        """
        if self.device.type != "cpu":
            return {}
        try:
            for _ in range(_TRIES):
                seconds = self._expected(small)
                if seconds <= SECONDS or seconds <= TIMES * self._plain_seconds:
                    return {}
        except Exception:  # the whole call fails, too, and its record says why
            return {}
        times = f"{seconds / self._plain_seconds:.0f} times as long as plain torch in float32"
        return {"error": f"left out: {self.what} would take about {seconds:.1f} s, {times}", "expected_s": seconds}

    def _expected(self, small: Callable[[], Call]) -> float:
        call = small()
        start = time.process_time()
        call()
        return self.scale * (time.process_time() - start) / torch.get_num_threads()

    @cached_property
    def _plain_seconds(self) -> float:
        return min(self._expected(self.plain) for _ in range(_TRIES))
