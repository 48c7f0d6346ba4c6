"""Where the trunk's time goes: each convolution alone, with its ReLU, without the pool after it.

`torch` is what `lpips` runs: torch's layers, one after the other. The other providers are this package's trunk.
`forward` takes both images of all pairs. `backward` takes one image of each pair: from the gradient to the ReLU's
output it computes the gradient to the layer's input. The two expanding convolutions of a SqueezeNet Fire are timed
apart, though they run as one on a GPU. Inputs come from a pass over random images. What would take too long with all
layers is left out (`patience`). On a GPU only the kernels are timed, with cold caches.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lpips_fast.bench.cases import Case, Layer, images, limit, plain_taps, random_lpips, trunk_layers
from lpips_fast.bench.ceilings import DTYPES, Ceilings
from lpips_fast.bench.patience import Patience
from lpips_fast.bench.providers import copied, inherited_precision
from lpips_fast.bench.records import Record
from lpips_fast.bench.timing import Call, Clock, Quantiles, described, interleaved, release_memory
from lpips_fast.trunk.execute import run, run_backward
from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.program import Affine, Conv, Expand, Setting

MODES = ("forward", "backward")
LIMIT = "limit"
# The largest root mean square error, relative to the root mean square of the result.
TOLERANCE = {"float32": 5e-6, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}


_CHECKED_IMAGES = 2  # not all of the images: the oracle in float64 takes memory and, on many GPUs, time


class Unit(NamedTuple):
    """A convolution of the trunk."""

    layer: Layer
    conv: Conv  # the step of the plan
    module: nn.Conv2d
    affine: Affine  # shift and scale of its input


class LayerProvider(Protocol):
    """A way to compute a unit from the input that it has in the trunk."""

    @property
    def precision(self) -> str: ...

    def prepare(self, x: Tensor) -> Tensor:
        """A feature map in the type and layout that the trunk has."""

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        """The ReLU's output."""

    def backward(self, unit: Unit, x: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that takes dL/d(the ReLU's output) and returns dL/dx."""


class Torch(NamedTuple):
    precision: str

    def prepare(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        return self.convolution(unit, x).relu_()

    def backward(self, unit: Unit, x: Tensor) -> Callable[[Tensor], Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = self.convolution(unit, x).relu_()
        return lambda d_y: torch.autograd.grad(y, x, d_y)[0]

    def convolution(self, unit: Unit, x: Tensor) -> Tensor:
        shift, scale = unit.affine
        if shift is not None and scale is not None:
            x = (x - shift) / scale
        return unit.module(x)


class Ours(NamedTuple):
    precision: str
    trunk: Trunk

    def prepare(self, x: Tensor) -> Tensor:
        setting = self.trunk.setting(x.device)
        return x.to(setting.dtype, memory_format=setting.layout)

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        setting = self.setting(unit, x)
        taps, _ = run(setting, [x], unit.affine, self.trunk.tensors(setting, gradient=False))
        return taps[0]

    def backward(self, unit: Unit, x: Tensor) -> Callable[[Tensor], Tensor]:
        setting, y = self.setting(unit, x), self.forward(unit, x)
        tensors = self.trunk.tensors(setting, gradient=True)
        return lambda d_y: run_backward(setting, x.shape[1:], unit.affine, tensors, [y], [], [d_y])

    def setting(self, unit: Unit, x: Tensor) -> Setting:
        """Of a trunk that ends after this convolution, and begins with it."""
        return self.trunk.setting(x.device)._replace(plan=(unit.conv._replace(tap=True, pool=None),))


def units(net: str, size: int, device: torch.device) -> list[Unit]:
    """The convolutions of a trunk in order."""
    model = copied(random_lpips(net), device)
    modules = iter(module for module in model.net.modules() if isinstance(module, nn.Conv2d))
    layers = iter(trunk_layers(net, size)[0])
    found: list[Unit] = []
    for step in model.net.plan:
        for conv in (step.conv1x1, step.conv3x3) if isinstance(step, Expand) else (step,):
            affine = (None, None) if found else (model.scaling_layer.shift, model.scaling_layer.scale)
            found.append(Unit(next(layers), conv, next(modules), affine))
    return found


def inputs(case: Case, device: torch.device) -> list[Tensor]:
    """The input of each convolution for both images of a case. The first convolution's are the images themselves."""
    x = torch.cat(images(case, device))
    found: list[Tensor] = []
    model = copied(random_lpips(case.net), device)
    for module in model.net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    with torch.no_grad():
        plain_taps(model, x)
    return [x, *found[1:]]


def providers(net: str, device: torch.device, precisions: Sequence[str]) -> dict[str, LayerProvider]:
    """torch's layers, and this package's trunk in each precision; in float32 on a CPU also with each `cpu_conv`."""
    inherited = inherited_precision(device)
    found: dict[str, LayerProvider] = {"torch": Torch(inherited)}
    for precision in precisions:
        found["ours" if precision == inherited else f"ours, {precision}"] = _ours(net, device, precision)
    if device.type == "cpu" and "float32" in precisions:
        found["ours, direct convolution"] = _ours(net, device, "float32", cpu_conv="direct")
        found["ours, Winograd"] = _ours(net, device, "float32", cpu_conv="winograd")
    return found


def _ours(net: str, device: torch.device, precision: str, **options: str) -> Ours:
    return Ours(precision, copied(random_lpips(net), device, precision=precision, **options).net)


def measure(
    case: Case, device: torch.device, rounds: int, candidates: Mapping[str, LayerProvider], limits: Ceilings
) -> Iterator[Record]:
    """A record of each convolution, mode and provider, and of the limit in each precision."""
    left_out = {mode: _left_out(case, mode, device, candidates) for mode in MODES}
    for unit, x in zip(units(case.net, case.size, device), inputs(case, device), strict=True):
        for mode in MODES:
            batch = _batch(case, mode, x)
            names = {**case._asdict(), "mode": mode, "layer": unit.layer.name, "images": len(batch)}
            for record in _measure(unit, mode, batch, rounds, candidates, left_out[mode], limits):
                yield {**names, **record}


def _batch(case: Case, mode: str, x: Tensor) -> Tensor:
    return x if mode == "forward" else x[: case.pairs]


def _left_out(
    case: Case, mode: str, device: torch.device, candidates: Mapping[str, LayerProvider]
) -> dict[str, Record]:
    """By name, what the records of the candidates say that are left out."""
    small = case.small
    of_small = list(zip(units(small.net, small.size, device), inputs(small, device), strict=True))

    def all_layers(provider: LayerProvider) -> Call:
        calls = []
        for unit, x in of_small:
            batch = _batch(small, mode, x)
            d_y = None if mode == "forward" else _output_gradient(unit, batch)
            calls.append(_set_up(provider, unit, _prepared(provider, unit, batch), d_y))
        return lambda: [call() for call in calls]

    plain = functools.partial(all_layers, Torch("float32"))
    patience = Patience(f"a {mode} of all layers", device, case.pixels / small.pixels, plain)
    found = {name: patience.left_out(functools.partial(all_layers, provider)) for name, provider in candidates.items()}
    return {name: record for name, record in found.items() if record}


def _measure(
    unit: Unit,
    mode: str,
    x: Tensor,
    rounds: int,
    candidates: Mapping[str, LayerProvider],
    left_out: Mapping[str, Record],
    limits: Ceilings,
) -> Iterator[Record]:
    d_y = None if mode == "forward" else _output_gradient(unit, x)
    expected = _oracle(unit, x[:_CHECKED_IMAGES], None if d_y is None else d_y[:_CHECKED_IMAGES])
    setups: dict[str, Callable[[], Call]] = {}
    errors: dict[str, float] = {}
    unmeasured = dict(left_out)
    for name, provider in candidates.items():
        if name in left_out:
            continue
        setup = functools.partial(_set_up, provider, unit, _prepared(provider, unit, x), d_y)
        try:
            errors[name] = _check(setup(), expected, TOLERANCE[provider.precision])
            setups[name] = setup
        except Exception as error:  # a provider that fails must not stop the others
            unmeasured[name] = {"error": described(error)}
            release_memory()
    del expected
    times, failed = interleaved(setups, Clock(x.device, kernels=True), rounds)
    unmeasured |= {name: {"error": reason} for name, reason in failed.items()}
    flops = len(x) * unit.layer.flops
    for name, provider in candidates.items():
        record = {"provider": name, "precision": provider.precision, "flops": flops}
        if name in unmeasured:
            yield {**record, **unmeasured[name]}
        else:
            yield {**record, **times[name].record(), "largest_error": errors[name]}
    for precision in dict.fromkeys(provider.precision for provider in candidates.values()):
        n_bytes = unit.layer.bytes(len(x), DTYPES[precision].itemsize)
        seconds = limit(flops, n_bytes, precision, limits)
        if seconds is not None:
            at_limit = Quantiles(seconds, seconds, seconds).record()
            yield {"provider": LIMIT, "precision": precision, "flops": flops, "bytes": n_bytes, **at_limit}


def _prepared(provider: LayerProvider, unit: Unit, x: Tensor) -> Tensor:
    """A unit's input. The first unit takes the images as they are."""
    return provider.prepare(x) if unit.affine[0] is None else x


def _set_up(provider: LayerProvider, unit: Unit, x: Tensor, d_y: Tensor | None) -> Call:
    """The call to time: the forward or, given d_y, the backward. Its forward runs here."""
    if d_y is None:
        return torch.no_grad()(functools.partial(provider.forward, unit, x))
    with torch.no_grad():
        gradient = provider.backward(unit, x)
    return functools.partial(gradient, provider.prepare(d_y))


def _output_gradient(unit: Unit, x: Tensor) -> Tensor:
    """A random gradient to the ReLU's output.

    It is 0 where the ReLU's input is within rounding of 0, because the derivative there may be 0 or 1.
    """
    with torch.no_grad():
        before_relu = Torch("float32").convolution(unit, x)
    d_y = torch.randn(before_relu.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device)
    return d_y * (before_relu.abs() > 0.05 * before_relu.square().mean().sqrt())


def _oracle(unit: Unit, x: Tensor, d_y: Tensor | None) -> Tensor:
    """The ReLU's output in float64 or, given the gradient to it, the gradient to x."""
    shift, scale = unit.affine
    exact = unit._replace(
        module=copy.deepcopy(unit.module).double(),
        affine=(shift.double(), scale.double()) if shift is not None and scale is not None else (None, None),
    )
    if d_y is not None:
        return Torch("float64").backward(exact, x.double())(d_y.double())
    with torch.no_grad():
        return Torch("float64").forward(exact, x.double())


def _check(call: Call, expected: Tensor, tolerance: float) -> float:
    found = call()
    assert isinstance(found, Tensor)
    error = ((found[:_CHECKED_IMAGES].double() - expected).norm() / expected.norm()).item()
    if not error <= tolerance:
        raise ArithmeticError(f"wrong, not timed: by {error:.1e}")
    return error
