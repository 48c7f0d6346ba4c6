"""Comparisons of tensors, for the tolerances of `tolerances.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.support.tolerances import GRAD_TOLERANCE, JUMP_TOLERANCE, VALUE_TOLERANCE


def assert_close(
    found: Tensor, expected: Tensor, tolerance: tuple[float, float], what: str = "value", unit: float | None = None
) -> None:
    """|found - expected| <= atol * unit + rtol |expected| everywhere; the unit is max |expected| unless given."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    atol, rtol = tolerance
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    unit = expected.abs().max() if unit is None else unit
    excess = (found - expected).abs() - rtol * expected.abs() - atol * unit
    bad = ~(excess <= 0)  # a NaN is bad
    assert not bad.any(), f"{what}: {int(bad.sum())} of {bad.numel()} off, the worst by {excess[bad].max():.3e}"


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerances: dict, what: str) -> None:
    """`assert_close` for the gradients of one kind, a layer each: the unit is the largest of all layers."""
    unit = max((e.abs().max().item() for e in expected if e.numel()), default=0.0)
    for layer, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert_close(f, e, tolerances[f.dtype], f"{what}[{layer}]", unit)


def assert_gradients_close(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    """|found - expected| <= GRAD_TOLERANCE |expected| for each image, in float32 for at least half of them."""
    errors = []
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        for image_found, image_expected in zip(f.detach().cpu().double(), e):
            errors.append(((image_found - image_expected).norm() / image_expected.norm()).item())
    errors.sort()
    limit = GRAD_TOLERANCE[dtype]
    assert errors[-1] <= (limit if dtype == torch.float64 else JUMP_TOLERANCE), f"relative errors {errors}"
    assert errors[(len(errors) - 1) // 2] <= limit, f"relative errors {errors}"


def assert_mostly_close(
    found: Tensor, expected: Tensor, tolerance: float, jump: float, norms: Tensor | None = None
) -> None:
    """The norms of the errors of images' gradients: the median is at most `tolerance`, and the largest at most `jump`.

    They are relative to the norms of the expected gradients, unless `norms` are given.
    """
    assert found.shape == expected.shape
    norms = expected.flatten(1).norm(dim=1) if norms is None else norms
    errors = ((found.double() - expected).flatten(1).norm(dim=1) / norms).tolist()
    assert statistics.median(errors) <= tolerance, f"relative errors {errors}"
    assert max(errors) <= jump, f"relative errors {errors}"


def assert_norms_close(found: Sequence[Tensor], expected: Sequence[Tensor], rtol: float) -> None:
    """|found - expected| <= rtol |expected|, in norms, for each tensor."""
    for f, e in zip(found, expected, strict=True):
        f, e = f.detach().cpu().double(), e.detach().cpu().double()
        assert (f - e).norm() <= rtol * e.norm()


def assert_value_and_gradient_close(found, expected, factor: float = 1.0) -> None:
    """The norms of the errors of a value and a gradient in float32, relative; `factor` times the tolerances."""
    for a, b, limit in zip(found, expected, (VALUE_TOLERANCE[torch.float32][1], GRAD_TOLERANCE[torch.float32])):
        a, b = a.cpu().double(), b.cpu().double()
        assert (a - b).norm() <= factor * limit * b.norm()
