"""`lpips-fast convert`."""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file

import lpips_fast
from lpips_fast.weights.files import save_state_dict
from lpips_fast.weights.published import linear_state_dict


def test_whole_model(run, tmp_path, fn):
    torch.save(fn.state_dict(), tmp_path / "lpips.pth")
    said = run("convert", "lpips.pth", "metric.pth", "--to", "torchmetrics").stdout
    assert "a whole model as lpips has them, net squeeze, version 0.1" in said
    state = torch.load(tmp_path / "metric.pth", weights_only=True)
    assert f"metric.pth: {len(state)} tensors" in said
    assert "net.net.slices.1.3.squeeze.weight" in state
    assert lpips_fast.load_any(tmp_path / "metric.pth").origin == "torchmetrics"


def test_linear_weights_to_safetensors(call, tmp_path, fn):
    lins = [weight.detach() for weight in fn.linear_weights()]
    torch.save({f"lins.{k}.model.0.weight": weight for k, weight in enumerate(lins)}, tmp_path / "own.pth")
    assert "linear weights as lpips has them, net squeeze" in call(
        "convert", "own.pth", "own.safetensors", "--to", "safetensors"
    )
    state = load_file(tmp_path / "own.safetensors")
    assert list(state) == [f"lin{k}.model.1.weight" for k in range(7)]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), lins, strict=True))


def test_part_of_a_checkpoint(run, mistake, tmp_path, fn):
    loss = {f"loss.{name}": tensor for name, tensor in fn.state_dict().items()}
    linear = {f"old.{name}": tensor for name, tensor in linear_state_dict(fn.linear_weights()).items()}
    torch.save({"state_dict": loss | linear, "hyper_parameters": argparse.Namespace(lr=0.1)}, tmp_path / "last.ckpt")
    told = mistake("convert", "last.ckpt", "out.pth", "--to", "lpips")
    assert "last.ckpt has several LPIPS: give --prefix, one of 'state_dict.loss.', 'state_dict.old.'" in told
    assert "a whole model" in run("convert", "last.ckpt", "out.pth", "--to", "lpips", "--prefix", "loss").stdout
    assert torch.load(tmp_path / "out.pth", weights_only=True).keys() == fn.state_dict().keys()
    assert "linear weights" in run("convert", "last.ckpt", "out.pth", "--to", "lpips", "--prefix", "old.").stdout


def test_mistakes(mistake, tmp_path, fn):
    save_state_dict(tmp_path / "lpips.pth", fn.state_dict())
    assert "no weights file none.pth" in mistake("convert", "none.pth", "out.pth", "--to", "lpips")
    assert "taming has no LPIPS but that of net vgg" in mistake("convert", "lpips.pth", "out.pth", "--to", "taming")
    assert "suffix" in mistake("convert", "lpips.pth", "out.pth", "--to", "safetensors")
    assert "'piq'" in mistake("convert", "lpips.pth", "out.pth", "--to", "piq")
    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth cannot be read" in mistake("convert", "text.pth", "out.pth", "--to", "lpips")
    assert not (tmp_path / "out.pth").exists()
