"""Pairs that do not fit together, and weights of pixels: what is taken, and what errors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lpips_fast.distance.inputs import batch_of, check_pair, checked_pixel_weight, shape_of
from tests.support.images import blank
from tests.support.raises import raises


@pytest.mark.parametrize(
    "shape0,shape1,words",
    (
        ((2, 3, 40, 40), (2, 3, 40, 41), ("size", "[40, 40]", "[40, 41]")),
        ((2, 3, 41, 40), (2, 3, 40, 40), ("size", "[41, 40]", "[40, 40]")),
        ((2, 3, 40, 40), (3, 3, 40, 40), ("batch", "2", "3")),
        ((0, 3, 40, 40), (2, 3, 40, 40), ("batch", "0", "2")),
    ),
)
def test_images_that_do_not_fit_together(make_ours, shape0, shape1, words):
    with raises(ValueError, "in0", "in1", *words):
        make_ours()(blank(*shape0), blank(*shape1))


@pytest.mark.parametrize("n0,n1", ((3, 3), (1, 3), (3, 1), (0, 0), (0, 1)))
def test_batches_that_fit(n0, n1):
    in0 = blank(n0, 3, 8, 9)
    check_pair(in0, blank(n1, 3, 8, 9))
    check_pair(in0, [blank(n1, 64, 2, 2), blank(n1, 192, 1, 1)])


def test_taps_have_a_batch_and_no_size_to_fit():
    taps = (blank(3, 64, 2, 2), blank(3, 192, 1, 1))
    assert batch_of(taps) == batch_of(taps[0]) == 3
    check_pair(blank(3, 3, 40, 40), taps)
    with raises(ValueError, "one batch size, or 1, got 2 and 3"):
        check_pair(blank(2, 3, 40, 40), taps)


def test_the_error_has_the_callers_names():
    with raises(ValueError, "pred and target must have one size, got [8, 8] and [8, 9]"):
        check_pair(blank(1, 3, 8, 8), blank(1, 3, 8, 9), "pred and target")


def test_shapes_in_errors():
    assert shape_of(blank(2, 0, 3)) == "[2, 0, 3]"
    assert shape_of(np.zeros((2, 3))) == "ndarray"
    assert shape_of(None) == "NoneType"


X = blank(3, 3, 4, 5)


@pytest.mark.parametrize("shape", ((4, 5), (1, 4, 5), (1, 1, 4, 5), (3, 1, 4, 5)))
def test_weights_of_pixels(shape):
    """Of one image for all, or one for each."""
    weight = torch.rand(shape)
    found = checked_pixel_weight(weight, 3, X)
    assert torch.equal(found, weight.expand(3, 1, 4, 5))


def test_weights_for_more_pairs_than_images():
    """One image against many: the weights are those of the pairs."""
    weight = torch.rand(3, 1, 4, 5)
    assert checked_pixel_weight(weight, 3, X[:1]) is weight
    with raises(ValueError, "weight must be [2, 1, 4, 5]", "got [3, 1, 4, 5]"):
        checked_pixel_weight(weight, 2, X[:1])


@pytest.mark.parametrize(
    "weight,got",
    (
        (blank(3, 4, 5), "[1, 3, 4, 5]"),
        (blank(2, 1, 4, 5), "[2, 1, 4, 5]"),
        (blank(3, 3, 4, 5), "[3, 3, 4, 5]"),
        (blank(3, 1, 5, 4), "[3, 1, 5, 4]"),
        (blank(5), "[5]"),
        (blank(), "[]"),
        (blank(1, 1, 1, 4, 5), "[1, 1, 1, 4, 5]"),
        (np.zeros((3, 1, 4, 5)), "ndarray"),
        (1.0, "float"),
    ),
)
def test_weights_of_other_shapes(weight, got):
    with raises(ValueError, f"weight must be [3, 1, 4, 5], one number a pixel, got {got}"):
        checked_pixel_weight(weight, 3, X)


@pytest.mark.parametrize(
    "weight,kind,words",
    (
        (blank(3, 1, 4, 5, dtype=torch.complex64), TypeError, ("real numbers", "torch.complex64")),
        (blank(3, 1, 4, 5).to_sparse(), TypeError, ("dense", "torch.sparse_coo")),
        (blank(3, 1, 4, 5, device="meta"), ValueError, ("weight is on meta, the images on cpu", ".to()")),
    ),
)
def test_weights_that_are_no_numbers_here(weight, kind, words):
    with raises(kind, *words):
        checked_pixel_weight(weight, 3, X)


def test_weights_of_a_subclass_lose_it():
    class Mask(torch.Tensor):
        pass

    found = checked_pixel_weight(torch.rand(4, 5).as_subclass(Mask), 3, X)
    assert type(found) is torch.Tensor
