"""LPIPS as geometry: embeddings of images, and the distances of all pairs.

With a_l(x) the trunk's features at tap l divided by their norm over channels, [C_l, H_l, W_l], and

    e(x) = concat_l sqrt(w_l / (H_l W_l)) a_l(x)

LPIPS(x, y) = |e(x) - e(y)|^2 if all linear weights w are >= 0, as the published ones are. So the distances of N images
to M others cost N + M runs of the trunk, not 2 N M, and one matrix product:

    |e(x) - e(y)|^2 = |e(x)|^2 + |e(y)|^2 - 2 e(x).e(y)

The product form cancels: its error is some 1e-7 of |e(x)|^2 + |e(y)|^2, however small the distance. So distances below
1e-3 of that sum are computed again from the difference e(x) - e(y), and are as accurate as `LPIPS.forward`. With the
published weights the sum is about 1. The threshold is relative, so it holds for vectors and weights of any scale.

Where estimates will do, sketches (see `sketch`) take the place of the embeddings in all this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lpips_fast._checks import checked_count
from lpips_fast.distance.compare import Features
from lpips_fast.head.operators import Norm, accumulation_dtype
from lpips_fast.head.reference import normalize_channels
from lpips_fast.sketch import Sketch, sketch_taps
from lpips_fast.trunk.convolution import conv2d

NEAR = 1e-3  # below this share of |e|^2 + |f|^2, a distance is computed from the difference

_BLOCK_BYTES = 2**29  # size of the embeddings of a block, if the caller gives no block
_PART = 8192  # values of an embedding in one matrix product
_FILLED_IMAGES, _FILLED_PIXELS = 8, 2**16  # of a batch on the CPU, at least: the first of the two that is reached
_BATCH_PIXELS = 2**19  # pixels of the images that go through the trunk at once


class Distance(Protocol):
    """What this module needs of a distance. `lpips_fast.LPIPS` has it."""

    @property
    def norm(self) -> Norm:
        """What features are divided by."""

    @property
    def values_per_pixel(self) -> int:
        """How many values the taps have for each pixel of an image, rounded up."""

    def own_tensor(self) -> Tensor:
        """A tensor on the distance's device and of its type."""

    def checked_image(self, name: str, image: Tensor, /) -> Tensor:
        """The images as `features` takes them, or an error that names them."""

    def features(self, x: Tensor, normalize: bool, /) -> Features:
        """The taps of checked images [N, 3, H, W]."""

    def linear_weights(self) -> Sequence[Tensor] | None:
        """A [1, C_k, 1, 1] a layer, or None if channels are summed without weights."""

    def is_squared_distance(self) -> bool:
        """Whether distances are squared distances of vectors, if no linear weight is negative."""


class Images(Protocol):
    """A tensor of images [N, 3, H, W], or any sequence whose slices are such tensors, read only when needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Tensor: ...


@torch.no_grad()
def embed(fn: Distance, x: Images, *, normalize: bool = False) -> Tensor:
    """The vectors e(x) whose squared Euclidean distances are LPIPS: |e(x) - e(y)|^2 = LPIPS(x, y).

    Not differentiable. Dropout and `spatial` have no effect.

    Args:
        fn: the distance.
        x: images [N, 3, H, W] in [-1, 1], on any device, or a sequence whose slices are such tensors.
        normalize: whether the images are in [0, 1]; they are then mapped to [-1, 1].

    Returns:
        [N, D] in float32 (float64 for float64) on fn's device, D = sum_l C_l H_l W_l: for images of 64 x 64 pixels
        31,872 (alex), 118,976 (squeeze) or 499,712 (vgg, 122 a pixel).

    Raises:
        TypeError, ValueError: as `LPIPS.forward`, or a linear weight is negative.
    """
    size = _size("x", x)
    return embed_rows(fn, "x", x, slice(0, len(x)), size, normalize)


@torch.no_grad()
def pairwise(
    fn: Distance,
    x: Images,
    y: Images | None = None,
    *,
    block: int | None = None,
    normalize: bool = False,
    sketch: int | None = None,
) -> Tensor:
    """The distance of every image of x to every image of y, or to every image of x.

    Not differentiable. Dropout and `spatial` have no effect. For the mean of all distances of very many images there is
    `lpips_fast.diversity.mean_distance`.

    Args:
        fn: the distance.
        x: images [N, 3, H, W] in [-1, 1], on any device, or a sequence whose slices are such tensors.
        y: images [M, 3, H, W] of the same height and width, or such a sequence, or None for x itself.
        block: how many images form a block. Two blocks of embeddings are in memory, one for the rows of the result and
            one for the columns: 2 * block embeddings (see `embed`), and a small batch in the trunk. With up to two
            blocks the trunk runs once for each image; with K blocks of x it runs about K / 2 times. None takes blocks
            of 512 MiB.
        normalize: whether the images are in [0, 1]; they are then mapped to [-1, 1].
        sketch: None for the distances, or a length m for estimates of them, from a sketch of m numbers an image
            (`lpips_fast.sketch`). The standard deviation of an estimate is at most sqrt(2 / m) of the distance, however
            small: 4.4 % with 1024. Each image goes through the trunk once. In memory are all sketches, m float32
            numbers an image, the result, and a small batch in the trunk.

    Returns:
        [N, M] in float32 (float64 for float64) on fn's device. No value is negative. Without y the result is [N, N] and
        symmetric, with a diagonal of exactly 0.

    Raises:
        TypeError, ValueError: as `LPIPS.forward`, or a block or a sketch below 1, or both are given, or a linear weight
            is negative.
    """
    if sketch is not None:
        if block is not None:
            raise ValueError(f"block must be None with a sketch, which needs no blocks, got {block!r}")
        length = checked_count("sketch", sketch, "None or a length")
        size = common_size(x, y)
        e = sketch_rows(fn, "x", x, size, normalize, Sketch(length))
        return squared_distances(e, e if y is None else sketch_rows(fn, "y", y, size, normalize, Sketch(length)))
    tiles = pairwise_tiles(fn, x, y, block=block, normalize=normalize)  # checks the arguments
    own = fn.own_tensor()
    distances = torch.zeros(len(x), len(x if y is None else y), dtype=accumulation_dtype(own.dtype), device=own.device)
    for rows, columns, tile in tiles:
        distances[rows, columns] = tile
        if y is None and rows != columns:
            distances[columns, rows] = tile.T
    return distances


def pairwise_tiles(
    fn: Distance, x: Images, y: Images | None = None, *, block: int | None = None, normalize: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The result of `pairwise` tile by tile, as each is computed: for matrices too large for memory, or a progress bar.

    It takes the arguments of `pairwise`, and raises the same errors.

    Yields:
        The rows and the columns of a tile of the result, and its values; without y, only of the tiles on and above the
        diagonal.
    """
    if block is not None:
        block = checked_count("block", block, "None or a number of images")
    size = common_size(x, y)
    return _tiles(fn, (x,) if y is None else (x, y), block or _default_block(fn, size.numel()), size, normalize)


@torch.no_grad()
def _tiles(
    fn: Distance, sides: Sequence[Images], block: int, size: torch.Size, normalize: bool
) -> Iterator[tuple[slice, slice, Tensor]]:
    blocks = [[slice(i, min(i + block, len(side))) for i in range(0, len(side), block)] for side in sides]
    held: dict[tuple[int, int], Tensor] = {}
    for i, j in _tile_order(len(blocks[0]), None if len(sides) == 1 else len(blocks[1])):
        keys = (0, i), (len(sides) - 1, j)
        held = {key: held[key] for key in keys if key in held}
        for side, k in keys:
            if (side, k) not in held:
                held[side, k] = embed_rows(fn, "xy"[side], sides[side], blocks[side][k], size, normalize)
        yield blocks[0][i], blocks[-1][j], squared_distances(held[keys[0]], held[keys[1]])


def _tile_order(n_rows: int, n_columns: int | None) -> Iterator[tuple[int, int]]:
    """All tiles, or the upper triangle if n_columns is None; each shares a block with the tile before it."""
    for i in range(n_rows):
        if n_columns is None:
            yield i, i  # shares the column of the tile before it
            yield from ((i, j) for j in reversed(range(i + 1, n_rows)))
        else:
            yield from ((i, j) for j in (range(n_columns) if i % 2 == 0 else reversed(range(n_columns))))


def images_at(name: str, x: Images, rows: slice) -> Tensor:
    """x[rows]; an error that names the argument if x holds no images, or if the slice has another number of them."""
    sliceable = hasattr(x, "__len__") and hasattr(x, "__getitem__") and not isinstance(x, Mapping)
    images: object = x
    if sliceable and getattr(x, "ndim", 4) == 4:  # else x itself is refused below
        rows = slice(*rows.indices(len(x))[:2])
        images = x[rows]
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{name} must be a tensor [N, 3, H, W], or something whose slices are such, got {type(x).__name__}"
        )
    if images.dim() != 4:
        raise ValueError(f"{name} must be [N, 3, H, W], or [N, 1, H, W] grayscale, got {list(images.shape)}")
    if len(images) != (count := rows.stop - rows.start):
        raise ValueError(
            f"{name}[{rows.start}:{rows.stop}] must be [{count}, 3, H, W], for {name} has length {len(x)}, "
            f"got {list(images.shape)}"
        )
    return images


def common_size(x: Images, y: Images | None) -> torch.Size:
    """Height and width of the images of x, and of y if there are any; a ValueError if they differ."""
    size = _size("x", x)
    if y is not None and (size_y := _size("y", y)) != size and len(x) and len(y):
        raise ValueError(f"x and y must be of one size, got {list(size)} and {list(size_y)}")
    return size


def _size(name: str, x: Images) -> torch.Size:
    """Height and width."""
    return images_at(name, x, slice(0, 1)).shape[2:]


def images_at_once(pixels: int) -> int:
    """How many images of that many pixels go through the trunk together, at most."""
    return max(1, _BATCH_PIXELS // max(1, pixels))


def _default_block(fn: Distance, pixels: int) -> int:
    values = fn.values_per_pixel * pixels
    return max(1, _BLOCK_BYTES // max(1, values * accumulation_dtype(fn.own_tensor().dtype).itemsize))


def squared_distances(e: Tensor, f: Tensor) -> Tensor:
    """|e_i - f_j|^2 [n, m] of the rows of e [n, D] and f [m, D], accurate however small; symmetric if e is f."""
    distances, lengths = product_distances(e, f)
    if e is f:
        distances.triu_(1)
    near = distances < NEAR * lengths
    if e is f:
        near.triu_(1)
    distances = distances.to(e.dtype)
    for i in near.any(dim=1).nonzero()[:, 0].tolist():
        columns = near[i].nonzero()[:, 0]
        distances[i, columns] = direct_distances(e[i], f, columns)
    return distances + distances.T if e is f else distances


def product_distances(e: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """|e_i - f_j|^2 by matrix products, and |e_i|^2 + |f_j|^2, which its error is relative to: both [n, m]."""
    wide = widest_dtype(e.device)
    distances, lengths = e.new_zeros(2, len(e), len(f), dtype=wide)
    with torch.autocast(e.device.type, enabled=False):
        for part in parts_of(e):
            e_part, f_part = e[:, part], f[:, part]
            distances -= 2 * product(e_part, f_part)
            lengths += e_part.square().sum(dim=1)[:, None].to(wide) + f_part.square().sum(dim=1).to(wide)
    return distances.add_(lengths), lengths


def product_rounding(terms: int = _PART) -> float:
    """The error to expect of a float32 sum of that many terms, relative to the sum of their absolute values.

    Each addition rounds by up to eps / 2 of the partial sum, at random. The errors of terms added one by one come to
    eps sqrt(terms) / 6. Libraries add in blocks, and stay below a quarter of this value.
    """
    return torch.finfo(torch.float32).eps * math.sqrt(terms) / 6


def direct_distances(e: Tensor, f: Tensor, rows: Tensor) -> Tensor:
    """|e - f_j|^2 of one vector e [D] and the given rows of f [m, D], from the differences.

    If f is stored in a shorter type, its rounding adds to a distance. Let r be e rounded to that type. On average the
    rounding of f adds |e - r|^2, which is subtracted, value by value. The distance is then exactly 0 if f_j is r, and
    never negative, since no value of that type is nearer to e than r.
    """
    distances = e.new_zeros(len(rows), dtype=widest_dtype(e.device))
    rounding = None if f.dtype == e.dtype else e.to(f.dtype).to(e.dtype).sub_(e).square_()
    for part in parts_of(f):
        squares = f[:, part].index_select(0, rows).to(e.dtype).sub_(e[part]).square_()
        if rounding is not None:
            squares -= rounding[part]
        distances += squares.sum(dim=1)
    return distances.to(e.dtype)


def widest_dtype(device: torch.device) -> torch.dtype:
    """The type for sums of many float32 values: float64, but float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def parts_of(e: Tensor) -> Iterator[slice]:
    """The columns in parts: one float32 product over all columns is less exact than a sum of shorter ones."""
    return (slice(k, k + _PART) for k in range(0, e.shape[1], _PART))


def embed_rows(fn: Distance, name: str, x: Images, rows: slice, size: torch.Size, normalize: bool) -> Tensor:
    """e(x[rows]) of images whose height and width are `size`; errors call x `name`."""
    weights = checked_weights(fn)
    embeddings: Tensor | None = None
    for part, taps in batches_of_taps(fn, name, x, rows, size, normalize):
        if embeddings is None:
            embeddings = empty_embeddings(rows.stop - rows.start, taps)
        write_embeddings(embeddings[part], taps, weights, fn.norm)
    assert embeddings is not None
    return embeddings


def sketch_rows(fn: Distance, name: str, x: Images, size: torch.Size, normalize: bool, sketch: Sketch) -> Tensor:
    """The sketches [N, m] of e(x), as `embed_rows` otherwise; no embedding is ever in memory."""
    weights = checked_weights(fn)
    batches = batches_of_taps(fn, name, x, slice(0, len(x)), size, normalize)
    return torch.cat([sketch_taps(sketch, taps, weights, fn.norm) for _, taps in batches])


def checked_weights(fn: Distance) -> Sequence[Tensor] | None:
    """fn's linear weights; a ValueError if fn is no squared distance of vectors."""
    if not fn.is_squared_distance():
        raise ValueError(
            "linear layers were changed or hooked, or distance is 'mae', so that distances are no squared distances of "
            "vectors: compare the images by pairs, with forward"
        )
    weights = fn.linear_weights()
    for layer, weight in enumerate(weights or []):
        if (weight < 0).any():
            raise ValueError(
                f"layer {layer}'s linear weights have negative values (down to {weight.min():.3g}), with which "
                "distances are no squared distances of vectors: compare the images by pairs, with forward"
            )
    return weights


def batches_of_taps(
    fn: Distance, name: str, x: Images, rows: slice, size: torch.Size, normalize: bool
) -> Iterator[tuple[slice, Sequence[Tensor]]]:
    """The taps of x[rows], some images at a time: where in `rows` they stand, and the taps. Errors call x `name`.

    The first batch comes also without images, to tell the sizes of the taps.

    Few small images are filled up with copies of the last one. For them the CPU's trunk would take other algorithms,
    which round differently, and the same image would have other taps alone than among others.
    """
    batch = images_at_once(size.numel())
    least = min(_FILLED_IMAGES, -(-_FILLED_PIXELS // max(1, size.numel())))
    for start in range(rows.start, max(rows.stop, rows.start + 1), batch):
        stop = min(start + batch, rows.stop)
        images = images_at(name, x, slice(start, stop))
        if images.shape[2:] != size:
            raise ValueError(f"{name} must be of one size, got {list(size)} and {list(images.shape[2:])}")
        images = fn.checked_image(name, images.to(fn.own_tensor().device))
        if 0 < len(images) < least and images.device.type == "cpu":
            images = torch.cat((images, images[-1:].expand(least - len(images), -1, -1, -1)))
        taps = [tap[: stop - start] for tap in fn.features(images, normalize).taps]
        yield slice(start - rows.start, stop - rows.start), taps


def empty_embeddings(n: int, taps: Sequence[Tensor]) -> Tensor:
    """Room for the embeddings [n, D] of images with such taps."""
    length = sum(f.shape[1:].numel() for f in taps)
    return torch.empty(n, length, dtype=accumulation_dtype(taps[0].dtype), device=taps[0].device)


def write_embeddings(embeddings: Tensor, taps: Sequence[Tensor], weights: Sequence[Tensor] | None, norm: Norm) -> None:
    """Writes the taps as embeddings [N, D], layer by layer."""
    at = 0
    for layer, f in enumerate(taps):
        weight = f.new_ones(f.shape[1]) if weights is None else weights[layer].flatten()
        scale = (weight.to(embeddings.dtype) / f.shape[2:].numel()).sqrt()
        size = f.shape[1:].numel()
        part = embeddings[:, at : at + size].unflatten(1, f.shape[1:])
        torch.mul(normalize_channels(f, norm), scale.view(-1, 1, 1), out=part)
        at += size


def product(e: Tensor, f: Tensor) -> Tensor:
    """e f^T of matrices in full float32: cancellation would magnify the rounding of TF32 and bfloat16.

    If torch's flags allow these, another product is used. The flags stay as they are: they belong to the whole process.
    """
    if not _rounds_products(e.device):
        return e @ f.T
    if e.device.type == "cuda":
        return conv2d(e[:, :, None, None], f[:, :, None, None], None, 1, 0, tf32=False)[:, :, 0, 0]
    wide = widest_dtype(e.device)
    return e.to(wide) @ f.to(wide).T


def _rounds_products(device: torch.device) -> bool:
    """Whether torch, with its present flags, rounds the factors of float32 products."""
    flags = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    precision = flags.fp32_precision
    if precision == "tf32" and device.type == "cpu":
        return torch.cpu._is_amx_fp16_supported()  # other CPUs have no TF32
    return precision not in ("none", "ieee")
