"""Published weights: in this package unchanged, the trunk's from a file, a dict or a download, complete or an error."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lpips_fast
from lpips_fast.weights import published
from tests.support.images import pair
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.weights import linear_state, saved, without

FOLDER = Path(published.__file__).with_name("linear")


@pytest.mark.parametrize("version", published.VERSIONS)
@pytest.mark.parametrize("net", NETS)
def test_committed_weights_are_those_of_lpips(net, version):
    """They agree to the bit, and with the manifest."""
    entry = json.loads((FOLDER / "manifest.json").read_text())[f"{net}_v{version}.safetensors"]
    committed = FOLDER / f"{net}_v{version}.safetensors"
    original = Path(pytest.importorskip("lpips").__file__).parent / "weights" / f"v{version}" / f"{net}.pth"
    assert hashlib.sha256(committed.read_bytes()).hexdigest() == entry["sha256"]
    assert hashlib.md5(original.read_bytes()).hexdigest() == entry["origin_md5"]
    state, expected = load_file(committed), torch.load(original, map_location="cpu", weights_only=True)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert all((tensor >= 0).all() for tensor in state.values())


def test_changed_published_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "manifest.json").write_text((FOLDER / "manifest.json").read_text())
    saved(linear_state(), tmp_path / "alex_v0.1.safetensors")
    monkeypatch.setattr(published, "_FOLDER", tmp_path)
    with raises(RuntimeError, "alex_v0.1.safetensors", "SHA-256", "reinstall"):
        lpips_fast.LPIPS(pnet_rand=True)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("form", ("dict", "features only", ".pth", ".safetensors", "whole model"))
def test_trunk_weights(trunk_states, tmp_path, net, form):
    if net == "vgg" and form not in ("dict", "whole model"):
        pytest.skip("60 MB; the code is the same")
    state = trunk_states[net]
    given = {
        "dict": lambda: state,
        "features only": lambda: {name.removeprefix("features."): tensor for name, tensor in state.items()},
        ".pth": lambda: saved(state, tmp_path / "trunk.pth"),
        ".safetensors": lambda: saved(state, tmp_path / "trunk.safetensors"),
        "whole model": lambda: {**state, "classifier.6.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(2)},
    }[form]()
    module = lpips_fast.LPIPS(net=net, trunk_weights=given)
    for name, tensor in module.net.state_dict().items():
        assert torch.equal(tensor, state[f"features.{name.partition('.')[2]}"])


@pytest.mark.parametrize("name", ("model.safetensors", "pytorch_model.bin"))
def test_trunk_weights_as_timm_has_them(trunk_states, tmp_path, name):
    """timm's vgg16 has torchvision's names for the trunk, and a classifier of convolutions."""
    classifier = {
        "pre_logits.fc1.weight": torch.zeros(4, 512, 7, 7),
        "pre_logits.fc1.bias": torch.zeros(4),
        "pre_logits.fc2.weight": torch.zeros(4, 4, 1, 1),
        "pre_logits.fc2.bias": torch.zeros(4),
        "head.fc.weight": torch.zeros(2, 4),
        "head.fc.bias": torch.zeros(2),
    }
    path = saved({**trunk_states["vgg"], **classifier}, tmp_path / name)
    module = lpips_fast.LPIPS(net="vgg", trunk_weights=path)
    for key, tensor in module.net.state_dict().items():
        assert torch.equal(tensor, trunk_states["vgg"][f"features.{key.partition('.')[2]}"])
    with raises(ValueError, name, "no LPIPS", "trunk_weights="):
        lpips_fast.LPIPS(net="vgg", model_path=path)


@pytest.mark.parametrize(
    "change,words",
    (
        (lambda s: without(s, "features.3.bias"), ("3.bias", "alexnet")),
        (lambda s: {**s, "features.3.bias": torch.zeros(2)}, ("3.bias", "[192]", "[2]")),
        (lambda s: {**s, "features.1.weight": torch.zeros(2)}, ("1.weight", "alexnet")),
        (lambda s: {}, ("0.weight", "alexnet")),
        (lambda s: {"module.features.0.weight": torch.zeros(2)}, ("0.weight", "alexnet")),
    ),
    ids=("missing", "shape", "extra", "empty", "prefixed"),
)
def test_bad_trunk_weights(trunk_states, change, words):
    with raises(ValueError, "trunk weights", *words):
        lpips_fast.LPIPS(trunk_weights=change(trunk_states["alex"]))


def test_trunk_weights_of_another_net(trunk_states):
    with raises(ValueError, "trunk weights", "alexnet"):
        lpips_fast.LPIPS(net="alex", trunk_weights=trunk_states["squeeze"])


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_trunk_weights_that_are_not_finite(trunk_states, tmp_path, value):
    state = {**trunk_states["alex"], "features.3.bias": torch.full((192,), value)}
    torch.save(state, tmp_path / "diverged.pth")
    for weights, name in ((tmp_path / "diverged.pth", "diverged.pth"), (state, "trunk_weights")):
        with raises(ValueError, name, "'3.bias'", "NaN or infinite"):
            lpips_fast.LPIPS(trunk_weights=weights)


@pytest.mark.parametrize("net,name", (("alex", "alexnet-owt"), ("vgg", "vgg16-397923af"), ("squeeze", "squeezenet1_1")))
def test_no_weights_and_no_network(monkeypatch, tmp_path, net, name):
    """The error names the ways to provide the weights; a package index has none for SqueezeNet."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with raises(RuntimeError, net, "download", f"{tmp_path}", name, "TORCH_HOME", "trunk_weights=") as caught:
        lpips_fast.LPIPS(net=net)
    assert (f"lpips-fast weights --net {net}" in str(caught.value)) == (net != "squeeze")


def test_no_weights_needed_for_a_random_trunk(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_fast.LPIPS(pnet_rand=True, pretrained=False)(*pair(1, 31, 31)).isfinite().all()
    assert not list(tmp_path.iterdir())
