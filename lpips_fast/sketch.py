"""Sketches: a few hundred numbers of an image, whose squared distances estimate LPIPS.

LPIPS(x, y) = |u(x) - u(y)|^2, where u(x) has the coordinates of the embedding e(x) (see `pairwise`) in the order layer,
pixel, channel:

    u_j = sqrt(w_l,c / P_l) a_l,c,p       j = sum_{k<l} P_k C_k + p C_l + c,   P_l pixels and C_l channels at tap l

A count sketch of length m adds each coordinate, with a random sign, into one of m buckets (Charikar, Chen and
Farach-Colton, 2002; as a map that keeps distances: Weinberger et al., 2009):

    s_b(x) = sum_{j: h(j) = b} sigma_j u_j

For any two images E |s(x) - s(y)|^2 = |u(x) - u(y)|^2, and the standard deviation is at most sqrt(2 / m) of it: 4.4 %
with m = 1024, however near the images. It is the spread over signs and buckets, which are the same for all images.

The usual buckets are independent for each coordinate, which makes a loop of scattered additions. Here a block of m
coordinates next to each other goes to all m buckets, turned by an offset o_r of the block's own:

    h(j) = (j + o_r) mod m,   r = floor(j / m)

So a sketch is a sum of turned blocks, a loop over adjacent values. Two coordinates of a block never collide, two of
different blocks collide with probability 1 / m, and the signs are independent. That is all that expectation and bound
need.

Signs and offsets come from the raw numbers of NumPy's Philox generator, which NumPy keeps the same in all releases, the
seed as key. So sketches of different machines and versions can be compared.

Sums are float32, or float64 for float64 features, in a fixed order.

The compiled library has two operators for the CPU. The other images of a batch, other queries and rows, and the number
of threads change no bit of a result.

  * sketch_cpu: the sketches, float32 [N, m], of taps [N, C_l, H_l, W_l], dense and channels-last, all float32, float16
    or bfloat16. scales[l] are sqrt(w_l,c / P_l), float32 [C_l]. Signs and offsets are those of `signs_and_offsets` for
    the values of an image, and length is m. It goes over the taps once, and keeps no embedding. N = 0 and H_l W_l = 0
    are legal.
  * sketch_distances_cpu: `distances`, of dense tensors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lpips_fast._library import define, is_implemented
from lpips_fast.head.operators import Norm, accumulation_dtype
from lpips_fast.head.reference import normalize_channels

LENGTH = 1024  # of a sketch, where nobody asks for another one
_FOLDED_AT_ONCE = 256  # sketches, which stay in a CPU's cache


class Sketch(NamedTuple):
    """Which sketch: its length m, and the seed of its signs and offsets."""

    length: int = LENGTH
    seed: int = 0

    @property
    def spread(self) -> float:
        """The standard deviation of an estimated distance, relative to the distance: an upper bound."""
        return math.sqrt(2 / self.length)


def signs_and_offsets(sketch: Sketch, values: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """sigma, int8 [values] of 1 and -1; and the offset of each block, int64 [ceil(values / m)]."""
    if device.type != "cpu":
        return _tables_on(device, sketch, values)
    signs, offsets = _raw(sketch, values)
    return torch.from_numpy(signs), torch.from_numpy(offsets)


@functools.lru_cache(maxsize=8)
def _tables_on(device: torch.device, sketch: Sketch, values: int) -> tuple[Tensor, Tensor]:
    # A copy to a GPU waits for it, so there is one, and not one for each batch.
    signs, offsets = signs_and_offsets(sketch, values, torch.device("cpu"))
    return signs.to(device), offsets.to(device)


@functools.lru_cache(maxsize=8)
def _raw(sketch: Sketch, values: int) -> tuple[np.ndarray, np.ndarray]:
    # Arrays are kept, not tensors, which may belong to a mode of torch's.
    raw_signs, raw_offsets = (np.random.Philox(key=np.array([sketch.seed, k], np.uint64)) for k in range(2))
    words = raw_signs.random_raw(-(-values // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=values, bitorder="little")
    offsets = raw_offsets.random_raw(-(-values // sketch.length)) % np.uint64(sketch.length)
    return 1 - 2 * bits.astype(np.int8), offsets.astype(np.int64)


@torch.no_grad()
def sketch_taps(sketch: Sketch, taps: Sequence[Tensor], weights: Sequence[Tensor] | None, norm: Norm) -> Tensor:
    """The sketches [N, m] of images, from their taps [N, C_l, H_l, W_l] on any device.

    Args:
        weights: the linear weights, C_l values a layer, none negative; None if all are 1.
        norm: what features are divided by.

    Returns:
        float32, or float64 for float64 taps.
    """
    dtype = accumulation_dtype(taps[0].dtype)
    scales = [_scale(tap, None if weights is None else weights[layer], dtype) for layer, tap in enumerate(taps)]
    if taps[0].device.type == "cpu" and dtype == torch.float32 and is_implemented("sketch_cpu", "CPU"):
        values = sum(tap.shape[1:].numel() for tap in taps)
        signs, offsets = signs_and_offsets(sketch, values, taps[0].device)
        rows = [tap.contiguous(memory_format=torch.channels_last) for tap in taps]
        return torch.ops.lpips_fast.sketch_cpu(rows, scales, norm.eps, norm.inside_sqrt, signs, offsets, sketch.length)
    parts = [normalize_channels(tap, norm).permute(0, 2, 3, 1) * scale for tap, scale in zip(taps, scales)]
    return _turned_sum(sketch, torch.cat([part.flatten(1) for part in parts], dim=1))


@torch.no_grad()
def sketch_embeddings(sketch: Sketch, embeddings: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
    """The sketches [N, m] of embeddings [N, D] as `pairwise.embed` gives them, times any factor.

    Args:
        shapes: C_l, H_l and W_l of each tap.

    Returns:
        float32, or float64 for float64 embeddings.
    """
    embeddings = embeddings.to(accumulation_dtype(embeddings.dtype))
    planes = embeddings.split([math.prod(shape) for shape in shapes], dim=1)
    rows = [part.unflatten(1, (c, h * w)).mT.flatten(1) for part, (c, h, w) in zip(planes, shapes, strict=True)]
    return _turned_sum(sketch, torch.cat(rows, dim=1))


def distances(queries: Tensor, rows: Tensor) -> Tensor:
    """The squared distances [Q, n] of sketches [Q, m], float32, to sketches [n, m], float16 or float32.

    From the differences, so that small distances are accurate. On the CPU with the compiled library a distance has the
    same bits whatever else is compared with it; elsewhere sums may round in other ways.
    """
    on_cpu = queries.device.type == "cpu" and queries.dtype == torch.float32
    if on_cpu and is_implemented("sketch_distances_cpu", "CPU"):
        return torch.ops.lpips_fast.sketch_distances_cpu(queries.contiguous(), rows.contiguous())
    found, rows = queries.new_empty((len(queries), len(rows))), rows.to(queries)
    for i, query in enumerate(queries):
        found[i] = (rows - query).square().sum(dim=1)
    return found


def fold(sketches: Tensor, length: int) -> Tensor:
    """Sketches of a length that divides m: float32 sums of m / length buckets each, drawn at random.

    They are sketches of the same images with other buckets. Two coordinates of one block may now collide, whatever lies
    between them, with a probability of at most 1 / length, so bound and expectation stay. Sums of neighbouring buckets
    would always join neighbouring channels of a pixel, and sums of buckets that are equal modulo the length one channel
    at several pixels. Where images differ in few channels, the spread would then exceed its bound.
    """
    buckets = _drawn_buckets(sketches.shape[1], sketches.device)
    drawn = (part.float().gather(1, buckets.expand(len(part), -1)) for part in sketches.split(_FOLDED_AT_ONCE))
    return torch.cat([part.unflatten(1, (-1, length)).sum(dim=1) for part in drawn])


@functools.lru_cache(maxsize=8)
def _drawn_buckets(length: int, device: torch.device) -> Tensor:
    """All buckets, int64 [m], in an order drawn at random."""
    raw = np.random.Philox(key=np.array([0, 2], np.uint64)).random_raw(length)
    return torch.from_numpy(raw.argsort()).to(device)


def _scale(tap: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sqrt(w_l,c / P_l), [C_l]."""
    weight = tap.new_ones(tap.shape[1]) if weight is None else weight.flatten()
    return (weight.to(dtype) / tap.shape[2:].numel()).sqrt()


def _turned_sum(sketch: Sketch, values: Tensor) -> Tensor:
    """The sketches [N, m] of u [N, D]."""
    m, count = sketch.length, values.shape[1]
    signs, offsets = signs_and_offsets(sketch, count, values.device)
    padded = torch.nn.functional.pad(values * signs, (0, len(offsets) * m - count))
    source = (torch.arange(m, device=values.device) - offsets[:, None]) % m  # of each bucket, within its block
    blocks = padded.unflatten(1, (-1, m))
    return blocks.gather(2, source.expand(blocks.shape)).sum(dim=1)


define(
    "sketch_cpu",
    "(Tensor[] taps, Tensor[] scales, float eps, bool eps_inside_sqrt, Tensor signs, Tensor offsets, int length)"
    " -> Tensor",
    lambda taps, scales, eps, eps_inside_sqrt, signs, offsets, length: taps[0].new_empty(
        (taps[0].shape[0], length), dtype=torch.float32
    ),
)
define(
    "sketch_distances_cpu",
    "(Tensor queries, Tensor rows) -> Tensor",
    lambda queries, rows: queries.new_empty((queries.shape[0], rows.shape[0])),
)
