"""Every snippet of docs/migration.md runs, with small stand-ins for the code around it."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import lpips_fast
from lpips_fast.cli import app
from tests.support.images import image
from tests.support.tolerances import REORDERED_TOLERANCE, SCRIPT_BFLOAT16_TOLERANCE, SCRIPT_TOLERANCE

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "migration.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))

MIXED = pytest.mark.parametrize("mixed", (False, True), ids=("float32", "mixed precision"))


def snippets(section, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _trunks(monkeypatch, cached_trunk):
    """The session's random trunks in place of ImageNet's."""
    monkeypatch.setattr("lpips_fast.weights.published.provide", cached_trunk)


def run(section, which=0, *, mixed=False, **names):
    """The names after a snippet ran with the given `names`; `mixed` runs it under autocast, as trainers do."""
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        exec(snippets(section)[which], names)
    return types.SimpleNamespace(**names)


def prediction(x, mixed):
    """The output of a decoder for x, which is bfloat16 under autocast."""
    return x.to(torch.bfloat16 if mixed else x.dtype)


def pair01(n=2, size=40):
    return ((image(n, size, size, seed=seed) + 1) / 2 for seed in (1, 2))


def test_these_are_all_snippets():
    assert {section: text.count("```") // 2 for section, text in SECTIONS.items()} == {
        "lpips": 1,
        "torchmetrics": 1,
        "piq": 1,
        "taming-transformers and CogVideo": 2,
        "gaussian-splatting": 1,
        "diffusers": 1,
        "DistributedDataParallel": 1,
        "MONAI": 1,
        "Code that cannot be edited": 1,
        "Weights files": 3,
    }


@MIXED
def test_lpips(make_theirs, mixed):
    pred, target = prediction(image(2, 40, 40, seed=1), mixed).requires_grad_(), image(2, 40, 40, seed=2)
    found = run("lpips", pred=pred, target=target, device="cpu", mixed=mixed)
    torch.testing.assert_close(
        found.loss, make_theirs("vgg")(pred, target).mean(), **SCRIPT_BFLOAT16_TOLERANCE if mixed else SCRIPT_TOLERANCE
    )
    found.loss.backward()
    assert pred.grad.abs().max() > 0
    found.loss_fn.load_state_dict(make_theirs("vgg").state_dict(), strict=True)


def test_torchmetrics(monkeypatch, torchvision_features):
    torchmetrics = pytest.importorskip("torchmetrics")
    functional = torchmetrics.functional.image
    monkeypatch.setattr(functional.lpips, "_get_tv_model_features", torchvision_features)
    batches = [tuple(pair01()) for _ in range(2)]
    found = run("torchmetrics", batches=batches, device="cpu")
    theirs = functional.learned_perceptual_image_patch_similarity(*batches[0], "squeeze", normalize=True)
    torch.testing.assert_close(found.score, theirs, **SCRIPT_TOLERANCE)


@MIXED
def test_piq(make_theirs, mixed):
    pred, target = pair01()
    found = run("piq", pred=prediction(pred, mixed), target=target, mixed=mixed)
    assert found.loss.shape == (2,)
    expected = make_theirs("vgg")(pred, target, normalize=True).flatten()
    torch.testing.assert_close(found.loss, expected, **SCRIPT_BFLOAT16_TOLERANCE if mixed else SCRIPT_TOLERANCE)


@MIXED
def test_taming_and_cogvideo(make_theirs, mixed):
    inputs, decoder = image(2, 32, 32, seed=1), nn.Conv2d(3, 3, 1)
    found = run("taming-transformers and CogVideo", nn=nn, torch=torch)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        reconstructions = decoder(image(2, 32, 32, seed=2))
        assert reconstructions.dtype == (torch.bfloat16 if mixed else torch.float32)
        loss = found.ReconstructionLoss().train()(inputs, reconstructions)
    expected = (inputs - reconstructions).abs() + make_theirs("vgg")(inputs, reconstructions)
    torch.testing.assert_close(loss, expected.mean(), **SCRIPT_BFLOAT16_TOLERANCE if mixed else SCRIPT_TOLERANCE)
    (early,) = torch.autograd.grad(loss, decoder.weight, retain_graph=True)  # for the weight of the discriminator
    loss.backward()
    assert torch.equal(early, decoder.weight.grad)


@MIXED
def test_videos(make_theirs, mixed):
    videos, reconstructions = (image(8, 32, 32, seed=seed).view(2, 4, 3, 32, 32).movedim(1, 2) for seed in (1, 2))
    source = snippets("taming-transformers and CogVideo")[1].split("\n")
    names = {"videos": videos, "reconstructions": prediction(reconstructions, mixed)}
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        exec("\n".join(source[:-2]), names)
    frames = (v.movedim(2, 1).flatten(0, 1) for v in (videos, reconstructions))
    torch.testing.assert_close(
        names["p_loss"],
        make_theirs("vgg")(*frames).view(2, 4),
        **SCRIPT_BFLOAT16_TOLERANCE if mixed else SCRIPT_TOLERANCE,
    )
    found = run("taming-transformers and CogVideo", 1, **{name: names[name] for name in ("videos", "reconstructions")})
    assert found.p_loss.shape == (2, 1)
    for clip, value in zip(names["p_loss"], found.p_loss, strict=True):
        tolerance = SCRIPT_BFLOAT16_TOLERANCE["rtol"] if mixed else REORDERED_TOLERANCE
        assert (clip - value).abs().min() < tolerance * value


def test_gaussian_splatting(make_theirs):
    renders, gts = (list(x) for x in pair01())  # [3, H, W]
    lpipss = []
    run("gaussian-splatting", renders=renders, gts=gts, lpipss=lpipss)
    expected = [make_theirs("vgg")(render, gt).detach() for render, gt in zip(renders, gts)]  # in [0, 1], not rescaled
    torch.testing.assert_close(torch.tensor(lpipss).mean(), torch.tensor(expected).mean(), **SCRIPT_TOLERANCE)


class DecoderOutput(dict):
    """A mapping whose items are attributes, too, as the models of diffusers return it."""

    __getattr__ = dict.__getitem__


class Autoencoder(nn.Conv2d):
    """The part of an AutoencoderKL that the snippet uses."""

    def forward(self, x):
        return DecoderOutput(sample=torch.tanh(super().forward(x)))


@MIXED
def test_diffusers(mixed):
    """With accelerate, which runs the model under autocast and returns its results in float32."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16" if mixed else "no")
    model = Autoencoder(3, 3, 3, padding=1)
    vae, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
    found = run(
        "diffusers",
        torch=torch,
        F=F,
        vae=vae,
        accelerator=accelerator,
        weight_dtype=torch.bfloat16 if mixed else torch.float32,
        train_dataloader=itertools.repeat({"pixel_values": image(2, 32, 32, seed=1)}, 4),
        perceptual_scale=0.5,
        optimizer=optimizer,
    )
    assert found.reconstructions.dtype == torch.float32
    assert found.targets.dtype == found.weight_dtype
    assert found.p_loss.shape == (2, 1, 1, 1)
    assert found.p_loss.requires_grad
    last = found.perceptual_loss(vae(found.targets).sample, found.targets)
    assert last.mean() < found.p_loss.mean()  # it is trained


def test_distributed_data_parallel():
    from torch.nn.parallel import DistributedDataParallel

    found = run("DistributedDataParallel", LPIPS=lpips_fast.LPIPS, device="cpu")
    assert torch.equal(found.perceptual_loss(*pair01()), lpips_fast.LPIPS(net="vgg")(*pair01()))
    with pytest.raises(RuntimeError, match="any parameter that requires a gradient"):
        DistributedDataParallel(found.perceptual_loss, process_group=object())


class PerceptualLoss(nn.Module):
    """MONAI's loss in 2.5D: some slices along each axis go through the LPIPS that MONAI imports."""

    def __init__(self, spatial_dims, network_type, fake_3d_ratio):
        from lpips import LPIPS

        super().__init__()
        assert spatial_dims == 3
        self.perceptual_function = LPIPS(pretrained=True, net=network_type, verbose=False)
        self.ratio = fake_3d_ratio

    def forward(self, input, target):
        losses = []
        for axis in (2, 3, 4):
            slices = [x.movedim(axis, 1).flatten(0, 1) for x in (input, target)]
            some = torch.randperm(len(slices[0]))[: int(len(slices[0]) * self.ratio)]
            losses.append(self.perceptual_function(slices[0][some], slices[1][some]).mean())
        return sum(losses)


@MIXED
def test_monai(monkeypatch, mixed):
    monkeypatch.setitem(sys.modules, "monai", types.ModuleType("monai"))
    monkeypatch.setitem(sys.modules, "monai.losses", types.SimpleNamespace(PerceptualLoss=PerceptualLoss))
    volumes, others = torch.rand(2, 1, 1, 20, 20, 20).requires_grad_()
    found = run("MONAI", volumes=prediction(volumes, mixed), others=others, mixed=mixed)
    assert type(found.loss_fn.perceptual_function) is lpips_fast.LPIPS
    assert found.loss.isfinite()
    assert found.loss > 0


def test_code_that_cannot_be_edited():
    import lpips

    found = run("Code that cannot be edited", make_their_loss=lambda: lpips.LPIPS(net="squeeze", verbose=False))
    assert type(found.loss_fn) is lpips_fast.LPIPS
    assert lpips.LPIPS.__init__.__module__ == "lpips.lpips"


def test_weights_files(make_ours, monkeypatch, tmp_path, capsys):
    metric = pytest.importorskip("lpips_fast.metric")
    monkeypatch.chdir(tmp_path)
    torch.save(metric.LearnedPerceptualImagePatchSimilarity(net_type="squeeze").net.state_dict(), "perceptual.pth")
    found = run("Weights files")
    assert capsys.readouterr().out.strip() in snippets("Weights files")[0]
    in0, in1 = image(1, 32, 32, seed=1), image(1, 32, 32, seed=2)
    assert torch.equal(found.loss_fn(in0, in1), make_ours("squeeze")(in0, in1))
    loss = {f"loss.perceptual_loss.{name}": t for name, t in make_ours("vgg").state_dict().items()}
    torch.save({"state_dict": loss, "hyper_parameters": argparse.Namespace()}, "last.ckpt")
    part = run("Weights files", 1).loss_fn
    assert torch.equal(part(in0, in1), make_ours("vgg")(in0, in1))
    for command in snippets("Weights files", "sh")[0].splitlines():
        program, *arguments = shlex.split(command)
        assert program == "lpips-fast"
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert str(lpips_fast.load_any("perceptual.safetensors")) == str(found.found).replace("torchmetrics", "lpips")
    assert lpips_fast.load_any("vgg.pth").origin == "taming"
