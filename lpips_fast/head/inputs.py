"""Features and weights, checked, as the head takes them.

The operators in C++, CUDA and Triton read memory by these shapes, so everything that reaches them goes through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lpips_fast._torch_state import to_dtype
from lpips_fast.head.operators import HeadInput, Norm, accumulation_dtype

FEATURE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def checked_input(
    feats0: Sequence[Tensor], feats1: Sequence[Tensor], weights: Sequence[Tensor] | None, norm: Norm
) -> HeadInput:
    """The operators' input: lists checked and broadcast to one batch, flat weights in the accumulation type.

    Raises:
        TypeError, ValueError: lists, shapes, types or devices that do not fit together; the error names the entry.
    """
    if isinstance(norm.eps, bool) or not isinstance(norm.eps, float | int) or not norm.eps >= 0:
        raise ValueError(f"eps must be a number from 0, got {norm.eps!r}")
    for name, tensors in (("feats0", feats0), ("feats1", feats1), ("weights", () if weights is None else weights)):
        _check_list(name, tensors)
    if not feats0 or len(feats0) != len(feats1):
        raise ValueError(
            f"feats0 and feats1 must have the same number of layers, at least one, got {len(feats0)} and {len(feats1)}"
        )
    if weights is not None and len(weights) != len(feats0):
        raise ValueError(f"weights must have one entry a layer, {len(feats0)}, got {len(weights)}")
    like = feats0[0]
    if like.dtype not in FEATURE_DTYPES:
        accepted = ", ".join(map(str, FEATURE_DTYPES))
        raise TypeError(f"feats0[0] must be of a floating type ({accepted}), got {like.dtype}")
    acc = accumulation_dtype(like.dtype)
    pairs0, pairs1, flat_weights = [], [], []
    for layer, (f0, f1) in enumerate(zip(feats0, feats1, strict=True)):
        _check_pair(layer, f0, f1, like)
        if f0.shape != f1.shape:
            f0, f1 = torch.broadcast_tensors(f0, f1)  # a trace of f0.expand would always expand f0
        pairs0.append(f0)
        pairs1.append(f1)
        if weights is None:
            flat_weights.append(torch.ones(f0.shape[1], dtype=acc, device=f0.device))
        else:
            flat_weights.append(_checked_weight(layer, weights[layer], f0, acc))
    if any(f.shape[0] != pairs0[0].shape[0] for f in pairs0):
        raise ValueError(
            f"feats0 and feats1 must have one batch size in all layers, got {[f.shape[0] for f in pairs0]}"
        )
    return HeadInput(pairs0, pairs1, flat_weights, norm)


def _check_list(name: str, tensors: Sequence[Tensor]) -> None:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Iterable):
        raise TypeError(f"{name} must be a list of tensors, one a layer, got {type(tensors).__name__}")
    for layer, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}[{layer}] must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_complex():
            raise TypeError(f"{name}[{layer}] must be dense and of real numbers, got {tensor.dtype}, {tensor.layout}")


def _check_pair(layer: int, f0: Tensor, f1: Tensor, like: Tensor) -> None:
    for name, f in (("feats0", f0), ("feats1", f1)):
        if f.dim() != 4:
            raise ValueError(f"{name}[{layer}] must be [N, C, H, W], got {list(f.shape)}")
        if f.dtype != like.dtype:
            raise TypeError(f"all features must be of one type: {name}[{layer}] is {f.dtype}, feats0[0] {like.dtype}")
        if f.device != like.device:
            raise ValueError(
                f"all features must be on one device: {name}[{layer}] is on {f.device}, feats0[0] on {like.device}"
            )
    if f0.shape[1:] != f1.shape[1:] or (f0.shape[0] != f1.shape[0] and 1 not in (f0.shape[0], f1.shape[0])):
        raise ValueError(
            f"feats0[{layer}] and feats1[{layer}] must have the same shape, up to a batch of 1, "
            f"got {list(f0.shape)} and {list(f1.shape)}"
        )


def _checked_weight(layer: int, weight: Tensor, feats: Tensor, acc: torch.dtype) -> Tensor:
    if weight.numel() != feats.shape[1]:
        raise ValueError(
            f"weights[{layer}] must have {feats.shape[1]} elements, one a channel, got shape {list(weight.shape)}"
        )
    if weight.device != feats.device:
        raise ValueError(f"weights[{layer}] is on {weight.device}, the features on {feats.device}")
    return to_dtype(weight.reshape(-1), acc).contiguous()
