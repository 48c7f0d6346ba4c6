"""How long calls take, as medians with 20% and 80% quantiles over turns, and how much memory they take."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]

# This many bytes are overwritten this often on a GPU before each timed call. That empties the cache, whose size is a
# fraction of it, and takes so long that the call's launches are queued by the time it ends.
_COLD_BYTES = 256 << 20
_COLD_TIMES = 8


class Quantiles(NamedTuple):
    """Seconds."""

    q20: float
    median: float
    q80: float

    @classmethod
    def of(cls, seconds: list[float]) -> Quantiles:
        if len(seconds) == 1:
            return cls(*seconds * 3)
        cuts = statistics.quantiles(seconds, n=5, method="inclusive")
        return cls(cuts[0], statistics.median(seconds), cuts[-1])

    def record(self) -> dict[str, float]:
        return {"q20_s": self.q20, "median_s": self.median, "q80_s": self.q80}


class Clock:
    """Seconds that a call takes on a device.

    Args:
        device: where the call computes.
        kernels: whether to time the kernels alone on a GPU: from one event on the device to another, with cold caches.
            Otherwise, and on a CPU, the time is how long a caller waits for the result: from an idle device to an idle
            device.
    """

    def __init__(self, device: torch.device, *, kernels: bool = False) -> None:
        self.device = device
        self._cold: Tensor | None = None
        if kernels and device.type == "cuda":
            self._cold = torch.empty(_COLD_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, call: Call) -> float:
        if self._cold is not None:
            return self._between_events(call, self._cold)
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _between_events(self, call: Call, cold: Tensor) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.synchronize()
        for _ in range(_COLD_TIMES):
            cold.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def interleaved(
    setups: Mapping[str, Callable[[], Call]], clock: Clock, rounds: int
) -> tuple[dict[str, Quantiles], dict[str, str]]:
    """Times calls that take turns, after a round to warm up.

    Each round has a random order of its own, because a call leaves caches and clocks in a state that affects the next
    call.

    Args:
        setups: by name, a function that makes the call of a round. It is not timed.
        clock: what times the call.
        rounds: how often each call is timed.

    Returns:
        the times by name; and the error by name of each call that failed. A call that failed gets no further turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in setups}
    failures: dict[str, str] = {}
    order = list(setups)
    shuffle = random.Random(0).shuffle
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            if name in failures:
                continue
            try:
                elapsed = clock(setups[name]())
            except Exception as error:  # a call that fails must not stop the others
                failures[name] = described(error)
                release_memory()
                continue
            if turn:
                seconds[name].append(elapsed)
    return {name: Quantiles.of(of_name) for name, of_name in seconds.items() if name not in failures}, failures


def described(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def release_memory() -> None:
    """Frees what the caching allocator keeps, after a call that ran out of memory."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def cuda_peak_bytes(call: Call, device: torch.device) -> int:
    """How far the memory of a GPU's tensors rises during a call."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def resident_peak_bytes(call: Call) -> int:
    """How far the resident memory of this process rises during a call, on Linux.

    Memory that earlier calls gave back to the allocator is still resident. So call this in a process of its own.
    """
    before, peak, done = _resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(peak, _resident_bytes()) - before


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """The bytes of the tensors that a forward keeps for its backward, without inputs and weights.

    Two forwards are alive at once. A tensor that both keep is an input or a weight.
    """

    def kept() -> tuple[Tensor, dict[int, int]]:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return forward(), storages

    first, lasting = kept()
    second, storages = kept()
    del first, second
    return sum(n_bytes for pointer, n_bytes in storages.items() if pointer not in lasting)
