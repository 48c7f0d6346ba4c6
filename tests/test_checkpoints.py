"""Weights in the files of lpips, taming, torchmetrics and piq: whose they are, what they hold, and their way back."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import lpips_fast
from lpips_fast.compat import piq, taming
from lpips_fast.weights.files import save_state_dict
from lpips_fast.weights.formats import TARGETS, SeveralError
from lpips_fast.weights.published import published_linear_weights
from tests.support.images import pair
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.weights import linear_state, without

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
    """Makes a package's own module with the session's trunk; taming's has the keys of lpips but for lins.*."""

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


@pytest.mark.parametrize("shape", ((1, -1, 1, 1), (-1, 1, 1)))
def test_list_of_linear_weights_as_piq_has_it(tmp_path, shape):
    published = published_linear_weights("vgg", "0.1")
    torch.save([w.reshape(shape) for w in published], tmp_path / "lpips_weights.pt")
    found = lpips_fast.load_any(tmp_path / "lpips_weights.pt")
    assert (found.origin, found.net, found.version, found.trunk) == ("piq", "vgg", "0.1", None)
    assert all(torch.equal(w, p) for w, p in zip(found.linear, published, strict=True))


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


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


# A discriminator's and a classifier's names, of which some are piq's, too.
OTHER_MODELS = {
    "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
    "model.0.weight": torch.zeros(64, 3, 4, 4),
    "loss.discriminator.model.0.weight": torch.zeros(64, 3, 3, 3),
    "loss.discriminator.model.2.weight": torch.zeros(128, 64, 4, 4),
    "num_updates": torch.tensor(3),
}
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


def test_a_part_of_safetensors(load):
    state = prefixed(linear_state("squeeze"), "lpips.") | OTHER_MODELS
    assert load(state, ".safetensors").net == "squeeze"


def test_the_error_of_several_crosses_processes():
    error = SeveralError("two.ckpt", ["a.", "b."])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.prefixes) == (str(error), ["a.", "b."])
    assert all(words in str(error) for words in ("two.ckpt", "several LPIPS", "'a.', 'b.'"))


def test_several(tmp_path):
    """The prefix tells which: a whole one before a beginning, with or without the dict's name."""
    states = {"loss.": linear_state(), "loss.old.": linear_state(), "metric.": linear_state(), "ema": linear_state()}
    ema = states.pop("ema")
    state = {name: t for prefix, linear in states.items() for name, t in prefixed(linear, prefix).items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state | OTHER_MODELS, "ema": prefixed(ema, "metric.")}, path)
    with raises(
        ValueError,
        str(path),
        "several LPIPS",
        "'ema.metric.', 'state_dict.loss.', 'state_dict.loss.old.', 'state_dict.metric.'",
    ):
        lpips_fast.load_any(path)
    for prefix, expected in {
        "loss": states["loss."],
        "loss.": states["loss."],
        "state_dict.loss.": states["loss."],
        "loss.old": states["loss.old."],
        "state_dict.metric": states["metric."],
        "ema.metric": ema,
        "ema": ema,
    }.items():
        found = lpips_fast.load_any(path, prefix=prefix)
        assert all(torch.equal(a, b) for a, b in zip(found.linear, expected.values(), strict=True)), prefix
    with raises(ValueError, "several LPIPS", "'ema.metric.', 'state_dict.metric.'"):
        lpips_fast.load_any(path, prefix="metric")
    for prefix in ("los", "state_dict.loss.new"):
        with raises(ValueError, str(path), f"no LPIPS with prefix {prefix!r}", "'state_dict.loss.old.'"):
            lpips_fast.load_any(path, prefix=prefix)
    with raises(TypeError, "prefix", "string", "int"):
        lpips_fast.load_any(path, prefix=1)


def test_prefix_of_another_model(tmp_path):
    """The error tells what its names are not."""
    torch.save(prefixed(linear_state(), "lpips.") | OTHER_MODELS, tmp_path / "last.ckpt")
    with raises(ValueError, "last.ckpt", "lacks", "'0.bias'"):
        lpips_fast.load_any(tmp_path / "last.ckpt", prefix="loss.discriminator")
    with raises(ValueError, "last.ckpt", "no LPIPS with prefix 'l'", "'lpips.'"):
        lpips_fast.load_any(tmp_path / "last.ckpt", prefix="l")
    torch.save(prefixed(OTHER_MODELS, "gan.") | OTHER_MODELS, tmp_path / "gan.ckpt")
    with raises(ValueError, "gan.ckpt", "no LPIPS with prefix 'gan.loss.disc'"):
        lpips_fast.load_any(tmp_path / "gan.ckpt", prefix="gan.loss.disc")
    torch.save(OTHER_MODELS, tmp_path / "last.ckpt")
    with raises(ValueError, "last.ckpt", "none of LPIPS's", "'encoder.conv_in.weight'"):
        lpips_fast.load_any(tmp_path / "last.ckpt")
    with raises(ValueError, "last.ckpt", "no LPIPS with prefix 'lpips'", "'loss.discriminator.'"):
        lpips_fast.load_any(tmp_path / "last.ckpt", prefix="lpips")


@pytest.mark.parametrize("net", NETS)
def test_torchmetrics_before_0_12(load, theirs, net):
    """Its network was lpips's, as `net` of the metric: now written with the names of today."""
    state = prefixed(theirs["lpips"](net).state_dict(), "net.")
    for prefix in ("", "val_lpips."):
        found = load(prefixed(state, prefix))
        assert (found.origin, found.net, found.version) == ("torchmetrics", net, "0.1")
    theirs["torchmetrics"](net).load_state_dict(found.state_dict("torchmetrics"), strict=True)


def without_all(*parts):
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def plus(name, *shape, dtype=torch.float32):
    return lambda state: {**state, name: torch.zeros(shape, dtype=dtype)}


BAD = {
    "empty": (lambda s: {}, ("no tensors",)),
    "another model": (lambda s: {"encoder.weight": torch.zeros(1)}, ("none of LPIPS's", "'encoder.weight'")),
    "two": (lambda s: {**s, **prefixed(s, "other.")}, ("several", "prefix, one of '', 'other.'")),
    "missing": (lambda s: without(s, "net.slice2.3.bias"), ("lacks", "'3.bias'", "alex")),
    "extra": (plus("net.slice2.4.bias", 3), ("'4.bias'", "alex")),
    "shape": (plus("net.slice2.3.bias", 3), ("'3.bias'", "[192]", "[3]")),
    "type": (plus("net.slice2.3.bias", 192, dtype=torch.int32), ("'3.bias'", "floating", "torch.int32")),
    "slice": (lambda s: {n.replace("slice2.3", "slice3.3"): t for n, t in s.items()}, ("'3.weight'", "slice 2", "3")),
    "mixed": (plus("model.0.weight", 64, 3, 11, 11), ("'model.0.weight'",)),
    "scaling": (plus("scaling_layer.shift", 1, 3, 1, 1), ("scaling_layer.shift", "[-0.03, -0.088, -0.188]", "[0.0,")),
    "half of scaling": (lambda s: without(s, "scaling_layer.shift"), ("scaling_layer.shift", "scaling_layer.scale")),
    "layer missing": (without_all("lin3", "lins.3"), ("[64, 192, 384, 256]", "no net's", "[64, 192, 384, 256, 256]")),
    "layer's shape": (plus("lin3.model.1.weight", 1, 384, 1, 1), ("lin3.model.1.weight", "[1, 256, 1, 1]")),
    "bias of a layer": (plus("lin3.model.1.bias", 1), ("lin3.model.1.bias",)),
    "duplicates differ": (plus("lin3.model.1.weight", 1, 256, 1, 1), ("lins.3.model.1.weight", "differ")),
    "scaling alone": (lambda s: {n: s[n] for n in s if n.startswith("scaling")}, ("neither a trunk nor linear",)),
    "trunk alone": (without_all("lin", "scaling"), ("neither scaling_layer.* nor linear weights",)),
}


@pytest.mark.parametrize("change,words", BAD.values(), ids=BAD)
def test_bad_files(load, make_theirs, change, words):
    with raises(ValueError, "weights.pth", *words):
        load(change(make_theirs("alex").state_dict()))


def test_piq_has_vgg_only(load, trunk_states):
    state = {name.replace("features", "model"): tensor for name, tensor in trunk_states["alex"].items()}
    with raises(ValueError, "weights.pth", "piq", "VGG16", "'model.0.bias'"):
        load(state)


@pytest.mark.parametrize("content", ([1.0], [torch.zeros(1, 64, 1, 1)], [torch.zeros(1, 2, 3, 4)] * 5, 3, "text"))
def test_not_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with raises(ValueError, "other.pth", "must hold", "another list" if isinstance(content, list) else "state_dict"):
        lpips_fast.load_any(tmp_path / "other.pth")


@pytest.mark.parametrize("origin,net", (("lpips", "alex"), ("torchmetrics", "squeeze"), ("taming", "vgg")))
def test_as_model_path(theirs, make_ours, tmp_path, origin, net):
    """Whoever wrote it, trunk and linear weights are the file's."""
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


def test_unknown_target(load):
    found = load(linear_state())
    with raises(ValueError, "target", "'taming'", "'piq'"):
        found.state_dict("piq")
    with raises(ValueError, "taming", "vgg", "alex"):
        found.state_dict("taming")
