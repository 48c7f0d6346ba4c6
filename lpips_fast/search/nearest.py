"""The k images nearest to a query: candidates by estimated distances, then their exact distances.

Estimates come from stored vectors or from sketches. Either kind knows how far an estimate may be off: `above(d)` is the
largest estimate of an image at distance d, `below(s)` the largest distance of an image with estimate s.

  * Vectors. A matrix product gives |q|^2 + |v|^2 - 2 q.v, off by up to r (|q|^2 + |v|^2) by rounding, and
    |v|^2 <= (|q| + |v - q|)^2 <= 2 |q|^2 + 2 |v - q|^2. So above(d) = below(d) = d + r (3 |q|^2 + 2 d).
  * Sketches. The standard deviation of an estimate is at most `spread` of the distance (see lpips_fast/sketch.py), and
    z = 3 of them are allowed for: above(d) = d (1 + z spread), below(s) = s / (1 - z spread). Rounding both sketches to
    float16 adds some 2^-20 / 12 |q|^2 to an estimate; twice that is added to both.

If s_k is the k-th smallest estimate, the k-th smallest distance is at most below(s_k). So the candidates are the images
with estimates up to above(below(s_k)). Their exact distances are computed in the order of the estimates, until the next
estimate is larger than above(d_k), where d_k is the k-th smallest distance so far. With vectors nothing is lost. With
sketches an image among the k nearest is lost if its estimate is too high by more than z standard deviations and more
than d_k needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lpips_fast.pairwise import direct_distances, product_distances, product_rounding
from lpips_fast.sketch import Sketch, distances

DEVIATIONS = 3.0  # z
_BLOCK_BYTES = 2**28  # size in float32 of the stored rows that are compared at once, and of embeddings in memory
_LEAST_FIRST = 16  # candidates whose distances are computed first, at least
_MOST_OF_FAISS = 4096  # candidates that FAISS is asked for among sketches, at most, unless 10 k are more

Stored = Callable[[Sequence[int]], tuple[Tensor, Sequence[int]]]


class Candidates(NamedTuple):
    """Images that may be among the nearest to one query, the least estimate first, of equal ones the lower row."""

    estimates: Tensor  # [n], squared distances
    rows: Tensor  # [n]


class VectorEstimates:
    """Estimates by matrix products with stored vectors."""

    def __init__(self, queries: Tensor, stored: Tensor, rounding: float | None = None) -> None:
        self.queries, self.stored = queries, stored
        self._rounding = product_rounding() if rounding is None else rounding
        self._lengths = queries.square().sum(dim=1, keepdim=True)

    def of(self, rows: slice) -> Tensor:
        """[Q, n]."""
        return product_distances(self.queries, self.stored[rows].to(self.queries))[0]

    def above(self, distance: Tensor) -> Tensor:
        """[Q, 1] of [Q, 1]."""
        return distance + self._rounding * (3 * self._lengths + 2 * distance)

    below = above


class SketchEstimates:
    """Estimates by stored sketches."""

    def __init__(self, queries: Tensor, stored: Tensor, sketch: Sketch, deviations: float = DEVIATIONS) -> None:
        self.queries = queries.to(stored.dtype).float()  # rounded as the stored ones: equal images are at 0
        self.stored = stored
        self._deviation = deviations * sketch.spread
        self._rounding = 2**-20 / 6 * self.queries.square().sum(dim=1, keepdim=True)

    def of(self, rows: slice) -> Tensor:
        """[Q, n]."""
        return distances(self.queries, self.stored[rows].to(self.queries.device))

    def above(self, distance: Tensor) -> Tensor:
        """[Q, 1] of [Q, 1]."""
        return distance * (1 + self._deviation) + self._rounding

    def below(self, estimate: Tensor) -> Tensor:
        """[Q, 1] of [Q, 1]."""
        return estimate / (1 - self._deviation) + self._rounding


Estimates = VectorEstimates | SketchEstimates


def scan(estimates: Estimates, k: int, rows: range) -> list[Candidates]:
    """The candidates of each query among the stored rows.

    Raises:
        ValueError: the stored numbers of an image are NaN or infinite.
    """
    queries = estimates.queries
    bytes_of_row = max(4 * estimates.stored.shape[1], 16 * len(queries))  # in float32, and its estimates
    block = max(1, _BLOCK_BYTES // bytes_of_row)
    kept = queries.new_zeros(len(queries), 0)
    numbers = kept.long()
    for start in range(rows.start, rows.stop, block):
        stop = min(start + block, rows.stop)
        here = estimates.of(slice(start, stop))
        check_finite("images", here.T, start)  # loading leaves this check to the search
        before = kept.shape[1]
        kept = torch.cat((kept, here), dim=1)
        near = _near(estimates, kept, k)
        kept, order = kept.topk(int(near.sum(dim=1).max()), dim=1, largest=False)
        of_before = torch.cat((numbers, order.new_zeros(len(queries), 1)), dim=1).gather(1, order.clamp(max=before))
        numbers = torch.where(order < before, of_before, order + (start - before))
    return _candidates(estimates, kept, numbers, k)


def merged(estimates: Estimates, parts: Sequence[Sequence[Candidates]], k: int) -> list[Candidates]:
    """The candidates of each query among all rows, from its candidates among parts of the rows."""
    width = max((sum(len(part[i].rows) for part in parts) for i in range(len(estimates.queries))), default=0)
    if width == 0:
        return [*parts[0]]
    kept = estimates.queries.new_full((len(estimates.queries), width), torch.inf)
    numbers = torch.full(kept.shape, -1)
    for i in range(len(kept)):
        of_query = torch.cat([part[i].estimates for part in parts])
        kept[i, : len(of_query)] = of_query
        numbers[i, : len(of_query)] = torch.cat([part[i].rows for part in parts])
    return _candidates(estimates, kept, numbers.to(kept.device), k)


def by_faiss(estimates: Estimates, index: Any, k: int) -> list[Candidates]:
    """The candidates among the images that FAISS finds.

    With vectors FAISS's own distances are the estimates; it computes them by a matrix product, too. With sketches the
    estimates are computed again, because FAISS's may be those of compressed sketches.

    Args:
        index: FAISS's index of the stored vectors or sketches.
    """
    queries, count = estimates.queries.float().cpu(), index.ntotal
    of_sketches = isinstance(estimates, SketchEstimates)
    n = min(max(10 * k, 100) if of_sketches else 2 * k, count)
    most = min(max(n, _MOST_OF_FAISS), count) if of_sketches else count
    while True:
        kept, numbers = map(torch.from_numpy, index.search(queries.numpy(), n))
        if of_sketches:
            for i, rows in enumerate(numbers):
                stored = estimates.stored[rows.clamp(min=0).to(estimates.stored.device)]
                kept[i] = distances(estimates.queries[i : i + 1], stored.to(estimates.queries.device))[0].cpu()
        kept = kept.masked_fill(numbers < 0, torch.inf)
        near = _near(estimates, kept.to(estimates.queries.device), min(k, n)).cpu() & (numbers >= 0)
        enough = 2 * near.sum(dim=1).max() <= n if of_sketches else not near[:, -1].any()
        if n == most or enough:
            break
        n = min(4 * n, most)
    if not of_sketches:
        near[:, : 2 * k] = numbers[:, : 2 * k] >= 0  # more than k: most of FAISS's indexes are approximate
    kept = kept.masked_fill(~near, torch.inf)
    return [_sorted(e[chosen], r[chosen]) for e, r, chosen in zip(kept, numbers, near, strict=True)]


class Confirmed(NamedTuple):
    """What is nearest among the candidates of each query."""

    distances: Tensor  # [Q, k], exact squared ones, least first; inf where fewer are found
    rows: Tensor  # [Q, k]; -1 where fewer are found
    lost: Tensor  # [Q], how many of the candidates that were asked for are gone


def confirm(
    queries: Tensor, candidates: Sequence[Candidates], k: int, estimates: Estimates, stored: Stored
) -> Confirmed:
    """The nearest of the candidates, by their exact distances.

    Args:
        queries: vectors [Q, D], float32 on the CPU.
        stored: the vectors of some rows, and which of the rows they are; an image that is gone is left out.
    """
    at_once = max(1, _BLOCK_BYTES // (4 * queries.shape[1]))
    found = [(queries.new_zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in candidates]
    done, step = [0] * len(candidates), max(_LEAST_FIRST, 2 * k)
    lost = torch.zeros(len(candidates), dtype=torch.int64)
    while True:
        kth = torch.stack([_kth(d, k) for d, _ in found])[:, None]
        reach = estimates.above(kth.to(estimates.queries)).flatten().cpu()
        wanted: list[list[int]] = []
        for i, (estimated, numbered) in enumerate(candidates):
            end = int(torch.searchsorted(estimated, reach[i], right=True))
            wanted.append(numbered[done[i] : min(end, done[i] + step)].tolist())
            done[i] += len(wanted[i])
        rows = sorted({row for of_query in wanted for row in of_query})
        if not rows:
            break
        for start in range(0, len(rows), at_once):
            asked = {*rows[start : start + at_once]}
            vectors, kept = stored(rows[start : start + at_once])
            place = {row: p for p, row in enumerate(kept)}
            for i, of_query in enumerate(wanted):
                here = [row for row in of_query if row in place]
                lost[i] += sum(row in asked for row in of_query) - len(here)
                places = torch.tensor([place[row] for row in here], dtype=torch.int64)
                exact = direct_distances(queries[i], vectors, places)
                if not exact.isfinite().all():
                    raise _not_finite("images", here[exact.isfinite().tolist().index(False)])
                found[i] = torch.cat((found[i][0], exact)), torch.cat((found[i][1], torch.tensor(here).long()))
        step *= 2
    distances, numbers = queries.new_full((len(queries), k), torch.inf), torch.full((len(queries), k), -1)
    for i, (exact, numbered) in enumerate(found):
        exact, numbered = _sorted(exact, numbered)
        count = min(k, len(exact))
        distances[i, :count], numbers[i, :count] = exact[:count], numbered[:count]
    return Confirmed(distances, numbers, lost)


def check_finite(name: str, vectors: Tensor, start: int = 0) -> None:
    """Raises a ValueError that names the first image whose vector is NaN or infinite; `start` is the first's index.

    Call it after the vectors were copied to the CPU. The copy has waited for the device, so this check adds no wait.
    """
    finite = vectors.sum(dim=1, dtype=torch.float32).isfinite()  # several times faster than a check of each value
    if not finite.all():
        raise _not_finite(name, start + finite.tolist().index(False))


def _not_finite(name: str, i: int) -> ValueError:
    return ValueError(f"{name} must be finite, got NaN or infinite values in the vector of {name}[{i}]")


def _near(estimates: Estimates, kept: Tensor, k: int) -> Tensor:
    """Which of the estimates [Q, n] may be of one of the k nearest images."""
    kth = kept.topk(min(k, kept.shape[1]), dim=1, largest=False).values[:, -1:]
    return kept <= estimates.above(estimates.below(kth))


def _candidates(estimates: Estimates, kept: Tensor, numbers: Tensor, k: int) -> list[Candidates]:
    near = _near(estimates, kept, k) & (numbers >= 0)
    rows = zip(kept.cpu(), numbers.cpu(), near.cpu(), strict=True)
    found = [_sorted(e[chosen], r[chosen]) for e, r, chosen in rows]
    return [_first_of_equal(estimates.stored, c, k) for c in found] if isinstance(estimates, SketchEstimates) else found


def _first_of_equal(stored: Tensor, found: Candidates, k: int) -> Candidates:
    """Leaves out images behind k others with the same sketch, for these have the same distance and come before them.

    Many black frames, say, would all be read again.
    """
    _, counts = found.estimates.unique_consecutive(return_counts=True)
    kept = torch.ones(len(found.rows), dtype=torch.bool)
    for end, count in zip(counts.cumsum(0).tolist(), counts.tolist(), strict=True):
        if count > k:
            run = slice(end - count, end)
            sketches = stored[found.rows[run].to(stored.device)].cpu().view(torch.int16)
            _, kinds = sketches.unique(dim=0, return_inverse=True)
            for kind in range(int(kinds.max()) + 1):
                kept[run][(kinds == kind).nonzero()[k:, 0]] = False
    return Candidates(found.estimates[kept], found.rows[kept])


def _sorted(values: Tensor, rows: Tensor) -> Candidates:
    """By value, and by row where values are equal."""
    rows, order = rows.sort()
    values, by_value = values[order].sort(stable=True)
    return Candidates(values, rows[by_value])


def _kth(distances: Tensor, k: int) -> Tensor:
    return distances.topk(k, largest=False).values[-1] if len(distances) >= k else distances.new_tensor(torch.inf)
