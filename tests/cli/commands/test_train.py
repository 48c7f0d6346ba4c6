"""`train`, on data of `bapps`, and `evaluate` with its weights."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch

import lpips_fast
from lpips_fast.weights.files import read_state_dict
from tests.support.tolerances import TRAINED_WEIGHTS_TOLERANCE

SMALL = ("--batch-size", 8, "--epochs", 2, "--decay-epochs", 1, "--workers", 0)


def weights(folder):
    return read_state_dict(folder / "weights.pth")


def test_killed_and_resumed(judged, call, run_and_stop, trunk):
    """The weights are those of a run without interruption, to the bit."""
    call("train", "judged", "-o", "whole", *SMALL, *trunk)
    checkpoint = judged / "killed" / "checkpoint.pt"
    arguments = ("train", "judged", "-o", "killed", "--save-every", 2, *SMALL, *trunk)
    stopped = run_and_stop(*arguments, ready=checkpoint.exists, sends=signal.SIGKILL)
    assert stopped.returncode == -signal.SIGKILL
    assert not (judged / "killed" / "weights.pth").exists()
    assert 0 < torch.load(checkpoint, weights_only=True)["done"] < 15
    assert "go on from it with --resume" in call(*arguments, status=2)
    call(*arguments, "--resume")
    found, expected = weights(judged / "killed"), weights(judged / "whole")
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert list((judged / "whole").glob("events.out.tfevents.*"))

    told = call("train", "judged", "-o", "killed", "--resume", *SMALL, *trunk, "--seed", 1, status=2)
    assert "checkpoint.pt is of a run with other settings: seed was 0, is 1" in told
    other = call("train", "judged", "-o", "killed", "--resume", *SMALL, "--net", "alex", "--from-scratch", status=2)
    assert "net was 'squeezenet1_1', is 'alexnet'" in other
    state = torch.load(checkpoint, weights_only=True)
    for changed in ({**state, "done": "many"}, {key: state[key] for key in ("about", "done")}, {"about": 3}):
        torch.save(changed, checkpoint)
        assert "killed/checkpoint.pt is " in call(*arguments, "--resume", status=2)
    torch.save(state, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "cannot be read" in call(*arguments, "--resume", status=2)


def test_two_processes(judged, run, call, trunk):
    """They learn the weights that one process learns, from features that they share on disk."""
    options = ("--no-dropout", *SMALL, *trunk)
    call("train", "judged", "-o", "one", "--cache", "memory", *options)
    run("train", "judged", "-o", "two", "--cache", "disk", *options, processes=2, threads=1)
    found, expected = weights(judged / "two"), weights(judged / "one")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=TRAINED_WEIGHTS_TOLERANCE)
    assert (
        "several share --cache disk"
        in run("train", "judged", "-o", "three", "--cache", "memory", *options, processes=2, threads=1, status=1).stderr
    )


def test_weights_and_scores(judged, call, trunk, trunk_states):
    lpips = pytest.importorskip("lpips")
    call("train", "judged", "-o", "out", "--cache", "memory", *SMALL, *trunk, "--learning-rate", 0.01)
    path = judged / "out" / "weights.pth"
    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, model_path=str(path), verbose=False).state_dict()
    for suffix in ("pth", "safetensors"):
        ours = lpips_fast.LPIPS(
            net="squeeze", trunk_weights=trunk_states["squeeze"], model_path=path.with_suffix(f".{suffix}")
        )
        for name, value in ours.state_dict().items():
            if name.startswith("lin"):
                assert torch.equal(value, theirs[name])
                assert value.min() >= 0

    call("evaluate", "judged", "--weights", path, "--json", "scores.json", "--workers", 0, *trunk)
    document = json.loads((judged / "scores.json").read_text())
    assert [(row["kind"], row["subset"], row["samples"]) for row in document["results"]] == [
        ("2afc", "val/synthetic", 10),
        ("jnd", "val/synthetic", 10),
    ]
    d0, d1, judge = [], [], []
    for sample in lpips_fast.bapps.TwoAFCDataset(judged / "judged", ["val/synthetic"]):
        with torch.no_grad():
            d0.append(ours(sample.ref[None], sample.p0[None]).item())
            d1.append(ours(sample.ref[None], sample.p1[None]).item())
        judge.append(sample.judge.item())
    assert document["means"]["2afc"] == pytest.approx(lpips_fast.bapps.score_2afc(d0, d1, judge))
    text = call("evaluate", "judged", "--subset", "train/synthetic", "--weights", "judged/judge.safetensors", *trunk)
    assert "2afc train/synthetic 40" in text


def test_tuned_and_from_scratch(judged, call, trunk):
    call("train", "judged", "-o", "tuned", "--tune-trunk", "--from-scratch", *SMALL, "--net", "alex")
    assert "net.slice1.0.weight" in weights(judged / "tuned")
    call("evaluate", "judged", "--net", "alex", "--weights", "tuned/weights.safetensors", "--workers", 0)


def test_mistakes(judged, call, trunk):
    train = ("train", "judged", "-o", "out", *SMALL, *trunk)
    assert "--cache is for a frozen trunk" in call(*train, "--tune-trunk", "--cache", "disk", status=2)
    assert "no folder" in call(*train, "--subset", "train/cnn", status=2)
    assert "no folders in 2afc/train" in call("train", ".", "-o", "out", *trunk, status=2)
    assert "judged has no val/cnn" in call("evaluate", "judged", "--subset", "val/cnn", *trunk, status=2)
    np.save(judged / "judged/2afc/train/synthetic/judge/000007.npy", np.array([2.0]))
    assert "judge/000007.npy must be one number from 0 to 1" in call(*train, status=1)
    (judged / "judged/2afc/val/synthetic/p0/000003.png").write_bytes(b"\x89PNG")
    assert "p0/000003.png cannot be read" in call("evaluate", "judged", "--workers", 0, *trunk, status=1)
    huge = judged / "judged/2afc/val/synthetic/judge/000000.npy"
    huge.write_bytes(huge.read_bytes().replace(b"(1,), }           ", b"(100000000000,), }"))
    assert "judge/000000.npy cannot be read" in call("evaluate", "judged", "--workers", 0, *trunk, status=1)
