"""The two limits of a machine, measured: the bandwidth of a large copy, and the rate of a large matrix product."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lpips_fast.bench.patience import Patience
from lpips_fast.bench.records import Record
from lpips_fast.bench.timing import Call, Clock, interleaved

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_SMALL_SIDE = 256  # of the matrices of a small product


class Ceilings(NamedTuple):
    bytes_per_s: float | None  # None if it could not be measured
    flops_per_s: dict[str, float]  # by precision


def copy(device: torch.device) -> tuple[Call, int]:
    """A copy between buffers too large for any cache, and the bytes that it reads and writes."""
    n_bytes = (2 << 30) if device.type == "cuda" else (256 << 20)
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return functools.partial(target.copy_, source), 2 * n_bytes


def product(device: torch.device, precision: str, n: int) -> tuple[Call, int]:
    """A product of random n x n matrices, and the number of its floating-point operations."""
    gen = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=gen).to(DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)

    def call() -> None:
        with _products_in(precision, device):
            torch.mm(a, b, out=out)

    return call, 2 * n**3


@contextlib.contextmanager
def _products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Makes CUDA compute float32 products in TF32, or without it."""
    if device.type != "cuda" or precision not in ("tf32", "float32"):
        yield
        return
    flags = torch.backends.cuda.matmul
    before = flags.fp32_precision
    flags.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        flags.fp32_precision = before


def measure(device: torch.device, precisions: Sequence[str], rounds: int) -> Iterator[Record]:
    """Records of the copy and of the product in each precision."""
    clock = Clock(device, kernels=True)
    yield _record({"what": "copy", "precision": None}, *copy(device), clock, rounds, "bytes")
    side = 8192 if device.type == "cuda" else 2048
    small = {p: functools.partial(_call, device, p, _SMALL_SIDE) for p in ("float32", *precisions)}
    patience = Patience("a product", device, (side / _SMALL_SIDE) ** 3, small["float32"])
    for precision in precisions:
        names = {"what": "product", "precision": precision}
        left_out = patience.left_out(small[precision])
        if left_out:
            yield {**names, **left_out}
        else:
            yield _record(names, *product(device, precision, side), clock, rounds, "flops")


def _call(device: torch.device, precision: str, n: int) -> Call:
    return product(device, precision, n)[0]


def _record(names: Record, call: Call, amount: int, clock: Clock, rounds: int, unit: str) -> Record:
    times, failures = interleaved({"call": lambda: call}, clock, rounds)
    if failures:
        return {**names, "error": failures["call"]}
    median = times["call"].median
    return {**names, **times["call"].record(), unit: amount, f"{unit}_per_s": amount / median}


def of_records(records: Sequence[Record]) -> Ceilings:
    """The ceilings that are in the records of `measure`."""
    measured = [record for record in records if "error" not in record]
    copies = [record["bytes_per_s"] for record in measured if record["what"] == "copy"]
    rates = {record["precision"]: record["flops_per_s"] for record in measured if record["what"] == "product"}
    return Ceilings(copies[-1] if copies else None, rates)
