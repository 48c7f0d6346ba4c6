"""One chunk of pairs, from the trunk's taps to each layer's part of the distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lpips_fast.distance.pixel_weights import weighted_mean
from lpips_fast.head.autograd import head, head_maps
from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import normalize_channels


class Features(NamedTuple):
    """What `LPIPS.features` gives: an image's features, to be compared with again and again."""

    taps: tuple[Tensor, ...]
    net: str
    version: str
    size: tuple[int, int]  # height and width of the image


Side = Tensor | Sequence[Tensor]  # one side of the pairs: images [N, 3, H, W], or their taps [N, C_l, H_l, W_l]


def batch_of(x: Side) -> int:
    return x.shape[0] if isinstance(x, Tensor) else x[0].shape[0]


class Comparison(NamedTuple):
    """How taps become a distance: the same for every chunk."""

    backend: str  # of the head
    norm: Norm
    linear: Sequence[Tensor] | None  # the linear weights, C_l values a layer in any shape; None if all are 1
    dropouts: Sequence[nn.Module] = ()  # applied to the squared differences, one a layer; empty without dropout
    spatial: bool = False  # whether the result is a map


def compare(
    how: Comparison, inputs: HeadInput, shares: Sequence[Tensor] | None, size: Sequence[int], per_layer: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The distance of k pairs, [k, 1, 1, 1], or [k, 1, H, W] if `how.spatial`; and each layer's part if asked for.

    Args:
        shares: each tap pixel's share in the mean over pixels (pixel_weights.shares); None for the plain mean.
        size: height and width of the maps.
    """
    if how.spatial or how.dropouts or shares is not None:
        maps = _maps_with_dropout(inputs, how.dropouts) if how.dropouts else head_maps(how.backend, inputs)
        parts = parts_of_maps(maps, shares, size if how.spatial else None)
        return sum(parts[1:], parts[0]), parts if per_layer else []
    distances = head(how.backend, inputs)
    parts = [d.view(-1, 1, 1, 1) for d in distances.unbind(dim=1)] if per_layer else []
    return distances.sum(dim=1).view(-1, 1, 1, 1), parts


def parts_of_maps(maps: Sequence[Tensor], shares: Sequence[Tensor] | None, size: Sequence[int] | None) -> list[Tensor]:
    """Each layer's part: its map [k, 1, H_l, W_l] enlarged to `size` or, without a size, its mean [k, 1, 1, 1]."""
    if size is not None:
        return [upsample(m, size) for m in maps]
    if shares is None:
        return [spatial_average(m) for m in maps]
    return [d.view(-1, 1, 1, 1) for d in weighted_mean(maps, shares).unbind(dim=1)]


def _maps_with_dropout(inputs: HeadInput, dropouts: Sequence[nn.Module]) -> list[Tensor]:
    """Each layer's map. Dropout applies to the squared differences, which the fused head never has in memory."""
    maps = []
    for f0, f1, weight, dropout in zip(inputs.feats0, inputs.feats1, inputs.weights, dropouts, strict=True):
        # A batch of 1 that stands for all is normalized once.
        a, b = (normalize_channels(f[:1] if f.stride(0) == 0 else f, inputs.norm) for f in (f0, f1))
        maps.append((weight.view(1, -1, 1, 1) * dropout((a - b) ** 2)).sum(dim=1, keepdim=True))
    return maps


def normalize_tensor(in_feat: Tensor, eps: float = Norm().eps) -> Tensor:
    """Features [N, C, H, W] divided by their norm over channels plus eps; where the norm is 0, 0 with gradient 0."""
    return normalize_channels(in_feat, Norm(eps)).to(in_feat.dtype)


def spatial_average(in_tens: Tensor, keepdim: bool = True) -> Tensor:
    """The mean over height and width of [N, C, H, W]."""
    return in_tens.mean(dim=(2, 3), keepdim=keepdim)


def upsample(in_tens: Tensor, out_HW: Sequence[int] = (64, 64)) -> Tensor:
    """[N, C, h, w] resized bilinearly to [N, C, *out_HW], corners not aligned."""
    return nn.functional.interpolate(in_tens, size=tuple(out_HW), mode="bilinear", align_corners=False)
