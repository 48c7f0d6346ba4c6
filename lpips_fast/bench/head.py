"""The head alone, on features of the shapes of a net's taps: its backends, and the reference under torch.compile.

GB/s count the bytes that must cross the memory bus. Their limit is the bandwidth of a copy, which takes turns with the
rest. On a GPU only the kernels are timed, with cold caches.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_fast.bench import ceilings
from lpips_fast.bench.cases import Case, trunk_layers
from lpips_fast.bench.records import Record
from lpips_fast.bench.timing import Call, Clock, described, interleaved, release_memory
from lpips_fast.head import autograd, backends
from lpips_fast.head.operators import HeadInput, Norm, accumulation_dtype
from lpips_fast.head.reference import head_ref

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = ("forward", "backward", "forward+backward")
# Passes over the features of one image. A forward and a backward read both images; a backward writes one gradient.
_PASSES = {"forward": 2, "backward": 3, "forward+backward": 5}
VALUE_TOLERANCE = 5e-5
_CHECKED_PAIRS = 2  # not all of the pairs: the oracle in float64 takes memory
GRADIENT_TOLERANCE = {torch.float32: 5e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

Head = Callable[[list[Tensor], list[Tensor], list[Tensor]], Tensor]


class Features(NamedTuple):
    """Features of both images, and weights. The first image's need a gradient unless the mode is 'forward'."""

    feats0: list[Tensor]
    feats1: list[Tensor]
    weights: list[Tensor]
    mode: str

    @property
    def bytes_moved(self) -> int:
        return _PASSES[self.mode] * sum(f.numel() * f.element_size() for f in self.feats0)


def features(case: Case, dtype: torch.dtype, layout: str, mode: str, device: torch.device, seed: int = 0) -> Features:
    """Random features of the shapes of a net's taps, not negative, like the output of a ReLU."""
    gen = torch.Generator(device).manual_seed(seed)
    _, taps = trunk_layers(case.net, case.size)

    def of_image() -> list[Tensor]:
        feats = (torch.randn(case.pairs, *tap, generator=gen, device=device).relu() for tap in taps)
        return [f.to(dtype, memory_format=LAYOUTS[layout]) for f in feats]

    weights = [torch.rand(tap[0], generator=gen, device=device).to(accumulation_dtype(dtype)) for tap in taps]
    return Features([f.requires_grad_(mode != "forward") for f in of_image()], of_image(), weights, mode)


def providers(device: torch.device, compile: bool) -> dict[str, Head]:
    """The backends on the device, the reference first; with `compile`, also the reference under torch.compile."""
    found: dict[str, Head] = {}
    for backend in backends.BACKENDS:
        if backend in ("cuda", "triton") and device.type == "cpu":
            continue  # the tests' emulator and Triton's interpreter
        try:
            backends.choose(backend, device)
        except RuntimeError:
            continue
        found[backend] = functools.partial(_head_of, backend)
    if compile:
        torch.compiler.reset()  # else earlier cases' shapes count towards torch.compile's limit, and it runs eagerly
        compiled = torch.compile(head_ref, dynamic=False)
        found["torch.compile"] = lambda feats0, feats1, weights: compiled(HeadInput(feats0, feats1, weights, Norm()))
    return found


def _head_of(backend: str, feats0: list[Tensor], feats1: list[Tensor], weights: list[Tensor]) -> Tensor:
    return autograd.head(backend, HeadInput(feats0, feats1, weights, Norm()))


def set_up(head: Head, feats: Features) -> Call:
    """The call to time. For the backward alone, the forward runs here."""

    def value() -> Tensor:
        return head(feats.feats0, feats.feats1, feats.weights)

    if feats.mode == "forward":
        return value
    if feats.mode == "backward":
        return functools.partial(torch.autograd.grad, value().sum(), feats.feats0)
    return lambda: torch.autograd.grad(value().sum(), feats.feats0)


def oracle(feats: Features) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Values and gradients of the first pairs by the reference in float64."""
    feats0, feats1 = ([f[:_CHECKED_PAIRS].detach().double() for f in side] for side in feats[:2])
    weights = [weight.double() for weight in feats.weights]
    return _values_and_gradients(functools.partial(_head_of, "reference"), feats0, feats1, weights, feats.mode)


def _values_and_gradients(
    head: Head, feats0: list[Tensor], feats1: list[Tensor], weights: list[Tensor], mode: str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    feats0 = [f.detach().requires_grad_(mode != "forward") for f in feats0]
    value = head(feats0, feats1, weights)
    return value.detach(), () if mode == "forward" else torch.autograd.grad(value.sum(), feats0)


def check(head: Head, feats: Features, expected: tuple[Tensor, tuple[Tensor, ...]]) -> float:
    """The largest error of values and of gradients, relative to the largest of each.

    Raises:
        ArithmeticError: an error is too large.
    """
    value, gradients = _values_and_gradients(head, *feats)
    value_error = _largest_error([value[:_CHECKED_PAIRS]], [expected[0]])
    gradient_error = _largest_error([gradient[:_CHECKED_PAIRS] for gradient in gradients], expected[1])
    if not value_error <= VALUE_TOLERANCE or not gradient_error <= GRADIENT_TOLERANCE[feats.feats0[0].dtype]:
        raise ArithmeticError(f"wrong, not timed: values by {value_error:.1e}, gradients by {gradient_error:.1e}")
    return max(value_error, gradient_error)


def _largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if not expected:
        return 0.0
    largest = max(e.abs().max().item() for e in expected)
    errors = torch.stack([(f.double() - e).abs().max() for f, e in zip(found, expected, strict=True)])
    return errors.max().item() / largest  # NaN stays NaN


def measure(
    case: Case,
    precision: str,
    layout: str,
    mode: str,
    device: torch.device,
    rounds: int,
    heads: dict[str, Head],
) -> Iterator[Record]:
    """A record of each provider and of the copy."""
    names = {**case._asdict(), "precision": precision, "mode": mode, "layout": layout}
    # Two sets of features take turns, so that no call finds its features in a cache.
    sets = [features(case, ceilings.DTYPES[precision], layout, mode, device, seed) for seed in range(2)]
    turns = itertools.cycle(sets)
    expected = oracle(sets[0])
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, head in heads.items():
        try:
            errors[name] = check(head, sets[0], expected)
        except Exception as error:  # a provider that fails must not stop the others
            failures[name] = described(error)
            release_memory()
    del expected
    setups: dict[str, Callable[[], Call]] = {
        name: lambda head=heads[name]: set_up(head, next(turns))  # type: ignore[misc]
        for name in errors
    }
    copy, copy_bytes = ceilings.copy(device)
    times, failed = interleaved({**setups, "copy": lambda: copy}, Clock(device, kernels=True), rounds)
    failures |= failed
    for name in (*heads, "copy"):
        if name in failures:
            yield {**names, "provider": name, "error": failures[name]}
            continue
        n_bytes = copy_bytes if name == "copy" else sets[0].bytes_moved
        record = {**names, "provider": name, **times[name].record(), "bytes": n_bytes}
        yield record if name == "copy" else {**record, "largest_error": errors[name]}
