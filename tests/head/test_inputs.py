"""Features and weights as the head takes them; tests/test_functional.py has the errors of the public functions."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.head.inputs import checked_input
from lpips_fast.head.operators import Norm
from tests.support.raises import raises


def feats(*batches, dtype=torch.float32):
    """One layer for each batch size, with 3, 4, ... channels."""
    return [torch.rand(n, 3 + layer, 5 - layer, 2, dtype=dtype) for layer, n in enumerate(batches)]


def test_each_layer_is_broadcast_by_its_own_shape():
    feats0, feats1 = feats(2, 1, 2), feats(1, 2, 2)
    inputs = checked_input(feats0, feats1, None, Norm())
    assert [f.shape[0] for f in (*inputs.feats0, *inputs.feats1)] == [2] * 6
    for given, taken in zip((*feats0, *feats1), (*inputs.feats0, *inputs.feats1), strict=True):
        assert torch.equal(given.expand_as(taken), taken)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64), ids=str)
def test_weights_are_flat_and_in_the_type_of_the_sums(dtype):
    layers = feats(2, 2, dtype=dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    for weights in (None, [torch.ones(1, f.shape[1], 1, 1, dtype=torch.float16) for f in layers]):
        inputs = checked_input(layers, layers, weights, Norm())
        assert all(torch.equal(w, torch.ones(f.shape[1], dtype=acc)) for w, f in zip(inputs.weights, layers))


CHANGES = {
    "other channels": (lambda f: f[:, 1:], ValueError, "same shape"),
    "other rows": (lambda f: f[:, :, 1:], ValueError, "same shape"),
    "another type": (lambda f: f.half(), TypeError, "one type"),
    "another batch": (lambda f: f.repeat(2, 1, 1, 1)[:3], ValueError, "same shape"),
    "three dimensions": (lambda f: f[0], ValueError, "[N, C, H, W]"),
    "another device": (lambda f: f.to("meta"), ValueError, "one device"),
    "sparse": (lambda f: f.to_sparse(), TypeError, "dense"),
}


@pytest.mark.parametrize("layer", (0, 1, 2))
@pytest.mark.parametrize("change", CHANGES)
def test_every_layer_is_checked(change, layer):
    make, kind, said = CHANGES[change]
    layers = feats(2, 2, 2)
    changed = [make(f) if k == layer else f for k, f in enumerate(layers)]
    with raises(kind, f"feats1[{layer}]", said):
        checked_input(layers, changed, None, Norm())


@pytest.mark.parametrize("layer", (0, 2))
def test_every_weight_is_checked(layer):
    layers = feats(2, 2, 2)
    weights = [torch.ones(f.shape[1] + (k == layer)) for k, f in enumerate(layers)]
    with raises(ValueError, f"weights[{layer}]", f"{3 + layer} elements"):
        checked_input(layers, layers, weights, Norm())
