"""Weights from files and dicts: all of them or an error, and never any code."""

from __future__ import annotations

import hashlib
import json
import pickle
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
    """To the bit and as the manifest says."""
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


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
@pytest.mark.parametrize("index", (0, 1))
@pytest.mark.parametrize("duplicated", (False, True))
@pytest.mark.parametrize("use_dropout", (False, True))
def test_model_path(make_ours, tmp_path, suffix, index, duplicated, use_dropout):
    """As lpips saves them, with or without dropout when trained, with or without the `lins` duplicates."""
    state = linear_state(index=index)
    if duplicated:
        state |= {name.replace("lin", "lins.", 1): tensor.clone() for name, tensor in state.items()}
    module = make_ours(model_path=saved(state, tmp_path / f"lin{suffix}"), use_dropout=use_dropout)
    for k, lin in enumerate(module.lins):
        assert torch.equal(lin.model[-1].weight, state[f"lin{k}.model.{index}.weight"])


def with_lin0(tensor):
    return lambda state: {**state, "lin0.model.1.weight": tensor}


def plus(name, *shape):
    return lambda state: {**state, name: torch.zeros(shape)}


LIN0 = "lin0.model.1.weight"
BAD_FILES = {
    "missing layer": (lambda s: without(s, "lin3.model.1.weight"), ("layer 3", "lin3.model.1.weight")),
    "missing all": (lambda s: {"x": torch.zeros(1)}, ("'x'", "none of LPIPS's")),
    "empty": (lambda s: {}, ("no tensors",)),
    "extra key": (plus("lin5.model.1.weight", 1, 9, 1, 1), ("lin5.model.1.weight",)),
    "extra bias": (plus("lin0.model.1.bias", 1), ("lin0.model.1.bias",)),
    "wrong shape": (with_lin0(torch.zeros(1, 64)), (LIN0, "[1, 64, 1, 1]", "[1, 64]")),
    "wrong net": (lambda s: linear_state("vgg"), ("lin1.model.1.weight", "[1, 192, 1, 1]", "[1, 128, 1, 1]", "net")),
    "integers": (with_lin0(torch.zeros(1, 64, 1, 1, dtype=torch.int64)), (LIN0, "torch.int64")),
    "duplicates differ": (plus("lins.0.model.1.weight", 1, 64, 1, 1), (LIN0, "lins.0.model.1.weight", "differ")),
}


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
@pytest.mark.parametrize("change,words", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_model_path(make_ours, tmp_path, suffix, change, words):
    path = saved(change(linear_state()), tmp_path / f"bad{suffix}")
    with raises(ValueError, str(path), *words):
        make_ours(model_path=path)


@pytest.mark.parametrize(
    "content", ([torch.zeros(1)], {"state": {"x": torch.zeros(1)}}, {"epoch": 1}, torch.zeros(1), 3), ids=str
)
def test_not_a_state_dict(make_ours, tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with raises(ValueError, "other.pth", "state_dict"):
        make_ours(model_path=tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
@pytest.mark.parametrize(
    "damage", (lambda b: b[: len(b) // 2], lambda b: b[:3], lambda b: b"", lambda b: b"no weights at all")
)
def test_damaged_file(make_ours, tmp_path, suffix, damage):
    path = saved(linear_state(), tmp_path / f"damaged{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with raises(ValueError, str(path), "cannot be read"):
        make_ours(model_path=path)


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("argument", ("model_path", "trunk_weights"))
@pytest.mark.parametrize("protocol", ("torch", "pickle"))
def test_code_in_a_file_is_not_run(trunk_states, tmp_path, argument, protocol):
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    state = {**linear_state(), "x": Code(trap)}
    torch.save(state, path) if protocol == "torch" else path.write_bytes(pickle.dumps(state))
    with raises(ValueError, str(path), "cannot be read"):
        lpips_fast.LPIPS(**{"trunk_weights": trunk_states["alex"], argument: path})
    assert not trap.exists()
    if protocol == "pickle":
        pickle.loads(path.read_bytes())
        assert trap.exists()  # it would have


@pytest.mark.parametrize("argument", ("model_path", "trunk_weights"))
def test_no_such_file(make_ours, trunk_states, tmp_path, argument):
    options = {"trunk_weights": trunk_states["alex"], argument: tmp_path / "none.pth"}
    with raises(FileNotFoundError, "none.pth"):
        lpips_fast.LPIPS(**options)


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
    """The file of its vgg16: torchvision's names for the trunk, and a classifier of convolutions."""
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


@pytest.mark.parametrize("net,name", (("alex", "alexnet-owt"), ("vgg", "vgg16-397923af"), ("squeeze", "squeezenet1_1")))
def test_no_weights_and_no_network(monkeypatch, tmp_path, net, name):
    """The error names the three ways to provide them."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with raises(RuntimeError, net, "download", f"{tmp_path}", name, "TORCH_HOME", "trunk_weights="):
        lpips_fast.LPIPS(net=net)


def test_no_weights_needed_for_a_random_trunk(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_fast.LPIPS(pnet_rand=True, pretrained=False)(*pair(1, 31, 31)).isfinite().all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ("missing", "extra", "shape"))
def test_load_state_dict_is_strict(make_ours, change):
    module = make_ours()
    state = module.state_dict()
    if change == "missing":  # under both of its names
        del state["lin0.model.1.weight"], state["lins.0.model.1.weight"]
    elif change == "extra":
        state["lin9.model.1.weight"] = torch.zeros(1)
    else:
        state["lin0.model.1.weight"] = torch.zeros(1, 3, 1, 1)
    with raises(RuntimeError, "lin9.model.1.weight" if change == "extra" else "lin0.model.1.weight"):
        module.load_state_dict(state)
