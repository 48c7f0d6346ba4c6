"""The scaling of images before the trunk: as a layer, and as the two tensors that the fused trunk takes instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lpips_fast.trunk.nets import SCALE, SHIFT
from lpips_fast.trunk.program import Affine


class ScalingLayer(nn.Module):
    """(x - shift) / scale by channel: from [-1, 1] to the statistics that the trunks were trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, inp: Tensor) -> Tensor:
        return (inp - self.shift) / self.scale


def affine(layer: ScalingLayer, version: str, normalize: bool) -> Affine:
    """Shift and scale of (x - shift) / scale, for images in [0, 1] if `normalize`; (None, None) for no scaling at all.

    Version 0.0 of LPIPS does not scale: its release left the scaling out.
    """
    shift, scale = layer.shift, layer.scale
    if version == "0.0":
        if not normalize:
            return None, None
        shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
    return ((shift + 1) / 2, scale / 2) if normalize else (shift, scale)
