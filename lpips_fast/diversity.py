"""The mean distance of all pairs of images, a score of diversity, in one pass over any number of images.

LPIPS(x, y) = |e(x) - e(y)|^2 (see `pairwise`). So the mean over pairs needs no pair. Let m and k be the means of the
embeddings e_i of N images and f_j of M others, and S = sum_i |e_i - m|^2 and T = sum_j |f_j - k|^2:

    sum_{i<j} |e_i - e_j|^2 = N S                            mean = 2 S / (N - 1)
    sum_{i,j} |e_i - f_j|^2 = M S + N T + N M |m - k|^2      mean = S / N + T / M + |m - k|^2

This is exact. Means and sums of squares of batches are merged (Chan, Golub and LeVeque, 1983), in float64, so near
duplicates do not cancel.

The mean is a U-statistic (Hoeffding, 1948): an unbiased estimate of the mean over the population that the images are
drawn from, independently of each other. Its standard error is the delete-one jackknife's (Arvesen, 1969). Without image
i the mean is (N mean - 2 g_i) / (N - 2), where g_i is the mean distance of image i to the others; for two sets it is
(N mean - g_i) / (N - 1), where g_i is the mean distance to all of the other set. So

    SE^2 = 4 (N - 1) / (N (N - 2)^2) sum_i (g_i - mean)^2
    SE^2 = 1 / (N (N - 1)) sum_i (g_i - mean)^2 + 1 / (M (M - 1)) sum_j (h_j - mean)^2

On average the jackknife is not below the true variance (Efron and Stein, 1981).

The g_i follow from the distances |e_i - m|^2, or |e_i - k|^2 for two sets:

    g_i = (N |e_i - m|^2 + S) / (N - 1)         g_i = |e_i - k|^2 + T / M

m is known only when all images are seen. So of each image its sketch s_i is kept, a map as linear as the mean; and the
exact distance to the mean b of its batch, which tells most of the sketch's error:

    |e_i - m|^2 ~ |s_i - s(m)|^2 + |e_i - b|^2 - |s_i - s(b)|^2

What error is left adds to the variance of the g_i on average: the standard error is rather too large than too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_fast._checks import checked_count
from lpips_fast.head.operators import Norm
from lpips_fast.pairwise import (
    Distance,
    Images,
    batches_of_taps,
    checked_weights,
    common_size,
    empty_embeddings,
    parts_of,
    widest_dtype,
    write_embeddings,
)
from lpips_fast.sketch import LENGTH, Sketch, sketch_taps


class MeanDistance(NamedTuple):
    """The mean distance of pairs of images, and how far it may be from that of the population."""

    mean: float
    standard_error: float  # NaN if there are too few images to tell
    pairs: int  # how many pairs the mean is over


def mean_distance(
    fn: Distance, x: Images, y: Images | None = None, *, normalize: bool = False, sketch: int = LENGTH
) -> MeanDistance:
    """The mean of the distances of all pairs of different images of x, or of each image of x to each of y.

    The mean is exact, as that of `pairwise`. Its standard error is that of an estimate for the population that the
    images were drawn from, independently of each other: by the delete-one jackknife for U-statistics (Arvesen, 1969),
    from sketches.

    Each image goes through the trunk once. The memory of fn's device holds a few vectors of D float64 numbers (see
    `embed`), all sketches, and a small batch in the trunk.

    Args:
        fn: the distance.
        x: images [N, 3, H, W] in [-1, 1], on any device, or a sequence whose slices are such tensors.
        y: images [M, 3, H, W] of the same height and width, or such a sequence, or None for x itself.
        normalize: whether the images are in [0, 1]; they are then mapped to [-1, 1].
        sketch: the length m of the sketches, m float32 numbers an image. The standard error is computed from them.
            Their errors make it larger on average.

    Returns:
        The mean, its standard error, and the number of pairs: N (N - 1) / 2, or N M with y. The standard error is NaN
        with fewer than 3 images of x; with y, with fewer than 2 of x or of y.

    Raises:
        TypeError, ValueError: as `LPIPS.forward`, or there is no pair, or a sketch below 1, or a linear weight is
            negative.
    """
    wanted = Sketch(checked_count("sketch", sketch, "a length"))
    size = common_size(x, y)
    if y is None and len(x) < 2:
        raise ValueError(f"x must be at least 2 images, which make a pair, got {len(x)}")
    if y is not None and not (len(x) and len(y)):
        raise ValueError(f"x and y must be at least 1 image each, got {len(x)} and {len(y)}")
    of_x = sampled(fn, "x", x, size, normalize, wanted)
    return of_x.mean_distance() if y is None else of_x.mean_distance_to(sampled(fn, "y", y, size, normalize, wanted))


class Sample:
    """What the mean distance needs to know of a set of images. Samples can be merged, and sent to other processes.

    Attributes:
        count: N.
        mean: m, [D].
        squares: S, [].
        sketches: s_i of each batch.
        corrections: |e_i - b|^2 - |s_i - s(b)|^2 of each batch.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())
        self.sketches: list[Tensor] = []
        self.corrections: list[Tensor] = []

    def merge(self, other: Sample) -> None:
        """Adds the images of another sample. The order of merges counts in the last digits."""
        shift = other.mean - self.mean
        share = other.count / max(1, self.count + other.count)
        self.squares = self.squares + other.squares + self.count * share * shift.square().sum()
        self.mean = torch.add(self.mean, shift, alpha=share)
        self.count += other.count
        self.sketches += other.sketches
        self.corrections += other.corrections

    def mean_distance(self) -> MeanDistance:
        """Of all pairs of different images, of which there are at least 2."""
        n = self.count
        g = (n * self._distances_to(self) + self.squares) / (n - 1)
        variance = 4 * (n - 1) ** 2 / (n - 2) ** 2 * _variance_of_mean(g) if n > 2 else math.nan
        return MeanDistance(2 * self.squares.item() / (n - 1), math.sqrt(variance), n * (n - 1) // 2)

    def mean_distance_to(self, other: Sample) -> MeanDistance:
        """Of all pairs of an image of this and one of the other sample; each has at least 1."""
        mean = self.squares / self.count + other.squares / other.count + (self.mean - other.mean).square().sum()
        # The terms T / M and S / N of g and h are the same for all images.
        variance = _variance_of_mean(self._distances_to(other)) + _variance_of_mean(other._distances_to(self))
        return MeanDistance(mean.item(), math.sqrt(variance), self.count * other.count)

    def _distances_to(self, other: Sample) -> Tensor:
        """The squared distance of each image to the mean of a sample, from the sketches."""
        center = sum(s.sum(dim=0, dtype=torch.float64) for s in other.sketches) / other.count
        return torch.cat([(s - center).square().sum(dim=1) for s in self.sketches]) + torch.cat(self.corrections)


@torch.no_grad()
def sampled(fn: Distance, name: str, x: Images, size: torch.Size, normalize: bool, sketch: Sketch) -> Sample:
    """The sample of the images of x, at least one, whose height and width are `size`; errors call x `name`.

    It is on the CPU, whatever fn's device is. It is moved there at the end: the device is not waited for before.
    """
    weights = checked_weights(fn)
    sample = Sample()
    for _, taps in batches_of_taps(fn, name, x, slice(0, len(x)), size, normalize):
        sample.merge(_sample_of_batch(sketch, taps, weights, fn.norm))
    sample.mean, sample.squares = sample.mean.cpu().double(), sample.squares.cpu().double()
    sample.sketches = [s.cpu() for s in sample.sketches]
    sample.corrections = [c.cpu().double() for c in sample.corrections]
    return sample


def _sample_of_batch(sketch: Sketch, taps: Sequence[Tensor], weights: Sequence[Tensor] | None, norm: Norm) -> Sample:
    """The sample of the images with such taps, on their device."""
    e = empty_embeddings(len(taps[0]), taps)
    write_embeddings(e, taps, weights, norm)
    s = sketch_taps(sketch, taps, weights, norm)
    sample = Sample()
    sample.count = len(e)
    sample.mean, squares = _mean_and_squares(e)
    sample.squares = squares.sum()
    sample.sketches = [s]
    sample.corrections = [squares - _mean_and_squares(s)[1]]
    return sample


def _mean_and_squares(e: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [D] of rows [n, D], and the squared distance [n] of each row to it."""
    wide = widest_dtype(e.device)
    mean = e.new_empty(e.shape[1], dtype=wide)
    squares = e.new_zeros(len(e), dtype=wide)
    for part in parts_of(e):
        values = e[:, part].to(wide)
        mean[part] = values.mean(dim=0)
        squares += (values - mean[part]).square_().sum(dim=1)
    return mean, squares


def _variance_of_mean(values: Tensor) -> float:
    """The variance of the mean of independent values, NaN for one value."""
    return values.var().item() / len(values) if len(values) > 1 else math.nan
