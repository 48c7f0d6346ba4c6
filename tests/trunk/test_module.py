"""The trunk's module: loading, and which layers it takes."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.trunk import cpu_trunk
from lpips_fast.trunk.cpu_trunk import CpuTensors
from lpips_fast.trunk.module import Trunk
from tests.support.instructions import LOW_TYPES, set_instructions
from tests.support.tolerances import TRUNK_GRAD_TOLERANCE

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(not cpu_trunk.available(), reason="the compiled library is not there")


@pytest.mark.parametrize("change,message", (
    (lambda state: state.pop("3.bias"), r"trunk weights lack '3\.bias' \(alexnet\)"),
    (lambda state: state.update({"0.weight": torch.zeros(64, 3, 3, 3)}), r"'0\.weight' must have shape \[64, 3, 11"),
    (lambda state: state.update({"1.weight": torch.zeros(1)}), r"names that are not alexnet's: '1\.weight'"),
))  # fmt: skip
def test_weights_that_do_not_fit(change, message):
    trunk = Trunk("alex")
    state = {name.partition(".")[2]: p for name, p in trunk.state_dict().items()}
    trunk.load_features({**state, "13.weight": torch.zeros(1)})  # of a layer after the last tap
    change(state)
    with pytest.raises(ValueError, match=message):
        trunk.load_features(state)


@compiled
@pytest.mark.parametrize("options,dtype,layers", (
    ({}, torch.float32, "cpu"),
    ({"cpu_conv": "winograd"}, torch.float32, "cpu"),
    ({"cpu_conv": "direct"}, torch.float32, "torch"),
    ({"precision": "bfloat16"}, torch.float32, "torch"),
    ({}, torch.float64, "torch"),
    ({"trainable": True}, torch.float32, "torch"),
))  # fmt: skip
def test_layers(monkeypatch, options, dtype, layers):
    set_instructions(monkeypatch, True)
    setting = Trunk("alex", **{"trainable": False, **options}).to(dtype).setting(CPU)
    assert setting.layers == layers
    assert setting.always_winograd == (options.get("cpu_conv") == "winograd")


@pytest.mark.parametrize("dtype", LOW_TYPES, ids=str)
@pytest.mark.parametrize("options,frozen", (
    ({}, True),
    ({"cpu_conv": "direct"}, True),
    ({"trainable": True}, False),
))  # fmt: skip
def test_low_precision_without_instructions(monkeypatch, options, frozen, dtype):
    """The trunk is float32's, and its taps have the low type: that of precision, autocast or the parameters."""
    set_instructions(monkeypatch, False)
    options = {"trainable": False, **options}
    expected = Trunk("alex", "float32", **options).setting(CPU)._replace(taps_as=dtype, tf32=None)
    assert expected.frozen == frozen
    assert expected.tap_dtype == dtype
    assert Trunk("alex", str(dtype).removeprefix("torch."), **options).setting(CPU) == expected
    assert Trunk("alex", **options).to(dtype).setting(CPU) == expected
    with torch.autocast("cpu", dtype):
        assert Trunk("alex", **options).setting(CPU) == expected
        assert Trunk("alex", "float32", **options).setting(CPU).taps_as is None


@compiled
def test_a_trainable_trunk_without_gradients_is_frozen():
    trunk = Trunk("alex").requires_grad_(False)
    assert trunk.is_frozen()
    assert trunk.setting(CPU).layers == "cpu"
    next(trunk.parameters()).requires_grad_(True)
    assert not trunk.is_frozen()
    assert trunk.setting(CPU).layers == "torch"


@compiled
def test_filters_are_kept_until_a_parameter_changes():
    trunk = Trunk("alex", trainable=False)
    setting = trunk.setting(CPU)
    kept = trunk.tensors(setting, gradient=False)
    assert isinstance(kept, CpuTensors)
    assert trunk.tensors(setting, gradient=True) is kept
    x = torch.rand(1, 3, 256, 256)
    before = trunk(x)
    with torch.no_grad():
        list(trunk.parameters())[-2].mul_(2)
    assert trunk.tensors(setting, gradient=False) is not kept
    assert not torch.equal(trunk(x)[-1], before[-1])


def test_the_type_of_images_is_the_precisions():
    trunk = Trunk("alex", "bfloat16", trainable=False)
    assert trunk(torch.rand(1, 3, 40, 40))[0].dtype == torch.bfloat16
    inherits = Trunk("alex", trainable=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert inherits(torch.rand(1, 3, 40, 40))[0].dtype == torch.bfloat16
    assert inherits(torch.rand(1, 3, 40, 40), n_taps=2)[1].dtype == torch.float32


@pytest.mark.parametrize("k", (0, 2, 4))
def test_gradient_of_one_tap(k):
    """The other taps have no gradient, which counts as zeros."""
    trunk, x = Trunk("alex", trainable=False), torch.rand(1, 3, 64, 64, requires_grad=True)
    exact, x64 = Trunk("alex", trainable=False).double(), x.detach().double().requires_grad_()
    exact.load_state_dict(trunk.state_dict())
    (found,), (expected,) = (torch.autograd.grad(t(image)[k].sum(), image) for t, image in ((trunk, x), (exact, x64)))
    assert (found - expected).norm() <= TRUNK_GRAD_TOLERANCE[torch.float32] * expected.norm()
