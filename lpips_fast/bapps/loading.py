"""Batches of samples, which worker processes read ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lpips_fast.bapps.datasets import Judgements, Sample, SampleError


class _Batches(Dataset[Any]):
    """The fields of several samples at once, as arrays; or the reason why there are none, as a string."""

    def __init__(self, samples: Judgements[Any]) -> None:
        self.samples = samples

    def __getitem__(self, indices: Sequence[int]) -> tuple[np.ndarray, ...] | str:
        try:
            items = [self.samples[i] for i in indices]
        except SampleError as error:
            return str(error)
        return tuple(torch.stack(field).numpy() for field in zip(*items, strict=True))


def read_batches(samples: Judgements[Sample], batches: Iterable[Sequence[int]], workers: int) -> Iterator[Sample]:
    """Batches of samples, with fields [N, 3, 64, 64] and [N, 1, 1, 1].

    Args:
        samples: the data set.
        batches: the indices of the samples of each batch.
        workers: the number of processes that read; 0 reads in this one.

    Raises:
        SampleError: a sample cannot be used.
    """
    # Arrays travel through pipes. Tensors would need room in /dev/shm, which is small in containers.
    loader = DataLoader(_Batches(samples), batch_size=None, sampler=batches, collate_fn=_as_is, num_workers=workers)
    for fields in loader:
        if isinstance(fields, str):
            raise SampleError(fields)
        yield samples.sample._make(map(torch.from_numpy, fields))


def in_order(n: int, size: int, start: int = 0) -> list[range]:
    """The indices from `start` to n - 1, in runs of `size`."""
    return [range(i, min(i + size, n)) for i in range(start, n, size)]


def _as_is(item: Any) -> Any:
    return item
