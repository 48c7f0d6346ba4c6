"""Where the trunk's time goes: each convolution, or Fire module, with its ReLU and the pool after it, by itself.

`torch` is what `lpips` runs, torch's layers one after the other; the others are this package's trunk, a step of its
plan at a time. `forward` is over both images of all pairs; `backward`, over one, is the gradient to the layer's input
from that to its ReLU's output, without the pool. On a GPU these are the times of kernels, with cold caches.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..frozen import frozen_trunk
from ..plan import Affine, Conv, Fire, Pool
from ..trunk import Trunk
from .cases import Case, Layer, images, limit, random_lpips, trunk_layers
from .ceilings import DTYPES, Ceilings
from .providers import copied, inherited_precision
from .records import Record
from .timing import Call, Clock, Quantiles, described, interleaved, release_memory

MODES = ("forward", "backward")
LIMIT = "limit"
# The largest error, root mean square, relative to the result's. In a backward a ReLU whose input is within rounding of
# 0 may fall either way, and one in a million that does is an error of a thousandth.
TOLERANCE = {
    "forward": {"float32": 5e-6, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2},
    "backward": {"float32": 5e-3, "tf32": 5e-2, "float16": 5e-2, "bfloat16": 0.15},
}


class Unit(NamedTuple):
    """A step of the trunk's plan that has a ReLU, with the pool after it where one is."""

    name: str
    step: Conv | Fire
    module: nn.Module  # torch's, of the step
    pool: tuple[Pool, nn.Module] | None
    layers: tuple[Layer, ...]  # its convolutions
    affine: Affine  # what is done to its input first


class LayerProvider(NamedTuple):
    precision: str
    prepare: Callable[[Tensor], Tensor]  # puts a feature map into the type and layout in which it would come
    run: Callable[[Unit, bool, Tensor], Tensor]  # a unit, with its pool or without, of its input


def units(net: str, size: int, device: torch.device) -> list[Unit]:
    """The units of a trunk in order."""
    model = copied(random_lpips(net), device)
    modules = [module for slice_ in model.net.slices for module in slice_ if not isinstance(module, nn.ReLU)]
    steps = list(zip(model.net.plan, modules, strict=True))
    layers = iter(trunk_layers(net, size)[0])
    found: list[Unit] = []
    for i, (step, module) in enumerate(steps):
        if isinstance(step, Pool):
            continue
        own = tuple(next(layers) for _ in range(3 if isinstance(step, Fire) else 1))
        name = own[0].name if len(own) == 1 else f"{own[0].name} to {own[-1].name}"
        pools = [(after, its_module) for after, its_module in steps[i + 1 : i + 2] if isinstance(after, Pool)]
        affine = (None, None) if found else (model.scaling_layer.shift, model.scaling_layer.scale)
        found.append(Unit(name, step, module, next(iter(pools), None), own, affine))
    return found


def by_torch(unit: Unit, pools: bool, x: Tensor) -> Tensor:
    """A unit's output, before its pool, by torch's layers."""
    shift, scale = unit.affine
    if shift is not None and scale is not None:
        x = (x - shift) / scale
    y = unit.module(x)
    if isinstance(unit.step, Conv):
        y = y.relu_()
    if pools and unit.pool is not None:
        unit.pool[1](y)
    return y


def by_plan(trunk: Trunk, unit: Unit, pools: bool, x: Tensor) -> Tensor:
    """The same by this package's trunk."""
    plan = (unit.step._replace(tap=True), *([unit.pool[0]] if pools and unit.pool is not None else []))
    setting = trunk.setting(x.device)._replace(plan=plan)
    return frozen_trunk(setting, x, unit.affine, trunk.tensors(setting))[0]


def providers(net: str, device: torch.device, precisions: Sequence[str]) -> dict[str, LayerProvider]:
    """torch's layers, and this package's trunk in each precision; on a CPU in float32 with each way to convolve."""
    inherited = inherited_precision(device)
    found = {"torch": LayerProvider(inherited, Tensor.contiguous, by_torch)}
    for precision in precisions:
        found["ours" if precision == inherited else f"ours, {precision}"] = _ours(net, device, precision)
    if device.type == "cpu" and "float32" in precisions:
        found["ours, direct convolution"] = _ours(net, device, "float32", cpu_conv="direct")
        found["ours, Winograd"] = _ours(net, device, "float32", cpu_conv="winograd")
    return found


def _ours(net: str, device: torch.device, precision: str, **options: str) -> LayerProvider:
    trunk = copied(random_lpips(net), device, precision=precision, **options).net
    setting = trunk.setting(device)
    prepare = functools.partial(Tensor.to, dtype=setting.dtype, memory_format=setting.layout)
    return LayerProvider(precision, prepare, functools.partial(by_plan, trunk))


def measure(
    case: Case, device: torch.device, rounds: int, precisions: Sequence[str], limits: Ceilings
) -> Iterator[Record]:
    """A record of each unit, mode and provider, and of the limit in each precision."""
    candidates = providers(case.net, device, precisions)
    x = torch.cat(images(case, device))
    for unit in units(case.net, case.size, device):
        for mode in MODES:
            batch = x if mode == "forward" else x[: case.pairs]
            yield from _measure(unit, mode, batch, case, device, rounds, candidates, limits)
        with torch.no_grad():
            x = by_torch(unit, False, x)
            x = x if unit.pool is None else unit.pool[1](x)


def _measure(
    unit: Unit,
    mode: str,
    x: Tensor,
    case: Case,
    device: torch.device,
    rounds: int,
    candidates: dict[str, LayerProvider],
    limits: Ceilings,
) -> Iterator[Record]:
    names = {**case._asdict(), "mode": mode, "layer": unit.name, "images": len(x)}
    expected, d_y = _oracle(unit, mode, x)
    setups: dict[str, Callable[[], Call]] = {}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, provider in candidates.items():
        of_provider = x if unit.affine[0] is not None else provider.prepare(x)
        setup = functools.partial(_set_up, provider, unit, mode, of_provider, d_y)
        try:
            errors[name] = _check(setup(), expected, TOLERANCE[mode][provider.precision])
            setups[name] = setup
        except Exception as error:  # one that fails must not keep the others from being measured
            failures[name] = described(error)
            release_memory()
    del expected
    times, failed = interleaved(setups, Clock(device, kernels=True), rounds)
    failures |= failed
    flops = len(x) * sum(layer.flops for layer in unit.layers)
    for name, provider in candidates.items():
        record = {**names, "provider": name, "precision": provider.precision, "flops": flops}
        if name in failures:
            yield {**record, "error": failures[name]}
        else:
            yield {**record, **times[name].record(), "largest_error": errors[name]}
    for precision in dict.fromkeys(provider.precision for provider in candidates.values()):
        record = {**names, "provider": LIMIT, "precision": precision, "flops": flops}
        n_bytes = sum(layer.bytes(len(x), DTYPES[precision].itemsize) for layer in unit.layers)
        seconds = limit(flops, n_bytes, precision, limits)
        if seconds is not None:
            yield {**record, "bytes": n_bytes, **Quantiles(seconds, seconds, seconds).record()}


def _set_up(provider: LayerProvider, unit: Unit, mode: str, x: Tensor, d_y: Tensor | None) -> Call:
    """What is to be timed; for the backward the forward runs here."""
    if mode == "forward":
        return torch.no_grad()(functools.partial(provider.run, unit, True, x))
    assert d_y is not None
    x = x.detach().requires_grad_()
    y = provider.run(unit, False, x)
    grads = d_y.to(y.dtype).to(memory_format=_layout(y))
    return lambda: torch.autograd.grad(y, x, grads)[0]


def _layout(y: Tensor) -> torch.memory_format:
    channels_last = y.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _oracle(unit: Unit, mode: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The unit's output in float64, or the gradient to its input, and that to its output from which it comes."""
    shift, scale = unit.affine
    exact = unit._replace(
        module=copy.deepcopy(unit.module).double(),
        affine=(shift.double(), scale.double()) if shift is not None and scale is not None else (None, None),
    )
    if mode == "forward":
        with torch.no_grad():
            return by_torch(exact, False, x.double()), None
    leaf = x.double().requires_grad_()
    y = by_torch(exact, False, leaf)
    d_y = torch.randn(y.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device)
    return torch.autograd.grad(y, leaf, d_y.double())[0], d_y


def _check(call: Call, expected: Tensor, tolerance: float) -> float:
    found = call()
    assert isinstance(found, Tensor)
    error = ((found.double() - expected).norm() / expected.norm()).item()
    if not error <= tolerance:
        raise ArithmeticError(f"wrong, not timed: by {error:.1e}")
    return error
