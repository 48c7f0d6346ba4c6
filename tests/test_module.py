"""LPIPS as an nn.Module: keys, names that scripts use, freezing, training, copies, silence, torch.compile."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import lpips_fast

from .conftest import BACKENDS, NETS
from .images import VALUE_TOLERANCE, assert_close, pair


class Loss(nn.Module):
    """A training loss that holds LPIPS, as generative models do."""

    def __init__(self, perceptual):
        super().__init__()
        self.perceptual_loss = perceptual
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, in0, in1):
        return self.perceptual_loss(in0, in1)


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
    assert_close(ours.perceptual_loss(in0, in1), theirs.perceptual_loss(in0, in1).double(), (0, 1e-5))


@pytest.mark.parametrize("net", NETS)
def test_published_weights_are_those_of_lpips_to_the_bit(make_ours, make_theirs, net):
    for version in ("0.1", "0.0"):
        ours, theirs = make_ours(net, version=version), make_theirs(net, version=version)
        for lin, lin_ref in zip(ours.lins, theirs.lins, strict=True):
            assert torch.equal(lin.model[1].weight, lin_ref.model[1].weight)


def test_without_dropout_weights_load_too(make_ours):
    """lpips silently keeps random weights here: the source of negative distances."""
    with_dropout, without = make_ours(), make_ours(use_dropout=False)
    assert without.lin0.model[0].weight.shape == (1, 64, 1, 1)
    in0, in1 = pair(2, 31, 31)
    assert torch.equal(with_dropout(in0, in1), without(in0, in1))


def test_signatures_begin_as_those_of_lpips():
    import lpips

    for name in ("LPIPS", "NetLinLayer", "Dist2LogitLayer", "BCERankingLoss", "ScalingLayer"):
        for method in ("__init__", "forward"):
            theirs = inspect.signature(getattr(getattr(lpips, name), method)).parameters.values()
            ours = inspect.signature(getattr(getattr(lpips_fast, name), method)).parameters.values()
            assert [(p.name, p.default) for p in ours][: len(theirs)] == [(p.name, p.default) for p in theirs]
            # Not keyword-only in forward: torch.onnx.export(dynamo=False) gives all defaults by position.
            for p in list(ours)[len(theirs) :]:
                assert p.kind == p.VAR_KEYWORD or p.default is not p.empty
                assert (p.kind == p.POSITIONAL_OR_KEYWORD) == (method == "forward")
    for name in ("normalize_tensor", "spatial_average", "upsample", "load_image", "im2tensor", "tensor2im"):
        theirs = inspect.signature(getattr(lpips, name)).parameters.values()
        ours = inspect.signature(getattr(lpips_fast, name)).parameters.values()
        assert [(p.name, p.default) for p in ours][: len(theirs)] == [(p.name, p.default) for p in theirs]
        assert all(p.default is not p.empty for p in list(ours)[len(theirs) :])


@pytest.mark.parametrize("net", NETS)
def test_attributes(make_ours, make_theirs, net):
    ours, theirs = make_ours(net), make_theirs(net)
    for name in ("pnet_type", "pnet_tune", "spatial", "lpips", "version", "chns", "L"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [getattr(ours, f"lin{k}") is ours.lins[k] for k in range(ours.L)] == [True] * ours.L
    assert ours.net.N_slices == theirs.net.N_slices == ours.L
    x, _ = pair(1, 35, 35)
    x = ours.scaling_layer(x)
    taps, expected = ours.net(x), theirs.net(x)
    assert taps._fields == expected._fields
    for field, tap in zip(taps._fields, taps):
        assert_close(tap, getattr(expected, field).double(), VALUE_TOLERANCE[torch.float32], field)


def test_helpers_give_the_same_as_those_of_lpips():
    import lpips

    feats = torch.randn(2, 5, 3, 4)
    assert_close(lpips_fast.normalize_tensor(feats), lpips.normalize_tensor(feats).double(), (0, 1e-6))
    assert torch.equal(lpips_fast.spatial_average(feats), lpips.spatial_average(feats))
    assert torch.equal(lpips_fast.spatial_average(feats, keepdim=False), lpips.spatial_average(feats, keepdim=False))
    assert torch.equal(lpips_fast.upsample(feats, (7, 9)), lpips.upsample(feats, (7, 9)))
    assert lpips_fast.upsample(feats).shape == lpips.upsample(feats).shape
    torch.testing.assert_close(lpips_fast.ScalingLayer()(feats[:, :3]), lpips.ScalingLayer()(feats[:, :3]))


def test_normalize_tensor_has_no_nan_gradient_at_zero():
    feats = torch.zeros(1, 3, 2, 2, requires_grad=True)
    lpips_fast.normalize_tensor(feats).sum().backward()
    assert torch.equal(feats.grad, torch.zeros_like(feats))


@pytest.mark.parametrize("unfreeze", ("requires_grad_", "flags", "own"))
@pytest.mark.parametrize("options", ({}, {"grad_in_forward": True}, {"spatial": True}, {"lpips": False}), ids=str)
def test_frozen_and_in_eval_whatever_the_parent_does(make_ours, options, unfreeze):
    """The toggle of a GAN, "unfreeze all", and an optimizer with all parameters: nothing changes."""
    loss = Loss(make_ours(**options)).train()
    module = loss.perceptual_loss
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if unfreeze == "requires_grad_":
        loss.requires_grad_(True)
    elif unfreeze == "flags":
        for p in loss.parameters():
            p.requires_grad = True
    else:
        assert not any(p.requires_grad for p in module.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1.0, weight_decay=0.1)
    in0, in1 = pair(1, 31, 31)
    values = set()
    for _ in range(3):
        assert not module(in0, in1).requires_grad
        value = module(in0.requires_grad_(), in1).mean()
        values.add(value.item())
        (value + loss.log_variance).backward()
        optimizer.step()
        in0 = in0.detach()
    assert len(values) == 1
    assert loss.log_variance != 0
    assert loss.training
    assert not any(m.training for m in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert make_ours().train().train(True).training is False


def test_frozen_in_plain_torch_too(make_ours):
    """Where torch.func's transformations take the place of the kernels."""
    module = make_ours()
    for p in module.parameters():
        p.requires_grad = True
    in0, in1 = pair(2, 31, 31)
    assert not torch.func.vmap(lambda x: module(x, in1[0]))(in0).requires_grad


def test_frozen_where_layers_are_called_too(make_ours):
    loss = Loss(make_ours())
    module = loss.perceptual_loss
    module.net.slice2[0] = nn.AvgPool2d(3, 2)
    module.scaling_layer = nn.Conv2d(3, 3, 1)
    module.lins[0].register_forward_hook(lambda *_: None)
    loss.requires_grad_(True)
    in0, in1 = pair(1, 40, 40)
    assert not module(in0, in1).requires_grad
    assert not module.net(in0)[0].requires_grad
    in0.requires_grad_()
    torch._dynamo.reset()
    for call in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        call(in0, in1).sum().backward()
        assert all(p.grad is None for p in module.parameters())
        assert in0.grad.abs().max() > 0
    assert all(p.requires_grad for p in module.parameters())  # they are somebody else's to set
    assert not torch.func.vmap(lambda x: module(x, in1[0]))(in0.detach()).requires_grad


def test_frozen_with_a_trunk_of_ours_put_in(make_ours):
    module = make_ours()
    module.net = lpips_fast.pretrained_networks.alexnet(pretrained=False)
    module.net.load_state_dict(make_ours().net.state_dict())
    module.net.requires_grad_(True)
    in0, in1 = pair(1, 40, 40)
    value = module(in0.requires_grad_(), in1)
    assert_close(value, make_ours()(in0, in1).double(), VALUE_TOLERANCE[torch.float32])
    value.sum().backward()
    assert all(p.grad is None for p in module.parameters())


def test_frozen_in_many_threads(make_ours):
    """Where layers are called: flags and parameters are as before afterwards."""
    module = make_ours()
    module.net.slice2[0] = nn.AvgPool2d(3, 2)
    for p in module.parameters():
        p.requires_grad = True
    in0, in1 = pair(1, 40, 40)
    in0.requires_grad_()
    expected, found = module(in0, in1), []
    threads = [threading.Thread(target=lambda: found.extend(module(in0, in1) for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert all(torch.equal(value, expected) for value in found)
    sum(found).sum().backward()
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.grad is None for p in module.parameters())


def test_a_stock_trunk_is_converted_once_though_other_layers_are_called(make_ours):
    module = make_ours()
    module.lins[0].register_forward_hook(lambda *_: None)
    for p in module.parameters():
        p.requires_grad = True
    in0, in1 = pair(1, 40, 40)
    module(in0, in1)
    kept = dict(module.net._kept)
    assert kept
    module(in0.requires_grad_(), in1)
    assert all(module.net._kept[key] is value for key, value in kept.items())


def test_a_trunk_of_somebodys_own_is_not_touched(make_ours):
    """It may be in training elsewhere."""
    module = make_ours()
    encoder = module.net.slice1.requires_grad_(True)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return [self.encoder(x).repeat(1, n, 1, 1) for n in (1, 3, 6, 4, 4)]

    module.net = Encoder()
    in0, in1 = pair(1, 40, 40)
    module(in0.requires_grad_(), in1).sum().backward()
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize("prefix", ("", "perceptual_loss."))
def test_not_persistent(make_ours, make_theirs, prefix):
    """No weights in the checkpoint; none missing from one without them; those of one with them are ignored."""
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
def test_nothing_to_optimise_and_no_graph_for_plain_images(make_ours, net):
    module = make_ours(net)
    assert not any(p.requires_grad for p in module.parameters())
    assert not module(*pair(1, 35, 35)).requires_grad


def test_training_mode_has_dropout_and_trains_the_linear_weights(make_ours):
    module = make_ours(eval_mode=False)
    in0, in1 = pair(2, 31, 31)
    assert module.training
    first, second = module(in0, in1), module(in0, in1)
    assert not torch.equal(first, second)  # dropout
    first.sum().backward()
    names = {name for name, p in module.named_parameters() if p.grad is not None}
    assert names == {f"lin{k}.model.1.weight" for k in range(5)}
    assert torch.equal(module.eval()(in0, in1), make_ours()(in0, in1))
    assert module.train()(in0, in1).requires_grad


@pytest.mark.parametrize("net", NETS)
def test_clamping_as_people_calibrate(make_ours, make_theirs, net):
    """The loop of lpips' Trainer over all 1x1 convolutions, those of SqueezeNet's trunk among them."""
    ours, theirs = make_ours(net, eval_mode=False), copy.deepcopy(make_theirs(net, eval_mode=False))
    in0, in1 = pair(1, 31, 31)
    ours.eval()(in0, in1)  # the trunk keeps what it makes of its weights
    clamped = []
    for module in (ours, theirs):
        with torch.no_grad():
            for lin in module.lins:
                lin.model[-1].weight.sub_(0.01)
        for m in module.modules():
            if hasattr(m, "weight") and m.kernel_size == (1, 1):
                m.weight.data = torch.clamp(m.weight.data, min=0)
        clamped.append({name: p for name, p in module.named_parameters() if (p >= 0).all()})
    assert clamped[0].keys() == clamped[1].keys()
    assert {f"lin{k}.model.1.weight" for k in range(ours.L)} <= clamped[0].keys()
    assert_close(ours(in0, in1), theirs.eval()(in0, in1).double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("spatial", (False, True), ids=("mean", "spatial"))
def test_dropout_drops_squared_differences(make_ours, make_theirs, spatial):
    """As in lpips: with nothing dropped both agree, and the half that is dropped is made up for on average."""
    ours, theirs = make_ours(eval_mode=False, spatial=spatial), make_theirs(eval_mode=False, spatial=spatial)
    in0, in1 = pair(2, 31, 31)
    with torch.no_grad():
        mean = torch.stack([ours(in0, in1) for _ in range(100)]).mean(0).mean((1, 2, 3))
    for module in (ours, theirs):
        for dropout in (m for m in module.modules() if isinstance(m, nn.Dropout)):
            assert dropout.p == 0.5
            dropout.p = 0.0
    (value, parts), (expected, expected_parts) = (m(in0, in1, retPerLayer=True) for m in (ours, theirs))
    for found, exact in zip((value, *parts), (expected, *expected_parts), strict=True):
        assert_close(found, exact.double(), VALUE_TOLERANCE[torch.float32])
    assert_close(mean, expected.double().mean((1, 2, 3)), (0, 0.05))


@pytest.mark.parametrize("spatial", (False, True), ids=("mean", "spatial"))
def test_dropout_in_low_precision_is_summed_in_float32(make_ours, spatial):
    module, (in0, in1) = make_ours(eval_mode=False, spatial=spatial), pair(1, 31, 31)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(in0, in1).dtype == torch.float32
    assert module.half()(in0.half(), in1.half()).dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_to_the_linear_weights(make_ours, make_theirs, backend):
    ours = make_ours(eval_mode=False, use_dropout=False, backend=backend)
    theirs = copy.deepcopy(make_theirs(eval_mode=False, use_dropout=False))
    theirs.load_state_dict(ours.state_dict())
    theirs.double()
    in0, in1 = pair(3, 31, 31)
    ours(in0, in1).sum().backward()
    theirs(in0.double(), in1.double()).sum().backward()
    for lin, lin_ref in zip(ours.lins, theirs.lins):
        assert_close(lin.model[0].weight.grad, lin_ref.model[0].weight.grad, (1e-6, 1e-4))


def test_tuning_the_trunk(make_ours, make_theirs):
    ours = make_ours(eval_mode=False, pnet_tune=True, use_dropout=False)
    theirs = copy.deepcopy(make_theirs(eval_mode=False, use_dropout=False)).requires_grad_()
    theirs.load_state_dict(ours.state_dict())
    theirs.double()
    in0, in1 = pair(2, 31, 31)
    ours(in0, in1).sum().backward()
    theirs(in0.double(), in1.double()).sum().backward()
    for (name, p), (name_ref, p_ref) in zip(ours.net.named_parameters(), theirs.net.named_parameters(), strict=True):
        assert name == name_ref
        assert_close(p.grad, p_ref.grad, (1e-4, 1e-3), name)
    before = ours.net.slice1[0].weight.detach().clone()
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    value = ours(in0, in1)
    assert not torch.equal(ours.net.slice1[0].weight, before)
    fresh = make_ours(use_dropout=False)
    fresh.load_state_dict(ours.state_dict())
    assert_close(value, fresh(in0, in1).double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("net", NETS)
def test_new_weights_take_effect_after_a_call(make_ours, net):
    """Nothing derived from the weights outlives them."""
    module, (in0, in1) = make_ours(net), pair(1, 48, 48)
    first = module(in0, in1)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: 2 * t if name.startswith("lin") else t for name, t in state.items()})
    assert_close(module(in0, in1), 2 * first.double(), (0, 1e-6))
    others = [lpips_fast.LPIPS(net=net, pnet_rand=True) for _ in range(2)]
    module.load_state_dict(others[0].state_dict())
    assert_close(module(in0, in1), others[0](in0, in1).double(), (0, 1e-6))
    for parameter, other in zip(module.net.parameters(), others[1].net.parameters()):
        parameter.data = other.data  # as optimizers with swapped or flattened parameters do
    assert_close(module(in0, in1), others[1](in0, in1).double(), (0, 1e-6))


def test_a_layer_that_is_replaced(make_ours, make_theirs):
    """The layers are what counts, as in lpips; so they do in replicas of nn.DataParallel, which have others."""
    ours, theirs, (in0, in1) = make_ours(), copy.deepcopy(make_theirs()), pair(1, 40, 40)
    before = ours(in0, in1)
    layer = nn.Conv2d(3, 64, 11, 4, 2).requires_grad_(False)
    ours.net.slice1[0] = theirs.net.slice1[0] = layer
    value = ours(in0, in1)
    assert_close(value, theirs(in0, in1).double(), VALUE_TOLERANCE[torch.float32])
    assert not torch.allclose(value, before, rtol=0.01)
    replica = ours.net._replicate_for_data_parallel()
    assert replica._kept is not ours.net._kept


def replicated(module):
    """A replica as nn.DataParallel makes it: parameters are tensors in plain attributes."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        setattr(replica, name, replicated(child))
    for name, p in module.named_parameters(recurse=False):
        setattr(replica, name, p.detach().clone())
    for name, buffer in module.named_buffers(recurse=False):
        setattr(replica, name, buffer.clone())
    return replica


@pytest.mark.parametrize("net", NETS)
def test_replicas_stay_fused(make_ours, net):
    module, (in0, in1) = make_ours(net), pair(1, 40, 40)
    replica = replicated(module)
    assert replica._is_stock()
    assert torch.equal(replica(in0, in1), module(in0, in1))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_float32_with_parameters_of_another_type(make_ours, dtype):
    module, (in0, in1) = make_ours("squeeze", precision="float32"), pair(1, 40, 40)
    assert_close(copy.deepcopy(module).to(dtype)(in0, in1), module(in0, in1).double(), (0, 0.02))


@pytest.mark.parametrize(
    "duplicate", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))), ids=("deepcopy", "pickle")
)
@pytest.mark.parametrize("used_before", (False, True))
def test_copies(make_ours, duplicate, used_before):
    module, in0, in1 = make_ours(spatial=True, version="0.0"), *pair(1, 31, 31)
    expected = module(in0, in1) if used_before else None
    other = duplicate(module)
    value = other(in0, in1)
    assert torch.equal(value, module(in0, in1) if expected is None else expected)
    assert not other.train().training
    with torch.no_grad():
        other.lin0.model[-1].weight.zero_()
    assert not torch.equal(other(in0, in1), value)
    assert torch.equal(module(in0, in1), value)


def test_moved_to_another_type_and_back(make_ours):
    module, in0, in1 = make_ours(), *pair(1, 31, 31)
    expected = module(in0, in1)
    assert module.double()(in0.double(), in1.double()).dtype == torch.float64
    assert torch.equal(module.float()(in0, in1), expected)


@pytest.mark.parametrize("net", NETS)
def test_silent(make_ours, net, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_ours(net)(*pair(1, 35, 35))
    assert capsys.readouterr() == ("", "")


def test_usable_under_no_grad_and_inference_mode(make_ours):
    module, in0, in1 = make_ours(), *pair(1, 31, 31)
    expected = module(in0, in1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(module(in0, in1), expected)
    in0.requires_grad_()
    module(in0, in1).backward()  # nothing made in inference mode is left in the module
    assert in0.grad is not None


@pytest.mark.parametrize("options", ({}, {"spatial": True}, {"lpips": False, "version": "0.0"}), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_compiled_in_one_graph(make_ours, net, backend, options):
    """fullgraph, traced by dynamo and AOTAutograd forward and backward; see below for a compiled backend."""
    module = make_ours(net, backend=backend, **options)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    in0, in1 = pair(1, 35, 35)
    in0.requires_grad_()
    value, expected = compiled(in0, in1), module(in0, in1)
    assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
    (grad,), (expected_grad,) = (torch.autograd.grad(v.sum(), in0) for v in (value, expected))
    assert_close(grad, expected_grad.double(), (1e-5, 1e-4))


@pytest.mark.parametrize("options", ({}, {"grad_in_forward": True}, {"precision": "bfloat16"}), ids=str)
def test_compiled_with_images_of_two_types(make_ours, options):
    """And an image without a batch."""
    module = make_ours("squeeze", **options)
    in0, in1 = pair(1, 35, 35)
    for types in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        x0, x1 = (x.to(dtype).requires_grad_() for x, dtype in zip((in0, in1), types))
        value, expected = compiled(x0, x1), module(x0, x1)
        assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
        found, exact = (torch.autograd.grad(v.sum(), (x0, x1)) for v in (value, expected))
        assert tuple(grad.dtype for grad in found) == types
        for grad, expected_grad in zip(found, exact):
            assert (grad - expected_grad).norm() <= 0.02 * expected_grad.norm()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(in0[0], in1), module(in0, in1).double(), VALUE_TOLERANCE[torch.float32])


def test_compiled_where_a_parent_sets_the_flags(make_ours):
    """The toggle of a GAN: frozen all the same, and compiled twice at most."""
    module = make_ours("squeeze")
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    in0, in1 = pair(1, 35, 35)
    values = []
    for flag in (False, True, False, True):
        for p in module.parameters():
            p.requires_grad = flag
        value = compiled(in0.requires_grad_(), in1)
        values.append(value.item())
        value.sum().backward()
    assert len(set(values)) == 1
    assert all(p.grad is None for p in module.parameters())
    assert counter.frame_count <= 2


def test_compiled_by_inductor(make_ours):
    module = make_ours("squeeze")
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)
    in0, in1 = pair(1, 35, 35)
    in0.requires_grad_()
    value, expected = compiled(in0, in1), module(in0, in1)
    assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
    (grad,), (expected_grad,) = (torch.autograd.grad(v.sum(), in0) for v in (value, expected))
    assert_close(grad, expected_grad.double(), (1e-5, 1e-4))


def along(module, in0, in1, directions0, directions1):
    """The distance as a function of a few coefficients: the images moved along fixed directions."""

    def function(t0, t1):
        moved0 = in0 + torch.tensordot(t0, directions0, dims=1)
        moved1 = in1 + torch.tensordot(t1, directions1, dims=1)
        return module(moved0, moved1)

    return function


@pytest.mark.parametrize("options", ({}, {"spatial": True}, {"lpips": False}), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net,size", (("alex", 31), ("squeeze", 17)))
def test_gradcheck_and_gradgradcheck(make_ours, net, size, backend, options):
    module = make_ours(net, backend=backend, **options).double()
    if options.get("spatial"):
        maps, module = module, lambda a, b: maps(a, b)[:, :, ::9, ::9]
    in0, in1 = pair(1, size, size, dtype=torch.float64)
    directions = 1e-2 * torch.randn(2, 3, 1, 3, size, size, dtype=torch.float64)
    coefficients = torch.zeros(2, 3, dtype=torch.float64).unbind(0)
    leaves = tuple(c.requires_grad_() for c in coefficients)
    function = along(module, in0, in1, *directions)
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_double_backward_in_float32(make_ours, make_theirs):
    """A gradient penalty through LPIPS: the gradient of the gradient's norm."""
    in0, in1 = pair(1, 31, 31)

    def penalty_gradient(module, x, y):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(module(x, y).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    found = penalty_gradient(make_ours(), in0, in1)
    expected = penalty_gradient(make_theirs(dtype=torch.float64), in0.double(), in1.double())
    assert_close(found, expected, (1e-3, 1e-3))
