"""How well a distance agrees with people: the scores of lpips's score_2afc_dataset and score_jnd_dataset.

    2AFC = mean of { judge where d1 < d0,  1 - judge where d0 < d1,  1/2 where they are equal }

JND: each distance is a threshold. The k pairs whose distance is at most the threshold count as the same. With s_i the
share of people who found pair i the same, precision = sum_{i<=k} s_i / k and recall = sum_{i<=k} s_i / sum s. The score
is the area under the envelope of the precision: the largest precision at that recall or a higher one (as in PASCAL VOC
2010). (Zhang et al., CVPR 2018, section 4.)

Pairs at one distance share a threshold. So the order of pairs does not matter, and a constant distance scores the mean
of s. lpips has a threshold after each pair, and sorts tied pairs with numpy's default sort, whose order depends on the
processor's instructions. Without ties both scores are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lpips_fast.bapps.datasets import Judgements, TwoAFCDataset
from lpips_fast.bapps.loading import in_order, read_batches


def score_2afc(d0: ArrayLike, d1: ArrayLike, judge: ArrayLike) -> float:
    """The share of people, from 0 to 1, with whom distances agree on which of two images is nearer to a third.

    Args:
        d0, d1: distances to the reference, [N].
        judge: the shares of people who found the second nearer, [N].
    """
    return float(np.mean(agreement(d0, d1, judge)))


def agreement(d0: ArrayLike, d1: ArrayLike, judge: ArrayLike) -> np.ndarray:
    """For each sample the share of people with whom its distances agree, [N]; `score_2afc` is the mean."""
    d0, d1, judge = _vectors(d0=d0, d1=d1, judge=judge)
    return (d0 < d1) * (1 - judge) + (d1 < d0) * judge + (d0 == d1) * 0.5


def score_jnd(d: ArrayLike, same: ArrayLike) -> float:
    """The average precision, from 0 to 1, with which small distances find the pairs that people find the same.

    It does not depend on the order of the pairs, even if distances are equal. A constant distance scores the mean of
    `same`.

    Args:
        d: distances, [N].
        same: the shares of people who found the pair the same, [N], not all 0.
    """
    d, same = _vectors(d=d, same=same)
    if not same.any():
        raise ValueError("same is 0 throughout: with nobody who took a pair for the same there is no precision")
    order = np.lexsort((same, d))  # by d, then by `same`, so that the sum rounds alike for any order of tied pairs
    d = d[order]
    thresholds = np.flatnonzero(np.append(d[1:] != d[:-1], True))  # the last pair at each distance
    true = np.cumsum(same[order])[thresholds]
    return average_precision(true / true[-1], true / (thresholds + 1))


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under the precision's envelope, over recalls [N] in ascending order."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * envelope))


def evaluate(
    samples: Judgements[Any],
    distance: Callable[[Tensor, list[Tensor]], list[Tensor]],
    *,
    batch_size: int = 50,
    workers: int = 0,
    advance: Callable[[int], object] = lambda samples: None,
) -> float:
    """The 2AFC or JND score of a distance on samples.

    Args:
        samples: the judgements, a TwoAFCDataset or JNDDataset.
        distance: a function that takes images [N, 3, 64, 64] in [-1, 1] and a list of such batches, and returns a list
            with the N distances to each batch.
        batch_size: N.
        workers: the number of processes that read.
        advance: called after each batch with its number of samples.

    Raises:
        SampleError: a sample cannot be used.
    """
    columns: list[list[Tensor]] = []
    for batch in read_batches(samples, in_order(len(samples), batch_size), workers):
        image, *others, share = batch
        with torch.inference_mode():
            columns.append([d.flatten().double().cpu() for d in (*distance(image, others), share)])
        advance(len(share))
    values = [torch.cat(column).numpy() for column in zip(*columns, strict=True)]
    return score_2afc(*values) if isinstance(samples, TwoAFCDataset) else score_jnd(*values)


def _vectors(**given: ArrayLike) -> list[np.ndarray]:
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes.values()):
        raise ValueError(f"{' and '.join(arrays)} must be vectors of one length, at least 1, got {shapes}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} values that are not")
    return list(arrays.values())
