"""LPIPS as in piq: of images in [0, 1], with VGG16.

    LPIPS(x, y) = sum_l mean_p sum_c w_lc |a_lc(x) - a_lc(y)|^2      or, with distance 'mae', without the square

a_l: the features of VGG16 at tap l divided by their norm over channels, with an eps of 1e-10 outside the root.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpips_fast import lpips
from lpips_fast._checks import check_choice
from lpips_fast.distance.inputs import check_pair
from lpips_fast.head.reference import normalize_channels
from lpips_fast.weights.formats import rename
from lpips_fast.weights.published import published_linear_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class LPIPS(lpips.LPIPS):
    """LPIPS with VGG16 of images in [0, 1], with piq's signature, its numbers and the 26 keys of its state_dict.

    As in piq, the module moves to the images' device and type. Images in half precision are promoted to its own type.

    Args:
        replace_pooling: average pooling instead of VGG16's maximum pooling. It is slower: the trunk is not fused then.
        distance: 'mse' for squared differences of features, 'mae' for absolute ones (plain torch, slower).
        reduction: 'mean' or 'sum' over the pairs, or 'none' for [N].
        mean: subtracted from the images' channels; [0, 0, 0] for images that are standardised already.
        std: the divisor of the channels after that; [1, 1, 1] for images that are standardised already.
        options: keyword arguments of `lpips_fast.LPIPS`: grad_in_forward, precision, trunk_weights, ...

    Raises:
        ValueError: distance or reduction is unknown, or mean or std is not three numbers.
        TypeError, ValueError, RuntimeError: as `lpips_fast.LPIPS`.
    """

    _RANGE, _FROM_BYTES = "[0, 1]", "/ 255"

    def __init__(
        self,
        replace_pooling: bool = False,
        distance: str = "mse",
        reduction: str = "mean",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        **options: Any,
    ) -> None:
        check_choice("distance", distance, ("mse", "mae"))
        check_choice("reduction", reduction, ("none", "mean", "sum"))
        for name, channels in (("mean", mean), ("std", std)):
            if not isinstance(channels, Iterable) or len(list(channels)) != 3:
                raise ValueError(f"{name} must be three numbers, one a channel, got {channels}")
        if not min(std) > 0:
            raise ValueError(f"std must be above 0, got {std}")
        if (tuple(mean), tuple(std)) != (IMAGENET_MEAN, IMAGENET_STD):
            options.setdefault("check_range", False)  # images may be in any range
        super().__init__(net="vgg", lpips=False, **options)  # the linear weights are no parameters in piq
        self.replace_pooling = replace_pooling
        self.distance = distance
        self.reduction = reduction
        for k, weight in enumerate(published_linear_weights("vgg", "0.1")):
            self.register_buffer(f"weight{k}", weight, persistent=False)
        # The scaling layer gets images in [-1, 1].
        shift, scale = (torch.tensor(channels, dtype=torch.float32).view(1, 3, 1, 1) for channels in (mean, std))
        self.scaling_layer.register_buffer("shift", 2 * shift - 1, persistent=False)
        self.scaling_layer.register_buffer("scale", 2 * scale, persistent=False)
        if replace_pooling:
            for slice_ in self.net.slices[1:]:
                slice_[0] = nn.AvgPool2d(2)
        self.register_state_dict_post_hook(_to_their_names)
        self.register_load_state_dict_pre_hook(_from_their_names)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """The distance of images [N, 3, H, W] in [0, 1]: a number, or [N] with reduction 'none'."""
        self._follow(x, y)
        x, y = self.checked_image("x", x), self.checked_image("y", y)
        check_pair(x, y, "x and y")
        if self.distance == "mae":
            value = self._absolute(x, y)
        else:
            value = super().forward(x, y, normalize=True).flatten()  # type: ignore[union-attr]  # no pair
        return value if self.reduction == "none" else getattr(value, self.reduction)()

    def _follow(self, *images: Tensor) -> None:
        """Moves to the images' device and the wider one of their types, but never to half precision.

        A prediction under autocast is in half precision; weights rounded to half precision would stay rounded.
        """
        given = [image for image in images if isinstance(image, Tensor) and image.is_floating_point()]
        if not given:
            return  # the checks to come refuse these images
        own = self.own_tensor()
        dtype = functools.reduce(torch.promote_types, (image.dtype for image in given))
        dtype = dtype if dtype in (torch.float32, torch.float64) else own.dtype
        if (given[0].device, dtype) != (own.device, own.dtype):
            with torch.inference_mode(False):  # else training could not use the new tensors
                self.to(device=given[0].device, dtype=dtype)

    def _absolute(self, x: Tensor, y: Tensor) -> Tensor:
        taps0, taps1 = (self.features(t, normalize=True).taps for t in (x, y))
        parts = []
        for f0, f1, weight in zip(taps0, taps1, self.linear_weights(), strict=True):
            a, b = (normalize_channels(f, self.norm) for f in (f0, f1))
            parts.append((weight * (a - b).abs()).sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(parts).sum(dim=0)

    def is_squared_distance(self) -> bool:
        return self.distance == "mse" and super().is_squared_distance()

    def linear_weights(self) -> list[Tensor]:
        return [self.get_buffer(f"weight{k}") for k in range(self.L)]


def _their_names(module: LPIPS) -> dict[str, str]:
    """From the beginning of our key to that of piq's: net.slice2.5. to model.5."""
    return {
        f"net.slice{k + 1}.{i}.": f"model.{i}."
        for k, slice_ in enumerate(module.net.slices)
        for i, layer in slice_.named_children()
        if isinstance(layer, nn.Conv2d)
    }


def _to_their_names(module: LPIPS, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    for ours, theirs in _their_names(module).items():
        rename(state, prefix + ours, prefix + theirs)


def _from_their_names(module: LPIPS, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for ours, theirs in _their_names(module).items():
        rename(state, prefix + theirs, prefix + ours)
