"""The scaling of images: lpips's layer, and the shift and scale that the fused trunk takes in its place."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.distance.scaling import ScalingLayer, affine
from tests.support.comparisons import assert_close
from tests.support.images import image
from tests.support.tolerances import SCALING_TOLERANCE, VALUE_TOLERANCE

# ImageNet's mean and standard deviation, for images in [0, 1].
MEAN = torch.tensor((0.485, 0.456, 0.406), dtype=torch.float64).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225), dtype=torch.float64).view(1, 3, 1, 1)


def test_layer_is_that_of_lpips(make_theirs):
    x = image(2, 5, 6, seed=0)
    theirs = make_theirs().scaling_layer
    assert torch.equal(ScalingLayer()(x), theirs(x))
    assert {name: t.shape for name, t in ScalingLayer().state_dict().items()} == {
        name: t.shape for name, t in theirs.state_dict().items()
    }


def test_layer_takes_images_to_the_statistics_of_imagenet():
    """lpips rounds its constants to 3 digits: (m - 0.5) / 0.5 and s / 0.5 are off by up to 5e-4."""
    x = image(2, 5, 6, seed=0, dtype=torch.float64)
    expected = ((x + 1) / 2 - MEAN) / STD
    assert (ScalingLayer().double()(x) - expected).abs().max() < SCALING_TOLERANCE


@pytest.mark.parametrize("version", ("0.0", "0.1"))
@pytest.mark.parametrize("normalize", (False, True))
def test_affine_is_what_lpips_computes(make_theirs, version, normalize):
    """2x - 1 of images in [0, 1], and the scaling of version 0.1, in one shift and scale."""
    theirs = make_theirs(dtype=torch.float64, version=version)
    x = image(2, 5, 6, seed=0, dtype=torch.float64)
    signed = x
    if normalize:
        x = (x + 1) / 2
        signed = 2 * x - 1
    expected = theirs.scaling_layer(signed) if version == "0.1" else signed
    shift, scale = affine(ScalingLayer().double(), version, normalize)
    if version == "0.0" and not normalize:
        assert shift is None
        assert scale is None
    else:
        assert_close((x - shift) / scale, expected, VALUE_TOLERANCE[torch.float64])


@pytest.mark.parametrize("version", ("0.0", "0.1"))
def test_affine_follows_the_layer(version):
    """Buffers that were loaded or cast count, and version 0.0 has no use for their values."""
    layer = ScalingLayer()
    layer.load_state_dict({"shift": torch.full((1, 3, 1, 1), 0.25), "scale": torch.full((1, 3, 1, 1), 4.0)})
    shift, scale = affine(layer.half(), version, True)
    assert shift.dtype == scale.dtype == torch.float16
    expected = (0.625, 2.0) if version == "0.1" else (0.5, 0.5)
    assert (shift.unique().item(), scale.unique().item()) == expected
