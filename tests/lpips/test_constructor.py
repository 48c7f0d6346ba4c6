"""The options of the constructor, the errors for wrong ones, and the weights that it loads."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch._dynamo.testing

import lpips_fast
import lpips_fast.distance.grad_in_forward
import lpips_fast.trunk.execute
from tests.support.images import pair
from tests.support.parameters import NETS
from tests.support.raises import raises


@pytest.mark.parametrize(
    "options,kind,words",
    (
        ({"net": "resnet"}, ValueError, ("net", "'resnet'", "'alex'", "'vgg'", "'squeeze'")),
        ({"net": None}, ValueError, ("net", "None", "'alex'")),
        ({"version": "0.2"}, ValueError, ("version", "'0.2'", "'0.1'", "'0.0'")),
        ({"version": 0.1}, ValueError, ("version", "0.1", "'0.1'")),
        ({"backend": "gpu"}, ValueError, ("backend", "'gpu'", "'auto'", "'reference'", "'cpu'", "'cuda'", "'triton'")),
        ({"pnet_tune": True}, ValueError, ("pnet_tune", "eval_mode=False")),
        ({"network": "alex"}, TypeError, ("'network'",)),
        ({"model": "net-lin", "use_gpu": True}, TypeError, ("'model'", "2020", "LPIPS(net='alex').to('cuda')")),
    ),
    ids=str,
)
def test_bad_options(options, kind, words):
    with raises(kind, *words):
        lpips_fast.LPIPS(pnet_rand=True, **options)


@pytest.mark.parametrize("name", ("lpips", "pretrained", "eval_mode", "pnet_rand", "grad_in_forward"))
def test_strings_for_flags(name):
    """The string 'False' is true, so it is refused."""
    with raises(TypeError, name, "True or False", "'False'"):
        lpips_fast.LPIPS(**{"pnet_rand": True, name: "False"})


@pytest.mark.parametrize("name", ("model_path", "trunk_weights"))
@pytest.mark.parametrize("given", (1, [torch.zeros(1)], torch.nn.Linear(1, 1)), ids=("int", "list", "Linear"))
def test_weights_that_are_no_path(name, given):
    with raises(TypeError, name, "path", type(given).__name__):
        lpips_fast.LPIPS(pnet_rand=True, **{name: given})


@pytest.mark.parametrize("net", ("VGG", None, ["vgg"]))
def test_unknown_net_of_any_type(net):
    with raises(ValueError, "net must be one of", repr(net)):
        lpips_fast.LPIPS(net=net)


@pytest.mark.parametrize("chunk_size", (0, -1, 1.5, True, "all"))
def test_chunk_size_is_checked(make_ours, chunk_size):
    with pytest.raises(ValueError, match="chunk_size"):
        make_ours("alex", chunk_size=chunk_size)


@pytest.mark.parametrize("net", NETS)
def test_published_weights_are_those_of_lpips_to_the_bit(make_ours, make_theirs, net):
    for version in ("0.1", "0.0"):
        ours, theirs = make_ours(net, version=version), make_theirs(net, version=version)
        for lin, lin_ref in zip(ours.lins, theirs.lins, strict=True):
            assert torch.equal(lin.model[1].weight, lin_ref.model[1].weight)


def test_without_dropout_weights_load_too(make_ours):
    """lpips silently keeps random weights here, which makes distances negative."""
    with_dropout, without = make_ours(), make_ours(use_dropout=False)
    assert without.lin0.model[0].weight.shape == (1, 64, 1, 1)
    in0, in1 = pair(2, 31, 31)
    assert torch.equal(with_dropout(in0, in1), without(in0, in1))


@pytest.mark.parametrize("net", NETS)
def test_silent(make_ours, net, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_ours(net)(*pair(1, 35, 35))
    assert capsys.readouterr() == ("", "")
