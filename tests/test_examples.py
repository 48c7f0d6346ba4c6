"""The examples as processes: a few steps, then resumed, in one process and in two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.tolerances import TWO_PROCESSES_TOLERANCE

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(*command, **options):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def torch_home(tmp_path, trunk_states, monkeypatch):
    """A TORCH_HOME with the session's random AlexNet under the name of torchvision's weights."""
    folder = tmp_path / "torch_home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(trunk_states["alex"], folder / "alexnet-owt-7be5be79.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def test_autoencoder(tmp_path, torch_home, monkeypatch):
    """On the CPU: its sums have a fixed order, and two processes need no second GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = EXAMPLES / "train_autoencoder.py"
    small = ("--batch-size", 4, "--size", 32, "--save-every", 2, "--log-every", 1)
    whole, resumed, two = (tmp_path / name for name in ("whole", "resumed", "two"))
    run(script, "--out", whole, "--steps", 4, *small)
    run(script, "--out", resumed, "--steps", 2, *small)
    run(script, "--out", resumed, "--steps", 4, *small)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert list(whole.glob("events.out.tfevents.*"))

    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, script)
    run(*launch, "--out", two, "--steps", 4, *small)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(two)[name], value, **TWO_PROCESSES_TOLERANCE)


def test_optimize_image(tmp_path, torch_home):
    target = tmp_path / "target.png"
    Image.effect_noise((48, 40), 80).convert("RGB").save(target)
    found = tmp_path / "found.png"
    run(EXAMPLES / "optimize_image.py", target, "-o", found, "--net", "alex", "--steps", 3)
    assert Image.open(found).size == (48, 40)
