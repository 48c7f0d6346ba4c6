"""Videos as batches of frames."""

from __future__ import annotations

import torch
from torch import Tensor


def flatten_videos(
    in0: Tensor, in1: object, weight: Tensor | None, frames: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int]]:
    """Videos [B, C, T, H, W] as frames [B * T, C, H, W], with weights alike, and (B, T).

    With `frames`, that many frames of each clip, picked at random without repetition, the same of both videos and of
    their weights, in their order.
    """
    if in0.shape[1] not in (1, 3):
        raise ValueError(f"in0 must be videos [B, 3, T, H, W], or [B, 1, T, H, W] grayscale, got {list(in0.shape)}")
    if not isinstance(in1, Tensor) or in1.dim() != 5 or in1.shape[0] != in0.shape[0] or in1.shape[2:] != in0.shape[2:]:
        given = list(in1.shape) if isinstance(in1, Tensor) else type(in1).__name__
        raise ValueError(f"in1 must be videos as in0 is, {list(in0.shape)}, got {given}")
    clips, _, length, height, width = in0.shape
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != (clips, 1, length, height, width)):
        given = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be {[clips, 1, length, height, width]}, got {given}")
    videos = [in0, in1] if weight is None else [in0, in1, weight]
    if frames is not None:
        if type(frames) is not int or not 1 <= frames <= length:  # True is an int, too
            raise ValueError(f"frames must be a whole number from 1 to the videos' length, {length}, got {frames!r}")
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        device = in0.device if generator is None else generator.device
        order = torch.rand(clips, length, device=device, generator=generator).argsort(dim=1)
        picked = order[:, :frames].sort(dim=1).values.to(in0.device, non_blocking=True)
        clip = torch.arange(clips, device=in0.device)[:, None]
        videos = [v.movedim(2, 1)[clip, picked].movedim(1, 2) for v in videos]
        length = frames
    flat = [v.movedim(2, 1).flatten(0, 1) for v in videos]
    return flat[0], flat[1], flat[2] if weight is not None else None, (clips, length)
