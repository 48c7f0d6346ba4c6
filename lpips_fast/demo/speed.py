"""Speed against plain torch, and agreement with it; both take turns in one run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_fast import functional
from lpips_fast.bench.cases import plain_taps
from lpips_fast.bench.providers import plain_torch
from lpips_fast.head import backends
from lpips_fast.lpips import LPIPS


class Comparison(NamedTuple):
    what: str
    seconds: float  # median
    plain_seconds: float  # median
    difference: float  # the largest difference of a distance, relative to it
    gradient_difference: float | None  # the norm of the gradients' difference, relative to the gradient's norm; or None

    @property
    def ratio(self) -> float:
        return self.plain_seconds / self.seconds


def compare(module: LPIPS, in0: Tensor, in1: Tensor, rounds: int) -> tuple[str, list[Comparison]]:
    """Times the head alone and LPIPS as a whole.

    Args:
        module: the LPIPS to time.
        in0, in1: pairs of images [N, 3, H, W] in [-1, 1].
        rounds: how many times each is called, after one call to warm up.

    Returns:
        the backend of the head, and the comparisons.
    """
    leaf = in0.clone().requires_grad_()
    with torch.no_grad():
        taps = [list(module.features(x).taps) for x in (in0, in1)]
        plain_feats = [plain_taps(module, x) for x in (in0, in1)]
    weights = list(module.lins.parameters())
    plain = plain_torch(module, (in0, in1))

    # Each head gets features in the layout that its own trunk gives, and computes the gradient to the first image's.
    leaves, plain_leaves = ([t.clone().requires_grad_() for t in feats[0]] for feats in (taps, plain_feats))

    def head(backend: str, feats0: list[Tensor], feats1: list[Tensor]) -> Tensor:
        return functional.lpips_head(feats0, feats1, weights, backend=backend).sum(dim=1)

    comparisons = [
        _compared("head, forward", rounds, lambda: head("auto", *taps), lambda: head("reference", *plain_feats)),
        _compared(
            "head, forward + backward",
            rounds,
            lambda: head("auto", leaves, taps[1]),
            lambda: head("reference", plain_leaves, plain_feats[1]),
            leaves,
            plain_leaves,
        ),
        _compared("LPIPS, forward", rounds, lambda: module(in0, in1).flatten(), lambda: plain(in0, in1)),
        _compared(
            "LPIPS, forward + backward",
            rounds,
            lambda: module(leaf, in1).flatten(),
            lambda: plain(leaf, in1),
            [leaf],
            [leaf],
        ),
    ]
    return backends.choose("auto", in0.device), comparisons


def _compared(
    what: str,
    rounds: int,
    ours: Callable[[], Tensor],
    plain: Callable[[], Tensor],
    leaves: Sequence[Tensor] = (),
    plain_leaves: Sequence[Tensor] = (),
) -> Comparison:
    """Calls both in turn, and computes the gradients to their leaves, if there are any."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):  # the first warms up
        results = []
        for function, wanted, record in zip((ours, plain), (leaves, plain_leaves), times, strict=True):
            start = time.perf_counter()
            value = function()
            gradients = torch.autograd.grad(value.sum(), wanted) if wanted else ()
            record.append(time.perf_counter() - start)
            results.append((value.detach(), gradients))
    (value, gradients), (plain_value, plain_gradients) = results
    difference = ((value - plain_value).abs() / plain_value).max().item()
    gradient_difference = None
    if gradients:
        error = sum((g - p).square().sum().item() for g, p in zip(gradients, plain_gradients, strict=True))
        gradient_difference = math.sqrt(error / sum(p.square().sum().item() for p in plain_gradients))
    seconds, plain_seconds = (statistics.median(record[1:]) for record in times)
    return Comparison(what, seconds, plain_seconds, difference, gradient_difference)
