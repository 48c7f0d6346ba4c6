"""state_dict and load_state_dict: names, strictness, persistent=False, and weights loaded after a call."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch._dynamo.testing

import lpips_fast
from tests.support.comparisons import assert_close
from tests.support.images import pair
from tests.support.modules import Loss
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.tolerances import REORDERED_TOLERANCE, ROUNDING_TOLERANCE


@pytest.mark.parametrize("options", ({}, {"use_dropout": False}, {"lpips": False}, {"version": "0.0"}), ids=str)
@pytest.mark.parametrize("net", NETS)
def test_state_dict_loads_strictly_both_ways(make_ours, make_theirs, net, options):
    ours, theirs = make_ours(net, **options), copy.deepcopy(make_theirs(net, **options))
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for source, target in ((ours, theirs), (theirs, ours)):
        changed = {name: tensor + 1 for name, tensor in source.state_dict().items()}
        target.load_state_dict(changed, strict=True)
        assert all(torch.equal(tensor, changed[name]) for name, tensor in target.state_dict().items())


def test_checkpoint_of_a_loss_that_holds_lpips(make_ours, make_theirs):
    theirs, ours = Loss(copy.deepcopy(make_theirs())), Loss(make_ours(pretrained=False))
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours.load_state_dict(torch.load(file, weights_only=True), strict=True)
    in0, in1 = pair(1, 31, 31)
    assert_close(ours.perceptual_loss(in0, in1), theirs.perceptual_loss(in0, in1).double(), (0, REORDERED_TOLERANCE))


@pytest.mark.parametrize("prefix", ("", "perceptual_loss."))
def test_not_persistent(make_ours, make_theirs, prefix):
    """The checkpoint has no weights of LPIPS. One without them loads strictly, and so does one with them."""
    module = make_ours(persistent=False)
    holder = Loss(module) if prefix else module
    before = {name: p.clone() for name, p in module.named_parameters()}
    state = holder.state_dict()
    assert list(state) == (["log_variance"] if prefix else [])
    others = {f"{prefix}{name}": tensor + 1 for name, tensor in make_theirs().state_dict().items()}
    for given in (state, {**state, **others}):
        assert not any(holder.load_state_dict(given, strict=True))
        assert not any(holder.load_state_dict(given, strict=True, assign=True))
        assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert not any(p.requires_grad for p in module.parameters())
    if prefix:
        wrong = {**state, "other": torch.zeros(1)}
        assert holder.load_state_dict(wrong, strict=False).unexpected_keys == ["other"]
    assert len(copy.deepcopy(holder).state_dict()) == len(state)
    in0, in1 = pair(1, 31, 31)
    assert torch.equal(module(in0, in1), make_ours()(in0, in1))


@pytest.mark.parametrize("net", NETS)
def test_new_weights_take_effect_after_a_call(make_ours, net):
    """Tensors derived from the weights are made again when the weights change."""
    module, (in0, in1) = make_ours(net), pair(1, 48, 48)
    first = module(in0, in1)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: 2 * t if name.startswith("lin") else t for name, t in state.items()})
    assert_close(module(in0, in1), 2 * first.double(), (0, ROUNDING_TOLERANCE))
    others = [lpips_fast.LPIPS(net=net, pnet_rand=True) for _ in range(2)]
    module.load_state_dict(others[0].state_dict())
    assert_close(module(in0, in1), others[0](in0, in1).double(), (0, ROUNDING_TOLERANCE))
    for parameter, other in zip(module.net.parameters(), others[1].net.parameters()):
        parameter.data = other.data  # as optimizers that swap or flatten parameters do
    assert_close(module(in0, in1), others[1](in0, in1).double(), (0, ROUNDING_TOLERANCE))


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
