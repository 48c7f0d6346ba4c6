"""Names of weights in files: of linear weights, of one LPIPS among several, of other models, and errors about them."""

from __future__ import annotations

import pickle

import pytest
import torch

from lpips_fast.weights.files import save_state_dict
from lpips_fast.weights.formats import SeveralError, read_weights
from lpips_fast.weights.published import published_linear_weights
from tests.support.checkpoints import OTHER_MODELS, prefixed
from tests.support.raises import raises
from tests.support.weights import linear_state, saved, without


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
@pytest.mark.parametrize("index", (0, 1))
@pytest.mark.parametrize("duplicated", (False, True))
@pytest.mark.parametrize("use_dropout", (False, True))
def test_model_path(make_ours, tmp_path, suffix, index, duplicated, use_dropout):
    """The names are those that lpips saves: trained with or without dropout, with or without the `lins` duplicates."""
    state = linear_state(index=index)
    if duplicated:
        state |= {name.replace("lin", "lins.", 1): tensor.clone() for name, tensor in state.items()}
    module = make_ours(model_path=saved(state, tmp_path / f"lin{suffix}"), use_dropout=use_dropout)
    for k, lin in enumerate(module.lins):
        assert torch.equal(lin.model[-1].weight, state[f"lin{k}.model.{index}.weight"])


def with_lin0(tensor):
    return lambda state: {**state, "lin0.model.1.weight": tensor}


def plus(name, *shape, dtype=torch.float32):
    return lambda state: {**state, name: torch.zeros(shape, dtype=dtype)}


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


@pytest.fixture
def load(tmp_path):
    """Writes a state and reads it."""

    def load(state, suffix=".pth"):
        save_state_dict(tmp_path / f"weights{suffix}", state)
        return read_weights(tmp_path / f"weights{suffix}")

    return load


@pytest.mark.parametrize("shape", ((1, -1, 1, 1), (-1, 1, 1)))
def test_list_of_linear_weights_as_piq_has_it(tmp_path, shape):
    published = published_linear_weights("vgg", "0.1")
    torch.save([w.reshape(shape) for w in published], tmp_path / "lpips_weights.pt")
    found = read_weights(tmp_path / "lpips_weights.pt")
    assert (found.origin, found.net, found.version, found.trunk) == ("piq", "vgg", "0.1", None)
    assert all(torch.equal(w, p) for w, p in zip(found.linear, published, strict=True))


def test_a_part_of_safetensors(load):
    state = prefixed(linear_state("squeeze"), "lpips.") | OTHER_MODELS
    assert load(state, ".safetensors").net == "squeeze"


def test_the_error_of_several_crosses_processes():
    error = SeveralError("two.ckpt", ["a.", "b."])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.prefixes) == (str(error), ["a.", "b."])
    assert all(words in str(error) for words in ("two.ckpt", "several LPIPS", "'a.', 'b.'"))


def test_several(tmp_path):
    """The prefix selects one: an exact match wins over a longer prefix; the dict's name may be part of it."""
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
        read_weights(path)
    for prefix, expected in {
        "loss": states["loss."],
        "loss.": states["loss."],
        "state_dict.loss.": states["loss."],
        "loss.old": states["loss.old."],
        "state_dict.metric": states["metric."],
        "ema.metric": ema,
        "ema": ema,
    }.items():
        found = read_weights(path, prefix=prefix)
        assert all(torch.equal(a, b) for a, b in zip(found.linear, expected.values(), strict=True)), prefix
    with raises(ValueError, "several LPIPS", "'ema.metric.', 'state_dict.metric.'"):
        read_weights(path, prefix="metric")
    for prefix in ("los", "state_dict.loss.new"):
        with raises(ValueError, str(path), f"no LPIPS with prefix {prefix!r}", "'state_dict.loss.old.'"):
            read_weights(path, prefix=prefix)
    with raises(TypeError, "prefix", "string", "int"):
        read_weights(path, prefix=1)


def test_prefix_of_another_model(tmp_path):
    """The error says what the names lack."""
    torch.save(prefixed(linear_state(), "lpips.") | OTHER_MODELS, tmp_path / "last.ckpt")
    with raises(ValueError, "last.ckpt", "lacks", "'0.bias'"):
        read_weights(tmp_path / "last.ckpt", prefix="loss.discriminator")
    with raises(ValueError, "last.ckpt", "no LPIPS with prefix 'l'", "'lpips.'"):
        read_weights(tmp_path / "last.ckpt", prefix="l")
    torch.save(prefixed(OTHER_MODELS, "gan.") | OTHER_MODELS, tmp_path / "gan.ckpt")
    with raises(ValueError, "gan.ckpt", "no LPIPS with prefix 'gan.loss.disc'"):
        read_weights(tmp_path / "gan.ckpt", prefix="gan.loss.disc")
    torch.save(OTHER_MODELS, tmp_path / "last.ckpt")
    with raises(ValueError, "last.ckpt", "none of LPIPS's", "'encoder.conv_in.weight'"):
        read_weights(tmp_path / "last.ckpt")
    with raises(ValueError, "last.ckpt", "no LPIPS with prefix 'lpips'", "'loss.discriminator.'"):
        read_weights(tmp_path / "last.ckpt", prefix="lpips")


def without_all(*parts):
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


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
        read_weights(tmp_path / "other.pth")


def test_unknown_target(load):
    found = load(linear_state())
    with raises(ValueError, "target", "'taming'", "'piq'"):
        found.state_dict("piq")
    with raises(ValueError, "taming", "vgg", "alex"):
        found.state_dict("taming")
