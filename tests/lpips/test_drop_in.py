"""A script for `lpips` gives the same numbers after changing its import; names, signatures and helpers are the same."""

from __future__ import annotations

import inspect
import sys
import types

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from PIL import Image

import lpips_fast
from tests.support.comparisons import assert_close
from tests.support.images import pair
from tests.support.parameters import NETS
from tests.support.tolerances import ROUNDING_TOLERANCE, SCRIPT_TOLERANCE, VALUE_TOLERANCE

SCRIPT = """
{imports}
import numpy as np
import torch

loss_fn = lpips.LPIPS(net=NET, version="0.1", pnet_rand=True)
loss_fn.net.load_state_dict(TRUNK)
loss_map = lpips.LPIPS(pretrained=True, net=NET, lpips=True, spatial=True, pnet_rand=True, verbose=False)
loss_map.net.load_state_dict(TRUNK)

image0, image1 = lpips.load_image(PATH0), lpips.load_image(PATH1)
im0, im1 = lpips.im2tensor(image0), lpips.im2tensor(image1)
with torch.no_grad():
    d = loss_fn.forward(im0, im1)
    d_layers, layers = loss_fn(im0, im1, retPerLayer=True)
    d_normalized = loss_fn(im0 / 2 + 0.5, im1 / 2 + 0.5, normalize=True)
    d_map = loss_map.forward(im0, im1)

class PerceptualLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.perceptual_loss = loss_fn.eval()
        for p in self.parameters():
            p.requires_grad = False

    def forward(self, x, y):
        return (torch.abs(x - y) + 0.5 * self.perceptual_loss(x, y)).mean()

criterion = PerceptualLoss()
pred = im1.clone().requires_grad_()
optimizer = torch.optim.Adam([pred], lr=1e-2, betas=(0.9, 0.999))
losses = []
for step in range(8):
    loss = criterion(pred, im0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    pred.data = torch.clamp(pred.data, -1, 1)
    losses.append(loss.item())

pred_img = lpips.tensor2im(pred.data)
feats = loss_fn.net.forward(loss_fn.scaling_layer(im0))
first = lpips.normalize_tensor(feats[0])
average = lpips.spatial_average(first, keepdim=True)
enlarged = lpips.upsample(first[:, :1], out_HW=im0.shape[2:])
"""


@pytest.fixture
def image_files(tmp_path):
    """A smooth image, and the same image with noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((56, 40), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse) + rng.normal(0, 25, (40, 56, 3))
    coarse.save(tmp_path / "a.png")
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "b.png")
    return tmp_path / "a.png", tmp_path / "b.png"


def run(imports, net, trunk, paths):
    names = {"NET": net, "TRUNK": trunk, "PATH0": str(paths[0]), "PATH1": str(paths[1])}
    exec(SCRIPT.format(imports=imports), names)
    return names


@pytest.mark.parametrize("net", ("alex", "squeeze"))
@pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision warns when lpips calls it
def test_same_numbers_after_changing_the_import(net, trunk_states, make_theirs, image_files, monkeypatch, capsys):
    # lpips reads images with OpenCV; it uses this function alone.
    cv2 = types.SimpleNamespace(imread=lambda path: np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1])
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    trunk = make_theirs(net).net.state_dict()
    theirs = run("import lpips", net, trunk, image_files)
    capsys.readouterr()
    ours = run("import lpips_fast as lpips", net, trunk, image_files)
    assert capsys.readouterr() == ("", "")

    for name in ("image0", "image1", "im0", "im1"):
        assert ours[name].dtype == theirs[name].dtype
        assert (ours[name] == theirs[name]).all(), name
    for name in ("d", "d_layers", "d_normalized", "d_map", "first", "average", "enlarged"):
        torch.testing.assert_close(ours[name], theirs[name], **SCRIPT_TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    for ours_layer, theirs_layer in zip(ours["layers"], theirs["layers"], strict=True):
        torch.testing.assert_close(ours_layer, theirs_layer, **SCRIPT_TOLERANCE)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=SCRIPT_TOLERANCE["rtol"])
    assert theirs["losses"][-1] < 0.9 * theirs["losses"][0]
    assert ours["pred_img"].dtype == theirs["pred_img"].dtype == np.uint8
    # Adam's first steps are the gradient's signs. Where the gradient is near 0 its sign, and so the pixel, may differ.
    differ = np.abs(ours["pred_img"].astype(int) - theirs["pred_img"]) > 1
    assert differ.mean() < 0.01


def test_tensors_to_images_and_back():
    import lpips

    import lpips_fast

    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    tensor = lpips_fast.im2tensor(image)
    assert tensor.shape == (1, 3, 7, 9)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, lpips.im2tensor(image))
    assert torch.equal(
        lpips_fast.im2tensor(image, cent=0.0, factor=255.0), lpips.im2tensor(image, cent=0.0, factor=255.0)
    )
    batch = torch.cat((tensor, -tensor))
    assert (lpips_fast.tensor2im(batch) == lpips.tensor2im(batch)).all()
    assert (lpips_fast.tensor2im(batch, imtype=float) == lpips.tensor2im(batch, imtype=float)).all()
    assert np.abs(lpips_fast.tensor2im(tensor).astype(int) - image).max() <= 1  # tensor2im truncates, as lpips does


def test_signatures_begin_as_those_of_lpips():
    import lpips

    for name in ("LPIPS", "NetLinLayer", "Dist2LogitLayer", "BCERankingLoss", "ScalingLayer"):
        for method in ("__init__", "forward"):
            theirs = inspect.signature(getattr(getattr(lpips, name), method)).parameters.values()
            ours = inspect.signature(getattr(getattr(lpips_fast, name), method)).parameters.values()
            assert [(p.name, p.default) for p in ours][: len(theirs)] == [(p.name, p.default) for p in theirs]
            # In forward not keyword-only: torch.onnx.export(dynamo=False) passes all defaults by position.
            for p in list(ours)[len(theirs) :]:
                assert p.kind == p.VAR_KEYWORD or p.default is not p.empty
                assert (p.kind == p.POSITIONAL_OR_KEYWORD) == (method == "forward")
    for name in ("normalize_tensor", "spatial_average", "upsample", "load_image", "im2tensor", "tensor2im"):
        theirs = inspect.signature(getattr(lpips, name)).parameters.values()
        ours = inspect.signature(getattr(lpips_fast, name)).parameters.values()
        assert [(p.name, p.default) for p in ours][: len(theirs)] == [(p.name, p.default) for p in theirs]
        assert all(p.default is not p.empty for p in list(ours)[len(theirs) :])


@pytest.mark.parametrize("net", NETS)
def test_attributes(make_ours, make_theirs, net):
    ours, theirs = make_ours(net), make_theirs(net)
    for name in ("pnet_type", "pnet_tune", "spatial", "lpips", "version", "chns", "L"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [getattr(ours, f"lin{k}") is ours.lins[k] for k in range(ours.L)] == [True] * ours.L
    assert ours.net.N_slices == theirs.net.N_slices == ours.L
    x, _ = pair(1, 35, 35)
    x = ours.scaling_layer(x)
    taps, expected = ours.net(x), theirs.net(x)
    assert taps._fields == expected._fields
    for field, tap in zip(taps._fields, taps):
        assert_close(tap, getattr(expected, field).double(), VALUE_TOLERANCE[torch.float32], field)


def test_helpers_give_the_same_as_those_of_lpips():
    import lpips

    feats = torch.randn(2, 5, 3, 4)
    assert_close(lpips_fast.normalize_tensor(feats), lpips.normalize_tensor(feats).double(), (0, ROUNDING_TOLERANCE))
    assert torch.equal(lpips_fast.spatial_average(feats), lpips.spatial_average(feats))
    assert torch.equal(lpips_fast.spatial_average(feats, keepdim=False), lpips.spatial_average(feats, keepdim=False))
    assert torch.equal(lpips_fast.upsample(feats, (7, 9)), lpips.upsample(feats, (7, 9)))
    assert lpips_fast.upsample(feats).shape == lpips.upsample(feats).shape
    torch.testing.assert_close(lpips_fast.ScalingLayer()(feats[:, :3]), lpips.ScalingLayer()(feats[:, :3]))


def test_normalize_tensor_has_no_nan_gradient_at_zero():
    feats = torch.zeros(1, 3, 2, 2, requires_grad=True)
    lpips_fast.normalize_tensor(feats).sum().backward()
    assert torch.equal(feats.grad, torch.zeros_like(feats))
