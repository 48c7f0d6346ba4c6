"""The two names of a linear layer, lin{k} and lins.{k}: in files, wrappers, old pickles, functional_call and code."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.func import functional_call

import lpips_fast
from lpips_fast.compat import taming
from tests.support.comparisons import assert_close
from tests.support.images import pair
from tests.support.raises import raises
from tests.support.tolerances import REORDERED_TOLERANCE, VALUE_TOLERANCE

LIN0, LINS0 = "perceptual_loss.lin0.model.1.weight", "perceptual_loss.lins.0.model.1.weight"


class Loss(nn.Module):
    """A generator that holds its loss as a submodule, as training code does."""

    def __init__(self, perceptual):
        super().__init__()
        self.generator = nn.Conv2d(3, 3, 3, padding=1)
        self.perceptual_loss = perceptual

    def forward(self, in0, in1):
        return self.perceptual_loss(in0, in1)


@pytest.mark.parametrize("absent", ("lin0", "lins.0"))
def test_a_name_that_is_absent_is_missing(make_ours, make_theirs, absent):
    for fn in (make_ours(), copy.deepcopy(make_theirs())):
        loss = Loss(fn)
        state = loss.state_dict()
        del state[f"perceptual_loss.{absent}.model.1.weight"]
        with raises(RuntimeError, "Missing key", f"perceptual_loss.{absent}.model.1.weight"):
            loss.load_state_dict(state)


def test_of_both_names_of_a_linear_layer_the_second_is_loaded(make_ours, make_theirs):
    state = make_ours().state_dict()
    state["lins.0.model.1.weight"] = state["lins.0.model.1.weight"] + 1
    for module in (make_ours(), copy.deepcopy(make_theirs())):
        module.load_state_dict(state, strict=True)
        assert torch.equal(module.lin0.model[1].weight, state["lins.0.model.1.weight"])
    state["lins.0.model.1.weight"] = torch.zeros(1, 3, 1, 1)
    with raises(RuntimeError, "lin0.model.1.weight", "lins.0.model.1.weight", "[1, 3, 1, 1]"):
        make_ours().load_state_dict(state)


def test_linear_layers_are_registered_once(make_ours):
    """torch.func.functional_call does not restore the tensors of a module that is registered under two names."""
    module = make_ours()
    names = [name for name, _ in module.named_parameters()]
    assert [name for name in names if name.startswith("lin")] == [f"lin{k}.model.1.weight" for k in range(5)]
    state = module.state_dict(keep_vars=True)
    assert all(state[f"lins.{k}.model.1.weight"] is module.get_parameter(f"lin{k}.model.1.weight") for k in range(5))
    assert module.get_parameter("lins.0.model.1.weight") is module.lin0.model[1].weight
    assert not hasattr(make_ours(lpips=False), "lins")


@pytest.mark.parametrize("name", ("lin0", "lins.0"))
def test_functional_call_changes_nothing_for_good(make_ours, name):
    """Under both names of a linear layer."""
    loss, images = Loss(make_ours()), pair(1, 31, 31)
    before, expected = dict(loss.named_parameters()), loss(*images)
    zeros = torch.zeros(1, 64, 1, 1)
    value = functional_call(loss, {f"perceptual_loss.{name}.model.1.weight": zeros}, images)
    assert_close(
        value, (expected - loss.perceptual_loss(*images, retPerLayer=True)[1][0]).double(), (0, REORDERED_TOLERANCE)
    )
    assert all(p is before[name] for name, p in loss.named_parameters())
    assert torch.equal(copy.deepcopy(loss).double().float()(*images), expected)


@pytest.mark.parametrize("tie_weights", (True, False))
@pytest.mark.parametrize("names", ((LIN0, LINS0), (LINS0, LIN0)), ids=("lin0 first", "lins.0 first"))
def test_functional_call_with_one_tensor_under_both_names(make_ours, names, tie_weights):
    loss, images = Loss(make_ours()), pair(1, 31, 31)
    before, expected = dict(loss.named_parameters()), loss(*images)
    zeros = torch.zeros(1, 64, 1, 1)
    value = functional_call(loss, dict.fromkeys(names, zeros), images, tie_weights=tie_weights)
    assert_close(
        value, (expected - loss.perceptual_loss(*images, retPerLayer=True)[1][0]).double(), (0, REORDERED_TOLERANCE)
    )
    assert all(p is before[name] for name, p in loss.named_parameters())
    assert torch.equal(loss(*images), expected)


def test_functional_call_with_the_state_dict(make_ours):
    """The state_dict has both names, and passes strict=True."""
    module, images = make_ours(), pair(1, 31, 31)
    before, expected = dict(module.named_parameters()), module(*images)
    for keep_vars in (False, True):
        state = module.state_dict(keep_vars=keep_vars)
        assert torch.equal(functional_call(module, state, images, strict=True), expected)
    assert all(p is before[name] for name, p in module.named_parameters())


def test_functional_call_of_changed_layers(make_ours):
    module, images = make_ours(), pair(1, 31, 31)
    torch.nn.utils.parametrizations.weight_norm(module.lin0.model[1])
    module.lin1 = nn.Conv2d(192, 1, 1)
    before, expected = dict(module.named_parameters()), module(*images)
    assert torch.equal(functional_call(module, module.state_dict(), images), expected)
    value = functional_call(module, {"lins.1.weight": torch.zeros(1, 192, 1, 1), "lins.1.bias": torch.ones(1)}, images)
    change = 1 - module(*images, retPerLayer=True)[1][1]
    assert_close(value, (expected + change).double(), (0, REORDERED_TOLERANCE))
    assert all(p is before[name] for name, p in module.named_parameters())


def test_functional_call_with_two_tensors_of_a_layer(make_ours, make_theirs):
    """torch raises an error, as with lpips, and the module does not change."""
    images = pair(1, 31, 31)
    for module in (make_ours(), copy.deepcopy(make_theirs())):
        before, expected = dict(module.named_parameters()), module(*images)
        state = {name: 2 * t for name, t in module.state_dict().items()}
        with raises(ValueError, "lin3.model.1.weight", "lins.3.model.1.weight"):
            functional_call(module, {name: t for name, t in state.items() if "3.model" in name}, images)
        assert all(p is before[name] for name, p in module.named_parameters())
        assert torch.equal(module(*images), expected)


@pytest.mark.parametrize("outer", ("lin0", "lins.0"))
@pytest.mark.parametrize("inner", ("lin0", "lins.0"))
def test_functional_call_within_another(make_ours, outer, inner):
    module, images = make_ours(), pair(1, 31, 31)
    weight = module.lin0.model[1].weight

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fn = module

        def forward(self, *images):
            changed = functional_call(self.fn, {f"{inner}.model.1.weight": 3 * weight}, images)
            return changed, self.fn(*images)

    part, expected = module(*images, retPerLayer=True)[1][0], module(*images)
    values = functional_call(Outer(), {f"fn.{outer}.model.1.weight": 2 * weight}, images)
    for value, factor in zip(values, (3, 2)):
        assert_close(value, (expected + (factor - 1) * part).double(), (0, REORDERED_TOLERANCE))
    assert module.lin0.model[1].weight is weight


@pytest.mark.parametrize("name", ("lin0", "lins.0"))
def test_compiled_functional_call(make_ours, name):
    module, images = make_ours(), pair(1, 31, 31)
    changes = {f"{name}.model.1.weight": torch.zeros(1, 64, 1, 1)}
    compiled = torch.compile(lambda *x: functional_call(module, changes, x), fullgraph=True, backend="eager")
    expected = functional_call(module, changes, images)
    assert_close(compiled(*images), expected.double(), (0, REORDERED_TOLERANCE))  # torch computes the compiled one


def test_all_names_of_parameters_are_those_of_lpips(make_ours, make_theirs):
    ours, theirs = (
        [name for name, _ in Loss(fn).named_parameters(remove_duplicate=False)] for fn in (make_ours(), make_theirs())
    )
    assert sorted(ours) == sorted(theirs)
    assert not any("lins" in name for name, _ in taming_lpips(make_ours).named_parameters(remove_duplicate=False))


def test_stacked_for_vmap(make_ours):
    modules, images = [make_ours(), make_ours(version="0.0")], pair(1, 31, 31)
    state = torch.func.stack_module_state(modules)
    found = torch.vmap(lambda *state: functional_call(modules[0], state, images))(*state)
    modules[1].version = "0.1"  # the scaling layer is that of the first module
    for value, module in zip(found, modules):
        assert_close(value, module(*images).double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("how", ("lin0", "lins", "by name", "list"))
def test_a_linear_layer_set_under_one_name_is_set_under_both(make_ours, how):
    module, images = make_ours(), pair(1, 31, 31)
    layer = lpips_fast.NetLinLayer(64, use_dropout=True).eval()
    nn.init.zeros_(layer.model[1].weight)
    expected = module(*images) - module(*images, retPerLayer=True)[1][0]
    if how == "lin0":
        module.lin0 = layer
    elif how == "lins":
        module.lins[0] = layer
    elif how == "by name":
        setattr(module.get_submodule("lins"), "0", layer)
    else:
        module.lins = nn.ModuleList([layer, *module.lins[1:]])
    assert module.lin0 is module.lins[0] is layer
    assert "lins" not in module._modules
    assert torch.equal(module.state_dict()["lins.0.model.1.weight"], layer.model[1].weight)
    assert_close(module(*images), expected.double(), (0, REORDERED_TOLERANCE))
    with raises(ValueError, "lins", "5", "4"):
        module.lins = module.lins[1:]


def edits(layer):
    return {
        "append": lambda lins: lins.append(layer),
        "insert": lambda lins: lins.insert(0, layer),
        "extend": lambda lins: lins.extend([layer]),
        "+=": lambda lins: lins.__iadd__([layer]),
        "add_module": lambda lins: lins.add_module("5", layer),
        "modules": lambda lins: lins._modules.update({"5": layer}),
        "pop": lambda lins: lins.pop(0),
        "del": lambda lins: lins.__delitem__(4),
        "delattr": lambda lins: delattr(lins, "4"),
        "clear": lambda lins: lins._modules.clear(),
    }


@pytest.mark.parametrize("how", edits(None))
def test_the_number_of_linear_layers_is_fixed(make_ours, how):
    module = make_ours()
    before = dict(module.named_modules())
    with raises(ValueError, "lins", "5 layers", "fn.lin{k}", "fn.lins[k]", "fn.L"):
        edits(lpips_fast.NetLinLayer(256))[how](module.lins)
    assert dict(module.named_modules()) == before


@pytest.mark.parametrize("how", ("add_module", "register_module", "modules"))
def test_a_linear_layer_registered_in_the_list(make_ours, how):
    module, layer = make_ours(), lpips_fast.NetLinLayer(64)
    if how == "modules":
        module.lins._modules["0"] = layer
    else:
        getattr(module.lins, how)("0", layer)
    assert module.lin0 is module.lins[0] is layer


def test_slices_and_copies_of_the_list_are_their_own(make_ours):
    module = make_ours()
    lin0 = module.lin0
    for lins in (module.lins[:], copy.deepcopy(module.lins), pickle.loads(pickle.dumps(module.lins))):
        assert isinstance(lins, nn.ModuleList)
        lins[0] = nn.Identity()
        lins.append(nn.Identity())
        assert len(lins) == 6
    assert module.lin0 is lin0


def test_the_last_linear_layer_removed(make_ours):
    module, images = make_ours("squeeze"), pair(1, 33, 33)
    module.L = 6
    expected = module(*images)
    del module.lin6
    assert torch.equal(module(*images), expected)
    assert len(module.lins) == 6
    module.load_state_dict(module.state_dict(), strict=True)


def taming_lpips(make_ours):
    return taming.LPIPS(trunk_weights={f"features.{k.split('.', 2)[2]}": t for k, t in vgg_state(make_ours).items()})


def vgg_state(make_ours):
    return {k: t for k, t in make_ours("vgg").state_dict().items() if k.startswith("net.")}


def pickled(module):
    """The module after torch.save and torch.load."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("options", ({}, {"lpips": False}, {"persistent": False}, None), ids=str)
def test_a_module_pickled_whole(make_ours, options):
    """Both names are there again, and lead to one layer. Without options: taming's."""
    new = taming_lpips(make_ours) if options is None else make_ours(**options)
    again, images = pickled(new), pair(1, 31, 31)
    assert list(again.state_dict()) == list(new.state_dict())
    assert [name for name, _ in again.named_children()] == [name for name, _ in new.named_children()]
    expected = again(*images)
    assert torch.equal(expected, new(*images))
    again.load_state_dict({name: t + 1 for name, t in new.state_dict().items()}, strict=True)
    if options is None or options.get("lpips", True):
        assert again.lins[0] is again.lin0
        again.lins[0] = layer = lpips_fast.NetLinLayer(64)
        assert again.lin0 is layer


@pytest.mark.parametrize("persistent", (True, False))
def test_functional_call_of_a_module_pickled_whole(make_ours, persistent):
    again, images = pickled(make_ours(persistent=persistent)), pair(1, 31, 31)
    expected = again(*images)
    functional_call(again, {"lins.0.model.1.weight": torch.zeros(1, 64, 1, 1)}, images)
    assert torch.equal(again(*images), expected)


@pytest.mark.parametrize("held", (False, True))
def test_safetensors_models(make_ours, make_theirs, tmp_path, held):
    """safetensors saves a tensor under one of its names. Files load both ways, for LPIPS alone and inside a module."""
    wrap = Loss if held else lambda fn: fn
    ours, theirs = wrap(make_ours()), wrap(copy.deepcopy(make_theirs()))
    for source, target in ((ours, ours), (ours, theirs), (theirs, ours)):
        file, target = str(tmp_path / "model.safetensors"), copy.deepcopy(target)
        for tensor in target.state_dict().values():
            nn.init.zeros_(tensor)
        save_model(source, file)
        assert load_model(target, file) == (set(), [])
        state = source.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())


KEPT = {
    "all": lambda name: True,
    "lin": lambda name: "lins" not in name,
    "lins": lambda name: "lin0" not in name,
    "no linear layers": lambda name: "lin" not in name,
    "none": lambda name: False,
}


@pytest.mark.parametrize("kept", KEPT)
def test_missing_names_when_not_strict(make_ours, make_theirs, kept):
    ours, theirs = Loss(make_ours()), Loss(copy.deepcopy(make_theirs()))
    state = {name: t for name, t in ours.state_dict().items() if KEPT[kept](name)}
    found, expected = (fn.load_state_dict(state, strict=False) for fn in (ours, theirs))
    assert sorted(found.missing_keys) == sorted(expected.missing_keys)
    assert found.unexpected_keys == expected.unexpected_keys == []


def test_nothing_is_missing_of_weights_that_are_not_saved(make_ours):
    module = make_ours(persistent=False)
    assert module.load_state_dict({}, strict=False).missing_keys == []


def _worker(rank, world, check, module, state, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    check(rank, world, module, state)
    torch.distributed.barrier()  # no process leaves while another needs it
    torch.distributed.destroy_process_group()


def in_two_processes(check, module, folder):
    """Runs check(rank, world, module, state) in each process: a zeroed module, and its state_dict from before."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for p in module.parameters():
        nn.init.zeros_(p)
    torch.multiprocessing.spawn(_worker, (2, check, module, state, folder), nprocs=2)


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def _fsdp1(rank, world, module, state):
    sharded = FullyShardedDataParallel(module, use_orig_params=True, device_id=torch.device("cpu"))
    images = pair(1, 31, 31)
    sharded(*images)
    for kind in (StateDictType.FULL_STATE_DICT, StateDictType.SHARDED_STATE_DICT):
        with FullyShardedDataParallel.state_dict_type(sharded, kind):
            if kind == StateDictType.FULL_STATE_DICT:
                sharded.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
            saved = sharded.state_dict()
            assert saved.keys() == state.keys()
            if kind == StateDictType.FULL_STATE_DICT:
                assert_equal_states(saved, state)
            else:
                assert type(saved[LIN0]) is type(saved[LINS0])
            sharded.load_state_dict(saved)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT):
        assert_equal_states(sharded.state_dict(), state)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_checkpoints_of_fsdp1(make_ours, tmp_path):
    """FSDP1 clones the tensors of a checkpoint that it knows, and frees the memory of all of them."""
    in_two_processes(_fsdp1, Loss(make_ours()), tmp_path)


def _dcp(rank, world, module, state):
    fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (world,)))
    for broadcast in (False, True):
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        given = {name: tensor + broadcast for name, tensor in state.items()}
        set_model_state_dict(module, given if rank == 0 or not broadcast else {}, options=options)
        found = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
        assert_equal_states(found, {name: tensor + broadcast for name, tensor in state.items()})


def test_full_checkpoints_of_dcp_onto_fsdp2(make_ours, tmp_path):
    in_two_processes(_dcp, Loss(make_ours()), tmp_path)
