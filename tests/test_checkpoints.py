"""Files of whole models of lpips, taming, torchmetrics and piq: their origin, the modules made of them, and writing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import lpips_fast
from lpips_fast.compat import piq, taming
from lpips_fast.weights.files import save_state_dict
from lpips_fast.weights.formats import TARGETS
from lpips_fast.weights.published import published_linear_weights
from tests.support.checkpoints import OTHER_MODELS, prefixed
from tests.support.images import pair
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.weights import linear_state

SUFFIXES = (".pth", ".safetensors")


@pytest.fixture
def load(tmp_path):
    """Writes a state and reads it with load_any."""

    def load(state, suffix=".pth"):
        save_state_dict(tmp_path / f"weights{suffix}", state)
        return lpips_fast.load_any(tmp_path / f"weights{suffix}")

    return load


@pytest.fixture
def theirs(monkeypatch, trunk_states, torchvision_features, make_theirs):
    """Makes a package's own module with the session's trunk; taming's keys are those of lpips without lins.*."""

    def torchmetrics(net):
        module = pytest.importorskip("torchmetrics.functional.image.lpips")
        monkeypatch.setattr(module, "_get_tv_model_features", torchvision_features)
        return torch.nn.ModuleDict({"net": module._LPIPS(net=net)})

    return {
        "lpips": lambda net: copy.deepcopy(make_theirs(net)),
        "taming": lambda net: taming.LPIPS(trunk_weights=trunk_states[net]),
        "torchmetrics": torchmetrics,
        "piq": lambda net: piq.LPIPS(trunk_weights=trunk_states[net]),
    }


MODELS = [(origin, net) for origin in ("lpips", "torchmetrics") for net in NETS] + [("taming", "vgg"), ("piq", "vgg")]


@pytest.mark.parametrize("origin,net", MODELS)
def test_whole_models(load, theirs, make_ours, origin, net):
    in0, in1 = pair(1, 35, 35)
    for suffix in SUFFIXES:
        found = load(theirs[origin](net).state_dict(), suffix)
        assert (found.origin, found.net, found.version) == (origin, net, "0.1")
        assert f"a whole model as {origin} has them, net {net}, version 0.1" in str(found)
        assert torch.equal(found.module()(in0, in1), make_ours(net)(in0, in1))


@pytest.mark.parametrize(
    "origin,net,target",
    [(*model, target) for target in TARGETS for model in MODELS if target != "taming" or model[1] == "vgg"],
)
def test_written_for_another_package_they_load_strictly(load, theirs, origin, net, target):
    state = load(theirs[origin](net).state_dict()).state_dict(target)
    module = theirs[target](net)
    expected = module.state_dict()
    assert list(state) == list(expected)
    module.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in expected.items()})
    module.load_state_dict(state, strict=True)
    for name, tensor in theirs[target](net).state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name
    assert load(state).origin == target


@pytest.mark.parametrize("version", ("0.1", "0.0"))
@pytest.mark.parametrize("net", NETS)
def test_linear_weights_that_lpips_comes_with(make_ours, trunk_states, net, version):
    file = Path(pytest.importorskip("lpips").__file__).parent / "weights" / f"v{version}" / f"{net}.pth"
    found = lpips_fast.load_any(file)
    assert (found.origin, found.net, found.version, found.trunk) == ("lpips", net, version, None)
    in0, in1 = pair(1, 35, 35)
    module = found.module(trunk_weights=trunk_states[net])
    assert torch.equal(module(in0, in1), make_ours(net, version=version)(in0, in1))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("index", (0, 1))
@pytest.mark.parametrize("names", ("lin", "lins.", "both"))
def test_own_linear_weights(load, trunk_states, suffix, index, names):
    lin = linear_state("squeeze", index)
    lins = {name.replace("lin", "lins.", 1): tensor for name, tensor in lin.items()}
    found = load({"lin": lin, "lins.": lins, "both": lin | lins}[names], suffix)
    assert (found.net, found.version, found.trunk) == ("squeeze", None, None)
    module = found.module(trunk_weights=trunk_states["squeeze"])
    for own, weight in zip(module.lins, lin.values(), strict=True):
        assert torch.equal(own.model[-1].weight, weight)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_a_model_without_linear_weights(load, make_theirs):
    found = load(make_theirs("alex", lpips=False).state_dict())
    assert (found.origin, found.linear, found.version) == ("lpips", None, None)
    in0, in1 = pair(1, 35, 35)
    torch.testing.assert_close(found.module()(in0, in1), make_theirs("alex", lpips=False)(in0, in1))
    assert list(found.state_dict()) == list(make_theirs("alex", lpips=False).state_dict())
    with raises(ValueError, "torchmetrics", "lpips=False"):
        found.state_dict("torchmetrics")


def test_version_0_0_is_recognised(load, make_ours, make_theirs):
    found = load(make_theirs("alex", version="0.0").state_dict())
    in0, in1 = pair(1, 35, 35)
    assert torch.equal(found.module()(in0, in1), make_ours(version="0.0")(in0, in1))
    assert found.module(version="0.1").version == "0.1"


@pytest.mark.parametrize("origin,net", (("lpips", "alex"), ("torchmetrics", "squeeze"), ("piq", "vgg")))
def test_a_beginning_that_all_names_share(load, theirs, origin, net):
    state = {f"module.loss.{name}": tensor for name, tensor in theirs[origin](net).state_dict().items()}
    assert load(state).origin == origin


AROUND = {
    "flat": lambda state: prefixed(state, "loss.") | OTHER_MODELS,
    "Lightning": lambda state: {
        "epoch": 1,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(OTHER_MODELS | prefixed(state, "loss.perceptual_loss.")),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'l'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(8, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1, "net": None},
    },
    "model and step": lambda state: {"step": 3, "model": state, "optimizer": {"state": {}}},
    "two dicts deep": lambda state: {"checkpoint": {"generator": OTHER_MODELS, "criterion": prefixed(state, "0.")}},
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize(
    "origin,net", (("lpips", "squeeze"), ("torchmetrics", "alex"), ("taming", "vgg"), ("piq", "vgg"))
)
def test_a_part_of_a_larger_checkpoint(tmp_path, theirs, make_ours, around, origin, net):
    torch.save(around(theirs[origin](net).state_dict()), tmp_path / "last.ckpt")
    found = lpips_fast.load_any(tmp_path / "last.ckpt")
    assert (found.origin, found.net, found.version) == (origin, net, "0.1")
    in0, in1 = pair(1, 35, 35)
    assert torch.equal(found.module()(in0, in1), make_ours(net)(in0, in1))
    module = lpips_fast.LPIPS(net=net, model_path=tmp_path / "last.ckpt") if origin != "piq" else found.module()
    assert torch.equal(module(in0, in1), make_ours(net)(in0, in1))


@pytest.mark.parametrize("net", NETS)
def test_torchmetrics_before_0_12(load, theirs, net):
    """Its metric had the network of lpips as `net`. The weights are written with the names of today."""
    state = prefixed(theirs["lpips"](net).state_dict(), "net.")
    for prefix in ("", "val_lpips."):
        found = load(prefixed(state, prefix))
        assert (found.origin, found.net, found.version) == ("torchmetrics", net, "0.1")
    theirs["torchmetrics"](net).load_state_dict(found.state_dict("torchmetrics"), strict=True)


@pytest.mark.parametrize("origin,net", (("lpips", "alex"), ("torchmetrics", "squeeze"), ("taming", "vgg")))
def test_as_model_path(theirs, make_ours, tmp_path, origin, net):
    """Trunk and linear weights are those of the file, whichever package wrote it."""
    torch.save(theirs[origin](net).state_dict(), tmp_path / "model.pth")
    in0, in1 = pair(1, 35, 35)
    module = lpips_fast.LPIPS(net=net, model_path=tmp_path / "model.pth")
    assert torch.equal(module(in0, in1), make_ours(net)(in0, in1))


def test_model_path_of_another_net(theirs, tmp_path):
    torch.save(theirs["lpips"]("squeeze").state_dict(), tmp_path / "model.pth")
    with raises(ValueError, "model.pth", "another net"):
        lpips_fast.LPIPS(net="alex", model_path=tmp_path / "model.pth")
    torch.save(published_linear_weights("vgg", "0.1"), tmp_path / "piq.pt")
    with raises(ValueError, "piq.pt", "vgg", "not squeeze"):
        lpips_fast.LPIPS(net="squeeze", model_path=tmp_path / "piq.pt")


def test_model_path_without_linear_weights(make_theirs, make_ours, tmp_path):
    torch.save(make_theirs("alex", lpips=False).state_dict(), tmp_path / "model.pth")
    in0, in1 = pair(1, 35, 35)
    module = lpips_fast.LPIPS(lpips=False, model_path=tmp_path / "model.pth")
    assert torch.equal(module(in0, in1), make_ours(lpips=False)(in0, in1))
    with raises(ValueError, "model.pth", "no linear weights", "lpips=False"):
        lpips_fast.LPIPS(model_path=tmp_path / "model.pth")
