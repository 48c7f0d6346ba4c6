"""Processes that share a run, as torchrun starts them: each computes its units of work, and rank 0 reports.

Processes exchange only results, a few numbers for each unit. So the group uses gloo on every device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class LostError(Exception):
    """Another process of the group has ended, and has said why."""


def count() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def group() -> Iterator[None]:
    """The process group, if there is more than one process.

    An exception leaves the group without waiting for the other processes: torchrun ends them, and a collective would
    hang.
    """
    if count() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    yield
    with _together():
        dist.barrier()
    dist.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """Calls `make` on rank 0, and returns its result on every rank."""
    if count() == 1:
        return make()
    import torch.distributed as dist

    box = [make() if rank() == 0 else None]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


@contextmanager
def _together() -> Iterator[None]:
    """A collective: a LostError if another process has left the group."""
    try:
        yield
    except RuntimeError as error:  # gloo has no kind of its own
        if "onnection" not in str(error):  # closed, reset, refused
            raise
        raise LostError("another process has ended, and the run with it") from error


def own(units: Sequence[T]) -> Sequence[T]:
    """The units of work of this process, every K-th of K processes."""
    return units[rank() :: count()]


def own_run(units: Sequence[T]) -> Sequence[T]:
    """The units of work of this process as a contiguous run, for units whose neighbours share some of their work."""
    n = len(units)
    return units[n * rank() // count() : n * (rank() + 1) // count()]


def gathered(results: Iterable[T], units: int) -> Iterator[list[T]]:
    """Round by round the results of all processes on rank 0, and empty lists on the other ranks.

    Args:
        results: what this process computes, a result for each of its own units.
        units: how many units all processes have.
    """
    if count() == 1:
        for result in results:
            yield [result]
        return
    import torch.distributed as dist

    results = iter(results)
    for _ in range(-(-units // count())):
        mine = next(results, None)
        box: list[Any] | None = [None] * count() if rank() == 0 else None
        with _together():
            dist.gather_object(mine, box, dst=0)
        yield [] if box is None else [result for result in box if result is not None]
