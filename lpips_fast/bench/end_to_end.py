"""LPIPS whole, as a metric and as a loss: time, memory and the machine's limit, for every provider.

`forward` is the metric without gradients. `step` is the loss and its gradient to the first image, as in training. What
would take too long is left out (`patience`). Before a provider is timed, its distances and gradients are compared with
plain torch in float64. `kept` are the bytes that a forward keeps for its backward, apart from inputs and weights.
`peak` is how far the memory in use rises during a call: on a GPU the memory of tensors, on a CPU the resident memory of
a process of its own.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_fast.bench.cases import Case, images, limit, random_lpips, work
from lpips_fast.bench.ceilings import DTYPES, Ceilings
from lpips_fast.bench.patience import Patience
from lpips_fast.bench.providers import PROVIDERS, Distance, Provider, Sample, plain_torch
from lpips_fast.bench.records import Record
from lpips_fast.bench.timing import (
    Call,
    Clock,
    Quantiles,
    cuda_peak_bytes,
    described,
    interleaved,
    kept_bytes,
    release_memory,
    resident_peak_bytes,
)

MODES = ("forward", "step")
LIMIT = "limit"  # the provider in records of what the machine could do at best

# The largest relative error of a distance and the smallest cosine of a gradient, against float64.
TOLERANCE = {
    "float32": (1e-4, 0.999),
    "tf32": (1e-2, 0.99),
    "float16": (1e-2, 0.99),
    "bfloat16": (5e-2, 0.9),
}
_CHECKED_PAIRS = 2


class Oracle(NamedTuple):
    """The distances of the first pairs, and the gradient of each to its first image."""

    distances: Tensor
    gradients: Tensor


def forward(distance: Distance, in0: Tensor, in1: Tensor) -> Tensor:
    with torch.no_grad():
        return distance(in0, in1)


def step(distance: Distance, in0: Tensor, in1: Tensor) -> Tensor:
    """The gradient of the mean over the batch to in0."""
    in0 = in0.detach().requires_grad_()
    distance(in0, in1).mean().backward()
    assert in0.grad is not None
    return in0.grad


CALLS = {"forward": forward, "step": step}


def oracle(case: Case, sample: Sample) -> Oracle:
    in0, in1 = (x[:_CHECKED_PAIRS].double() for x in sample)
    exact = plain_torch(random_lpips(case.net), (in0, in1))
    return Oracle(forward(exact, in0, in1).flatten(), step(exact, in0, in1) * len(in0))


def check(distance: Distance, mode: str, sample: Sample, expected: Oracle, precision: str) -> float:
    """The largest relative error of a distance; for a step, how far the cosine of the gradients is from 1.

    Raises:
        ArithmeticError: the error is too large.
    """
    largest_error, smallest_cosine = TOLERANCE[precision]
    if mode == "forward":
        found = forward(distance, *sample).double().flatten()[: len(expected.distances)]
        error = ((found - expected.distances) / expected.distances).abs().max().item()
        if not (found.shape == expected.distances.shape and error <= largest_error):
            raise ArithmeticError(f"wrong, not timed: distances by {error:.1e}")
        return error
    gradients = step(distance, *sample).double()[: len(expected.gradients)] * len(sample[0])
    cosine = torch.cosine_similarity(gradients.flatten(1), expected.gradients.flatten(1)).min().item()
    length = (gradients.norm() / expected.gradients.norm()).item()
    if not (cosine >= smallest_cosine and abs(length - 1) <= 1 - smallest_cosine):
        raise ArithmeticError(f"wrong, not timed: gradients have a cosine of {cosine:.4f}, and {length:.4f} the length")
    return 1 - cosine


def measure(
    case: Case,
    mode: str,
    device: torch.device,
    rounds: int,
    providers: Mapping[str, Provider],
    limits: Ceilings,
    memory: bool,
) -> Iterator[Record]:
    """A record of each provider that has the net and the mode, and of the limit in each of their precisions.

    Compiling takes minutes, and a run may be stopped meanwhile. So the providers that are not compiled are timed first,
    and once more when all take turns. The last record of a provider counts.

    Args:
        memory: whether to measure memory, too; on a CPU that takes a process for each provider.
    """
    chosen = {name: p for name, p in providers.items() if case.net in p.nets and mode in p.modes}
    compiled = {name: provider for name, provider in chosen.items() if provider.wrapper == "compile"}
    if compiled:
        torch.compiler.reset()  # else earlier cases' shapes count towards torch.compile's limit, and it runs eagerly
    sample = images(case, device)
    expected = oracle(case, sample)
    names = {**case._asdict(), "mode": mode}
    scale = case.pixels / case.small.pixels
    patience = Patience(f"a {mode}", device, scale, _small(Provider(plain_torch), case, mode, device))
    records: dict[str, Record] = {}
    setups: dict[str, Callable[[], Call]] = {}
    for group in ({name: chosen[name] for name in chosen if name not in compiled}, compiled):
        for name, provider in group.items():
            precision = provider.precision_on(device)
            record = records[name] = {**names, "provider": name, "precision": precision}
            reason = provider.missing()
            small = _small(provider, case, mode, device)
            unmeasured = patience.left_out(small) if reason is None else {"error": reason}
            if unmeasured:
                yield {**record, **unmeasured}
                continue
            try:
                distance = provider.distance(random_lpips(case.net), *sample, gradient=mode == "step")
                call = functools.partial(CALLS[mode], distance, *sample)
                record["error_of_result"] = check(distance, mode, sample, expected, precision)
                if memory:
                    record |= _memory(name, provider, distance, call, case, mode, sample)
                setups[name] = functools.partial(functools.partial, call)
            except Exception as error:  # a provider that fails must not stop the others
                release_memory()
                yield {**record, "error": described(error)}
        if group.keys().isdisjoint(setups):
            continue
        times, failures = interleaved(setups, Clock(device), rounds)
        for name in times:
            yield {**records[name], **times[name].record()}
        for name, reason in failures.items():
            del setups[name]
            yield {**records[name], "error": reason}
    for precision in dict.fromkeys(record["precision"] for record in records.values()):
        flops, n_bytes = work(case, mode, DTYPES[precision].itemsize)
        seconds = limit(flops, n_bytes, precision, limits)
        if seconds is not None:
            at_limit = Quantiles(seconds, seconds, seconds).record()
            yield {**names, "provider": LIMIT, "precision": precision, **at_limit, "flops": flops, "bytes": n_bytes}


def _small(provider: Provider, case: Case, mode: str, device: torch.device) -> Callable[[], Call]:
    """Makes the call of the small case, once. It is not compiled, for that takes longer than the call."""

    @functools.cache
    def made() -> Call:
        sample = images(case.small, device)
        distance = provider._replace(wrapper=None).distance(random_lpips(case.net), *sample, gradient=mode == "step")
        return functools.partial(CALLS[mode], distance, *sample)

    return made


def _memory(
    name: str, provider: Provider, distance: Distance, call: Call, case: Case, mode: str, sample: Sample
) -> Record:
    found = {}
    if mode == "step" and provider.wrapper is None:
        in0 = sample[0].detach().clone().requires_grad_()
        found["kept_bytes"] = kept_bytes(functools.partial(distance, in0, sample[1]))
    if sample[0].device.type == "cpu":
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
            found["peak_bytes"] = process.submit(_resident_peak, name, case, mode, torch.get_num_threads()).result()
    elif provider.wrapper != "graph":  # a graph takes its memory once and keeps it
        found["peak_bytes"] = cuda_peak_bytes(call, sample[0].device)
    return found


def _resident_peak(name: str, case: Case, mode: str, threads: int) -> int:
    """In a new process: the peak of the first two calls, including what is made once and kept (transformed filters)."""
    torch.set_num_threads(threads)
    sample = images(case, torch.device("cpu"))
    distance = PROVIDERS[name].distance(random_lpips(case.net), *sample, gradient=mode == "step")
    return resident_peak_bytes(lambda: [CALLS[mode](distance, *sample) for _ in range(2)])
