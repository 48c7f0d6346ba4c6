"""Videos as batches of frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LAYOUTS = ("BCTHW", "BTCHW")


def flatten_videos(
    in0: Tensor,
    in1: object,
    weight: Tensor | None,
    frames: int | None,
    layout: str | None,
    generator: torch.Generator | None,
    accepted: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int]]:
    """Turns videos [B, C, T, H, W] and their pixel weights into frames [B * T, C, H, W]; returns (B, T) as well.

    Args:
        in0, in1, weight: the videos, and the weights of their pixels or None.
        frames: how many frames of each clip to take. They are picked at random without repetition, the same in both
            videos and in their weights, and keep their order. None takes all.
        layout: 'BTCHW' if the videos and weights are [B, T, C, H, W]. Without a layout, videos that can be read both
            ways are refused: a wrong guess would give a wrong number without an error.
        generator: the generator of the random numbers; None for torch's own.
        accepted: the numbers of channels that in0 may have; None for any.
    """
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    shape = list(in0.shape)
    if layout is None and accepted is None:
        raise ValueError(
            f"layout must be given for a trunk that takes other channels, 'BCTHW' or 'BTCHW', for in0 {shape}"
        )
    if layout is None and shape[1] in (1, 3) and shape[2] == 3:
        raise ValueError(
            f"in0 {shape} is ambiguous: layout='BCTHW' reads channels={shape[1]}, frames={shape[2]}; "
            f"layout='BTCHW' reads frames={shape[1]}, channels={shape[2]}"
        )
    channels = 2 if layout == "BTCHW" else 1
    if accepted is not None and shape[channels] not in accepted:
        raise ValueError(
            "in0 must be videos [B, 3, T, H, W], or [B, 1, T, H, W] grayscale, or with layout='BTCHW' "
            f"[B, T, 3, H, W] or [B, T, 1, H, W], got {shape}{'' if layout is None else f' with {layout=}'}"
        )
    if not isinstance(in1, Tensor) or in1.dim() != 5 or _without(channels, in1.shape) != _without(channels, shape):
        given = list(in1.shape) if isinstance(in1, Tensor) else type(in1).__name__
        raise ValueError(f"in1 must be videos as in0 is, {shape}, got {given}")
    expected = [1 if i == channels else side for i, side in enumerate(shape)]
    if weight is not None and (not isinstance(weight, Tensor) or list(weight.shape) != expected):
        given = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be {expected}, got {given}")
    clips, length = shape[0], shape[3 - channels]
    videos = [v.movedim(channels, 2) for v in ((in0, in1) if weight is None else (in0, in1, weight))]  # [B, T, C, H, W]
    if frames is not None:
        if type(frames) is not int or not 1 <= frames <= length:  # True is an int, too
            raise ValueError(f"frames must be a whole number from 1 to the videos' length, {length}, got {frames!r}")
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        device = in0.device if generator is None else generator.device
        order = torch.rand(clips, length, device=device, generator=generator).argsort(dim=1)
        picked = order[:, :frames].sort(dim=1).values.to(in0.device, non_blocking=True)
        clip = torch.arange(clips, device=in0.device)[:, None]
        videos = [v[clip, picked] for v in videos]
        length = frames
    flat = [v.flatten(0, 1) for v in videos]
    return flat[0], flat[1], flat[2] if weight is not None else None, (clips, length)


def _without(axis: int, shape: Sequence[int]) -> list[int]:
    return [side for i, side in enumerate(shape) if i != axis]
