"""One process among several, as torchrun starts them: each takes every K-th unit of work, rank 0 reports.

Only results travel, a few numbers a unit, so the group is gloo's whatever the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def group() -> Iterator[None]:
    """The process group, where there is more than one process.

    An exception leaves without waiting for the others: torchrun then ends them, while a collective would hang.
    """
    if count() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    yield
    dist.barrier()
    dist.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on every rank."""
    if count() == 1:
        return make()
    import torch.distributed as dist

    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def own(units: Sequence[T]) -> Sequence[T]:
    """The units of work of this process."""
    return units[rank() :: count()]


def own_run(units: Sequence[T]) -> Sequence[T]:
    """The units of work of this process where neighbours share some of it: a contiguous run."""
    n = len(units)
    return units[n * rank() // count() : n * (rank() + 1) // count()]


def gathered(results: Iterable[T], units: int) -> Iterator[list[T]]:
    """On rank 0, round by round, what every process computed of its own units; on the others empty lists."""
    if count() == 1:
        for result in results:
            yield [result]
        return
    import torch.distributed as dist

    results = iter(results)
    for _ in range(-(-units // count())):
        mine = next(results, None)
        box: list[Any] | None = [None] * count() if rank() == 0 else None
        dist.gather_object(mine, box, dst=0)
        yield [] if box is None else [result for result in box if result is not None]
