"""Checks of what is compared: pairs of images or features, and weights of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from lpips_fast._torch_state import as_plain_tensor
from lpips_fast.distance.compare import Side, batch_of


def shape_of(x: object) -> str:
    """The shape of a tensor, or the type of anything else; for errors."""
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__


def check_pair(in0: Tensor, in1: Side, names: str = "in0 and in1") -> None:
    """Raises an error that names the arguments, unless the images fit together."""
    if isinstance(in1, Tensor):
        if in0.shape[2:] != in1.shape[2:]:
            raise ValueError(f"{names} must have one size, got {list(in0.shape[2:])} and {list(in1.shape[2:])}")
    if batch_of(in0) != batch_of(in1) and 1 not in (batch_of(in0), batch_of(in1)):
        raise ValueError(f"{names} must have one batch size, or 1, got {batch_of(in0)} and {batch_of(in1)}")


def checked_pixel_weight(weight: Tensor, n: int, x: Tensor) -> Tensor:
    """The weights of the pixels of images x, as [n, 1, H, W]."""
    height, width = x.shape[2:]
    if isinstance(weight, Tensor):
        weight = as_plain_tensor(weight)
        weight = weight[(None,) * (4 - weight.dim())] if weight.dim() in (2, 3) else weight
    if not isinstance(weight, Tensor) or weight.shape not in ((n, 1, height, width), (1, 1, height, width)):
        raise ValueError(f"weight must be {[n, 1, height, width]}, one number a pixel, got {shape_of(weight)}")
    if weight.layout != torch.strided or weight.is_complex():
        raise TypeError(f"weight must be a dense tensor of real numbers, got {weight.dtype}, {weight.layout}")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, the images on {x.device}: move one with .to()")
    return weight if weight.shape[0] == n else weight.expand(n, -1, -1, -1)
