"""The helpers of lpips, each against lpips 0.1.4."""

from __future__ import annotations

import sys
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import lpips_fast
from tests.support.images import pair
from tests.support.raises import raises
from tests.support.tolerances import SCORE_TOLERANCE

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (2, 9, 13, 3), dtype=np.uint8)  # two images


@pytest.fixture
def lpips():
    return pytest.importorskip("lpips")


@pytest.fixture
def skimage(monkeypatch):
    """scikit-image with the name for SSIM that lpips uses, which scikit-image removed in 0.18."""
    pytest.importorskip("skimage")
    import skimage.measure
    import skimage.metrics

    def compare_ssim(p0, p1, data_range, multichannel):
        assert multichannel
        return skimage.metrics.structural_similarity(p0, p1, data_range=data_range, channel_axis=-1)

    monkeypatch.setattr(skimage.measure, "compare_ssim", compare_ssim, raising=False)


@pytest.mark.parametrize("name", ("l2", "psnr"))
@pytest.mark.parametrize("images", (BYTES, BYTES.astype(np.float32)), ids=("uint8", "float32"))
def test_numbers_of_images(lpips, name, images):
    ours, theirs = getattr(lpips_fast, name), getattr(lpips, name)
    assert ours(*images) == theirs(*images)
    assert ours(*images, 100.0) == theirs(*images, 100.0)


def test_psnr_of_equal_images_is_infinite(recwarn):
    assert lpips_fast.psnr(BYTES[0], BYTES[0]) == np.inf
    assert not recwarn.list


@pytest.mark.parametrize("name", ("l2", "psnr", "dssim"))
def test_images_of_two_shapes(name):
    with raises(ValueError, "p0 and p1", "[9, 13, 3]", "[9, 13, 1]"):
        getattr(lpips_fast, name)(BYTES[0], BYTES[1, :, :, :1])


@pytest.mark.usefixtures("skimage")
def test_dssim(lpips):
    images = BYTES.astype(np.float64)
    assert lpips_fast.dssim(*images) == lpips.dssim(*images)
    assert lpips_fast.dssim(*images, range=100.0) == lpips.dssim(*images, range=100.0)
    assert lpips_fast.dssim(images[0], images[0]) == 0


def test_arrays_and_tensors(lpips):
    tensor = torch.randn(2, 3, 5, 7)
    assert (lpips_fast.tensor2np(tensor) == lpips.tensor2np(tensor)).all()
    assert lpips_fast.tensor2np(tensor.double().requires_grad_()).dtype == np.float32
    array = RNG.normal(size=(5, 7, 2))
    assert torch.equal(lpips_fast.np2tensor(array), lpips.np2tensor(array))
    assert lpips_fast.np2tensor(array).shape == (1, 2, 5, 7)
    vectors = torch.randn(4, 3, 1, 1)
    assert (lpips_fast.tensor2vec(vectors) == lpips.tensor2vec(vectors)).all()


@pytest.mark.parametrize(
    "name,given,words",
    (
        ("tensor2np", torch.zeros(3, 4, 4), ("tensor_obj", "[N, C, H, W]", "[3, 4, 4]")),
        ("tensor2np", BYTES[0], ("tensor_obj", "ndarray [9, 13, 3]")),
        ("np2tensor", BYTES, ("np_obj", "[H, W, C]", "[2, 9, 13, 3]")),
        ("np2tensor", torch.zeros(4, 4, 3), ("np_obj", "Tensor [4, 4, 3]")),
        ("tensor2vec", torch.zeros(3, 4), ("vector_tensor", "[N, C, 1, 1]", "[3, 4]")),
    ),
)
def test_what_cannot_be_converted(name, given, words):
    with raises(ValueError, *words):
        getattr(lpips_fast, name)(given)


@pytest.mark.usefixtures("skimage")
def test_lab(lpips):
    assert (lpips_fast.rgb2lab(BYTES[0]) == lpips.rgb2lab(BYTES[0])).all()
    image = torch.cat([lpips_fast.im2tensor(image) for image in BYTES])
    for options in ({}, {"to_norm": False}, {"mc_only": True}, {"to_norm": False, "mc_only": True}):
        ours = lpips_fast.tensor2tensorlab(image, **options)
        assert torch.equal(ours, lpips.tensor2tensorlab(image, **options)), options
        assert ours.shape == (1, 3, 9, 13)


@pytest.mark.usefixtures("skimage")
def test_lab_to_rgb(lpips, recwarn):
    lab = torch.rand(1, 3, 9, 13) - 0.5  # with colours that RGB does not have
    image, inside = lpips_fast.tensorlab2tensor(lab, return_inbnd=True)
    assert not recwarn.list
    with warnings.catch_warnings():  # lpips changes the process's filters
        expected, expected_inside = lpips.tensorlab2tensor(lab, return_inbnd=True)
        assert torch.equal(lpips_fast.tensorlab2tensor(lab), lpips.tensorlab2tensor(lab))
    assert torch.equal(image, expected)
    assert torch.equal(inside, expected_inside)
    assert 0 < inside.mean() < 1
    back = lpips_fast.tensorlab2tensor(lpips_fast.tensor2tensorlab(image))
    assert (back - image).abs().max() < 2.5 / 127.5  # tensor2tensorlab truncates to 8 bits


@pytest.mark.usefixtures("skimage")
@pytest.mark.parametrize("name", ("L2", "DSSIM"))
@pytest.mark.parametrize("colorspace", ("Lab", "RGB"))
def test_distances_that_are_no_networks(lpips, name, colorspace):
    ours, theirs = (getattr(package, name)(use_gpu=False, colorspace=colorspace) for package in (lpips_fast, lpips))
    in0, in1 = pair(2, 9, 13)
    each = [theirs(x0, x1) for x0, x1 in zip(in0.split(1), in1.split(1), strict=True)]  # lpips has no batches
    torch.testing.assert_close(ours(in0, in1), torch.cat(each))
    assert isinstance(ours, lpips_fast.FakeNet)
    assert not list(ours.parameters())
    assert (ours.use_gpu, ours.colorspace) == (False, colorspace)


def test_l2_of_rgb_has_a_gradient():
    in0, in1 = pair(1, 9, 13)
    lpips_fast.L2(colorspace="RGB")(in0.requires_grad_(), in1).sum().backward()
    assert in0.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ("FakeNet", "L2", "DSSIM"))
def test_unknown_colorspace(name):
    with raises(ValueError, "colorspace", "'Lab'", "'RGB'", "'HSV'"):
        getattr(lpips_fast, name)(colorspace="HSV")


def test_without_scikit_image(monkeypatch):
    """The error names the extra to install; the other helpers work without it."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "skimage", None)
    in0, in1 = pair(1, 9, 13)
    for call in (
        lambda: lpips_fast.rgb2lab(BYTES[0]),
        lambda: lpips_fast.dssim(*BYTES),
        lambda: lpips_fast.tensorlab2tensor(lpips_fast.tensor2tensorlab(in0)),
        lambda: lpips_fast.L2()(in0, in1),
        lambda: lpips_fast.DSSIM(colorspace="RGB")(in0, in1),
    ):
        with raises(ImportError, "scikit-image", "lpips_fast[skimage]"):
            call()
    assert lpips_fast.L2(colorspace="RGB")(in0, in1) > 0


@pytest.mark.parametrize("use_07_metric", (False, True))
def test_voc_ap(lpips, use_07_metric):
    for n in (0, 1, 2, 11, 40):
        rec, prec = np.sort(RNG.uniform(size=n)), RNG.uniform(size=n)
        expected = lpips.voc_ap(rec, prec, use_07_metric)
        assert lpips_fast.voc_ap(rec, prec, use_07_metric) == pytest.approx(expected, rel=SCORE_TOLERANCE)
        assert lpips_fast.voc_ap(list(rec), list(prec), use_07_metric) == pytest.approx(expected, rel=SCORE_TOLERANCE)


class Loader:
    """A data loader like those of lpips: three batches, the last one smaller."""

    def __init__(self, *names):
        def share(n):
            return torch.randint(0, 6, (n, 1, 1, 1)) / 5

        self.batches = [
            {name: share(n) if name in ("judge", "same") else torch.rand(n, 3, 8, 8) * 2 - 1 for name in names}
            for n in (4, 4, 3)
        ]

    def load_data(self):
        return self.batches


def mean_difference(in0, in1):
    return (in0 - in1).abs().mean(dim=(1, 2, 3))


def test_score_2afc_dataset(lpips, capsys):
    loader = Loader("ref", "p0", "p1", "judge")
    loader.batches[1]["p1"] = loader.batches[1]["p0"]  # ties
    score, parts = lpips_fast.score_2afc_dataset(loader, mean_difference, name="cnn")
    assert "cnn" in capsys.readouterr().err
    expected, expected_parts = lpips.score_2afc_dataset(loader, mean_difference)
    assert score == expected
    assert list(parts) == list(expected_parts)
    for name in parts:
        assert (parts[name] == expected_parts[name]).all(), name


def test_score_jnd_dataset(lpips):
    loader = Loader("p0", "p1", "same")
    score, parts = lpips_fast.score_jnd_dataset(loader, mean_difference)
    expected, expected_parts = lpips.score_jnd_dataset(loader, mean_difference)
    assert score == pytest.approx(expected, rel=SCORE_TOLERANCE)
    assert list(parts) == list(expected_parts)
    for name in parts:
        assert (parts[name] == expected_parts[name]).all(), name


def test_scores_of_lpips_itself(make_ours):
    """Distances may be [N, 1, 1, 1] and have a graph."""
    fn = make_ours("squeeze", eval_mode=False)
    loader = Loader("ref", "p0", "p1", "judge")
    loader.batches = [
        {name: x if name == "judge" else nn.functional.interpolate(x, (32, 32)) for name, x in batch.items()}
        for batch in loader.batches
    ]
    score, parts = lpips_fast.score_2afc_dataset(loader, fn)
    assert 0 <= score <= 1
    assert parts["d0s"].shape == parts["d1s"].shape == parts["gts"].shape == parts["scores"].shape == (11,)


def test_data_that_cannot_be_scored():
    with raises(TypeError, "data_loader", "load_data()", "list", "lpips_fast.bapps.evaluate"):
        lpips_fast.score_2afc_dataset([], mean_difference)
    nothing = types.SimpleNamespace(load_data=list)
    with raises(ValueError, "at least 1"):
        lpips_fast.score_2afc_dataset(nothing, mean_difference)
    with raises(ValueError, "at least 1"):
        lpips_fast.score_jnd_dataset(nothing, mean_difference)
    with raises(ValueError, "d0", "finite"):
        lpips_fast.score_2afc_dataset(Loader("ref", "p0", "p1", "judge"), lambda in0, in1: in0.mean((1, 2, 3)) * np.nan)


def test_print_network(lpips, capsys):
    net = nn.Conv2d(3, 4, 1)
    lpips.print_network(net)
    theirs = capsys.readouterr().out
    lpips_fast.print_network(net)
    assert capsys.readouterr().out == theirs
