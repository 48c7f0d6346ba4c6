"""Groups of near-duplicates: images that are joined, directly or by others, by an LPIPS below a limit.

The groups are the connected components of the graph whose edges are the pairs with LPIPS < below; between two indexes,
only pairs with one image of each. A million images have 5e11 pairs, so few pairs may cost more than a few hundred
multiplications, and pairs are never all in memory:

1. The pairs are cut into tiles of 4096 x 4096 images. A tile folds the sketches of its images (see `sketch`) to some
   128 numbers, and one matrix product estimates all distances, strip by strip. With

       h(x) = limit / 4 - (1 - c) |x|^2 / 2

   x.y + h(x) + h(y) >= 0 means that |x - y|^2 <= limit + c (|x|^2 + |y|^2). So two more columns turn the product into
   the decision. c allows for the rounding of the product and of float16.
2. A pair that is left, and whose images are not in one component yet, is estimated by its whole sketches.
3. What is left then is confirmed by exact LPIPS, from embeddings that the index keeps or makes again. An image is
   compared with one image of each other component at a time, the nearest estimate first, until they are joined or no
   candidate is left. So n images that are all alike cost n confirmations instead of n (n - 1) / 2.

Steps 1 and 2 let a pair pass whose estimate is up to the limit times the quantile that all but one in ten million pairs
at the limit stay below, and more of those that are nearer. An estimate by m buckets is LPIPS times chi^2 / m with m
degrees of freedom, if the difference of the images is spread over many coordinates. Wilson and Hilferty (1931) have its
quantile:

    (1 - 2 / (9 m) + z sqrt(2 / (9 m)))^3

Differences of real images have somewhat more large estimates (docs/retrieval.md has what was measured).

A confirmed distance is exact up to the type of the vectors: a pair with LPIPS >= below joins only if the rounding of
stored float16 vectors takes it below. The components depend neither on the tiles nor on the order of confirmations,
except that the last digits of embeddings that are made again may depend on the batch. Memory holds a number for each
image, two blocks of sketches, and some embeddings. An index without sketches has all of them made, in memory: 2 KiB an
image.

Components are labels, an image each: joining two gives the smaller one the label of the larger, N log N changes in all.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_fast.pairwise import direct_distances, product, product_rounding
from lpips_fast.search.index import Index
from lpips_fast.sketch import Sketch, fold

Tile = tuple[slice, slice]  # rows of the first index, rows of the second
Progress = Callable[[int, int], object]  # gets how many tiles are done, and how many there are

_TILE = 4096  # images on a side of a tile
_STRIP = 256  # rows of a tile that one product compares with its columns
_PAIRS = 2048  # pairs whose whole sketches are compared at once
_FOLDED = 128  # length of folded sketches, at least
_QUANTILE = 5.1993  # of the normal distribution, for one in ten million
_FLOAT16 = 2.0**-22  # what the rounding to float16 adds to a squared distance, relative to the squared lengths
_CONFIRMED = 16  # candidates of an image, or images with one candidate each, whose embeddings are asked for at once
_CACHE_BYTES = 2**28  # embeddings that are kept for the next confirmations

# Fields of an index's header that two indexes must share; None is unknown.
_SHARED = ("net", "version", "lpips", "size", "values", "normalize", "raw", "linear_sha256", "trunk_sha256")


class Group(NamedTuple):
    """Near-duplicates of each other.

    Attributes:
        members: at least two images in order, each as (0, row) of the first index, or (1, row) of the second.
        distances: LPIPS of each member to the first one, 0 for the first. In a chain of images, each near to the next,
            they may exceed the limit. NaN if an image cannot be read any more.
    """

    members: list[tuple[int, int]]
    distances: list[float]


class Edge(NamedTuple):
    """Two images whose confirmed LPIPS is below the limit, by number: those of a second index follow the first's."""

    a: int
    b: int
    distance: float


def duplicates(
    index: Index, other: Index | None = None, *, below: float, progress: Progress = lambda done, total: None
) -> list[Group]:
    """The groups of near-duplicates in an index, or between two.

    Two images are in one group if a chain of pairs with LPIPS < below leads from one to the other. Between two indexes
    these are pairs with one image of each, so every group has images of both: what a test set shares with a training
    set. Images that are alike within one of the indexes do not count.

    Sketches find the pairs, and exact LPIPS confirms them. A pair whose LPIPS is just below the limit is overlooked
    with a probability of about one in a million, a nearer one with less. An image that cannot be read any more is in
    no group.

    Args:
        index, other: the images. Their order and all sizes of blocks have no influence on the groups.
        below: the limit, finite and above 0.
        progress: called after each tile of pairs with the number of tiles done and of all tiles.

    Returns:
        The groups in order of their first members.

    Raises:
        ValueError: below is no such number; the indexes were not made by one distance for one size and range of images;
            a sketch or a vector is NaN or infinite; an index keeps sketches alone, and they are of another length or
            seed than the other's, or its `images` is None.
    """
    edges = find_edges(index, other, tiles(index, other), below=below, progress=progress)
    return groups(index, other, edges)


def tiles(index: Index, other: Index | None) -> list[Tile]:
    """All tiles of pairs, for `find_edges`; those of one index are on and above the diagonal."""
    rows, columns = ([slice(i, i + _TILE) for i in range(0, len(x), _TILE)] for x in (index, other or index))
    return [(r, c) for r in rows for c in columns if other is not None or c.start >= r.start]


@torch.no_grad()
def find_edges(
    index: Index,
    other: Index | None,
    tiles: Sequence[Tile],
    *,
    below: float,
    progress: Progress = lambda done, total: None,
) -> list[Edge]:
    """Pairs of these tiles with LPIPS < below that join all images that such pairs join; no more than are needed.

    Several processes can each take some of the tiles. `groups` of all their edges are then those of all tiles.

    Args, Raises: as `duplicates`.
    """
    search = _Search(index, other, checked_limit("below", below))
    for done, (rows, columns) in enumerate(tiles, start=1):
        with torch.autocast(search.device.type, enabled=False):
            search.tile(rows, columns)
        progress(done, len(tiles))
    return search.edges


def groups(index: Index, other: Index | None, edges: Iterable[Edge]) -> list[Group]:
    """The groups that edges join, with the distances to their first members."""
    indexes = _indexes(index, other)
    components = _Components(sum(map(len, indexes)))
    known = {}
    for a, b, distance in edges:
        components.join(a, b)
        known[a, b] = distance
    embeddings = _Embeddings(indexes)
    found = []
    for first, *others in components.of_several():
        unknown = [b for b in others if (first, b) not in known]
        for start in range(0, len(unknown), _CONFIRMED):
            batch = unknown[start : start + _CONFIRMED]
            known |= {(first, b): distance for b, distance in zip(batch, embeddings.distances(first, batch))}
        members = [(0, a) if a < len(index) else (1, a - len(index)) for a in (first, *others)]
        found.append(Group(members, [0.0, *(known[first, b] for b in others)]))
    return found


class _Block(NamedTuple):
    """The images on one side of a tile."""

    start: int  # the number of the first
    sketches: Tensor  # [n, m] float16
    decided: Tensor  # [n, k + 2] float32: folded sketches, then h(x), then 1


class _Search:
    """Goes through tiles, and joins images."""

    def __init__(self, index: Index, other: Index | None, below: float) -> None:
        self.indexes = _indexes(index, other)
        kinds = [x.header.sketch for x in sorted(self.indexes, key=lambda x: x.vectors is not None)]
        sketch = next(filter(None, kinds), Sketch())  # rather of an index without vectors, which has no other ones
        self.sketches = [x.sketched(sketch) for x in self.indexes]
        self.device = index.device
        self.below = below
        self.components = _Components(sum(map(len, self.indexes)))
        self.embeddings = _Embeddings(self.indexes)
        self.edges: list[Edge] = []
        self._squared = below * self.embeddings.pixels  # the limit of squared distances of vectors
        self._folded = next(k for k in range(min(_FOLDED, sketch.length), sketch.length + 1) if sketch.length % k == 0)
        self._held: dict[tuple[int, int], _Block] = {}

    def tile(self, of_rows: slice, of_columns: slice) -> None:
        sides = (0, of_rows), (len(self.indexes) - 1, of_columns)
        keys = [(side, part.start) for side, part in sides]
        self._held = {key: self._held[key] for key in keys if key in self._held}
        for key, (side, part) in zip(keys, sides):
            if key not in self._held:
                self._held[key] = self._block(side, part)
        a, b = (self._held[key] for key in keys)
        own, ones = b.decided[:, -2:].T
        turned = torch.cat([b.decided[:, :-2], torch.stack([ones, own], dim=1)], dim=1)
        all_columns = torch.arange(len(turned))
        for start in range(0, len(a.decided), _STRIP):
            scores = product(a.decided[start : start + _STRIP], turned)
            rows = start + (scores.amax(dim=1) >= 0).nonzero()[:, 0].cpu()  # few: to look at all takes as long again
            near = (scores[rows - start] >= 0).cpu() & self._apart(a.start + rows[:, None], b.start + all_columns)
            i, j = near.nonzero(as_tuple=True)
            i = rows[i]
            if keys[0] == keys[1]:
                i, j = i[i < j], j[i < j]
            for some in zip(i.split(_PAIRS), j.split(_PAIRS)):
                self._pairs(a, b, *some)

    def _block(self, side: int, rows: slice) -> _Block:
        sketches = self.sketches[side][rows].to(self.device)
        folded = fold(sketches, self._folded)
        lengths = folded.square().sum(dim=1)
        if not (finite := lengths.isfinite()).all():
            raise _not_finite(side, self.indexes[side], "sketch", rows.start + finite.tolist().index(False))
        limit = self._squared * _margin(self._folded)
        allowance = 2 * product_rounding(self._folded) + _FLOAT16
        own = limit / 4 - (1 - allowance) / 2 * lengths
        start = rows.start + (len(self.indexes[0]) if side else 0)
        return _Block(start, sketches, torch.cat([folded, torch.stack([own, torch.ones_like(own)], dim=1)], dim=1))

    def _pairs(self, a: _Block, b: _Block, i: Tensor, j: Tensor) -> None:
        """Joins what is near among pairs of rows of two blocks, by their whole sketches and by exact LPIPS."""
        apart = self._apart(a.start + i, b.start + j)  # now; the pairs before may have joined them
        if not apart.any():
            return
        i, j = i[apart], j[apart]
        x, y = (block.sketches[rows.to(self.device)].float() for block, rows in ((a, i), (b, j)))
        lengths = x.square().sum(dim=1) + y.square().sum(dim=1)
        estimates = (x - y).square().sum(dim=1)
        near = (estimates <= self._squared * _margin(x.shape[1]) + _FLOAT16 * lengths).cpu()
        i, j = i[near], j[near]
        order = estimates.cpu()[near].argsort(stable=True)
        order = order[i[order].argsort(stable=True)]  # by row, within a row the nearest first
        candidates = defaultdict(list)
        for row, column in zip((a.start + i[order]).tolist(), (b.start + j[order]).tolist()):
            candidates[row].append(column)
        waiting = list(candidates.items())
        while waiting:
            some, waiting = waiting[:_CONFIRMED], waiting[_CONFIRMED:]
            nearest = [(row, columns[0]) for row, columns in some if self._apart(row, columns[0])]
            self.embeddings.of(sorted({n for pair in nearest for n in pair}))  # together; they are kept
            for row, columns in some:
                self._join(row, columns)

    def _apart(self, a: Tensor | int, b: Tensor | int) -> Tensor:
        """Which images, by number, are not in one component yet."""
        return self.components.labels[a] != self.components.labels[b]

    def _join(self, a: int, candidates: Sequence[int]) -> None:
        """Joins an image to the components of those candidates that it is near to; the nearest estimate comes first."""
        labels = self.components.labels
        by_component = defaultdict(list)
        for b, label in zip(reversed(candidates), labels[candidates].flip(0).tolist()):
            by_component[label].append(b)
        by_component.pop(int(labels[a]), None)
        waiting = list(by_component.values())  # only a's component grows here, so these stay apart
        while waiting:
            tried, waiting = waiting[:_CONFIRMED], waiting[_CONFIRMED:]
            nearest = [remaining.pop() for remaining in tried]
            distances = self.embeddings.distances(a, nearest)
            if a in self.embeddings.lost:
                return
            for b, distance, remaining in zip(nearest, distances, tried):
                if distance < self.below:
                    self.edges.append(Edge(a, b, distance))
                    self.components.join(a, b)
                elif remaining:
                    waiting.append(remaining)


class _Components:
    """Images by component: the label of each image, and the images of each label."""

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count)
        self._members: dict[int, list[int]] = {}  # of components of several images

    def join(self, a: int, b: int) -> None:
        members = {label: self._members.get(label, [label]) for label in self.labels[[a, b]].tolist()}
        if len(members) == 1:
            return
        gone, kept = sorted(members, key=lambda label: len(members[label]))
        self.labels[members[gone]] = kept
        members[kept].extend(members[gone])
        self._members[kept] = members[kept]
        self._members.pop(gone, None)

    def of_several(self) -> list[list[int]]:
        """The images of each component of several, in order."""
        return sorted(map(sorted, self._members.values()))


class _Embeddings:
    """The embeddings of images by number. The latest are kept.

    Attributes:
        lost: images that cannot be read any more.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        self.indexes = indexes
        self.pixels = math.prod(indexes[0].header.size)
        self._held: OrderedDict[int, Tensor] = OrderedDict()  # the longest unused comes first
        self._bytes = 0
        self.lost: set[int] = set()

    def of(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        """The embeddings of those of these images that can be read."""
        missing = [n for n in numbers if n not in self._held and n not in self.lost]
        found = {n: self._held[n] for n in numbers if n in self._held}
        start = 0
        for side, index in enumerate(self.indexes):
            rows = [n - start for n in missing if start <= n < start + len(index)]
            if rows:
                vectors, kept = index.embeddings(rows)
                for row, vector in zip(kept, vectors, strict=True):
                    if not vector.sum().isfinite():  # several times faster than a check of each value
                        raise _not_finite(side, index, "vector", row)
                    found[start + row] = vector.clone()
            start += len(index)
        self.lost.update(n for n in missing if n not in found)
        for n, vector in found.items():
            if n in self._held:
                self._held.move_to_end(n)
            else:
                self._held[n] = vector
                self._bytes += vector.nbytes
        while self._bytes > _CACHE_BYTES and len(self._held) > 2 * _CONFIRMED:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return found

    def distances(self, a: int, others: Sequence[int]) -> list[float]:
        """LPIPS of an image to others; NaN if one of the two cannot be read any more."""
        vectors = self.of([a, *others])
        readable = [b for b in others if b in vectors] if a in vectors else []
        found = {}
        if readable:
            squared = direct_distances(
                vectors[a], torch.stack([vectors[b] for b in readable]), torch.arange(len(readable))
            )
            found = dict(zip(readable, (squared / self.pixels).tolist()))
        return [found.get(b, math.nan) for b in others]


def _margin(length: int) -> float:
    """What an estimate by that many buckets stays below, relative to the distance, in all but one of ten million."""
    share = 2 / (9 * length)
    return (1 - share + _QUANTILE * math.sqrt(share)) ** 3


def checked_limit(name: str, below: float) -> float:
    if isinstance(below, bool) or not isinstance(below, Real) or not 0 < below < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {below!r:.99}")
    return float(below)


def _not_finite(side: int, index: Index, what: str, row: int) -> ValueError:
    name = "" if index.names is None else f", {index.names[row]!r:.199}"
    return ValueError(
        f"{('index', 'other')[side]} must be finite, got NaN or infinite values in the {what} of image {row}{name}"
    )


def _indexes(index: Index, other: Index | None) -> list[Index]:
    """Both indexes, or the only one; a ValueError if their distances cannot be compared."""
    if other is None:
        return [index]
    for what in _SHARED:
        own, others = getattr(index.header, what), getattr(other.header, what)
        if own != others and None not in (own, others):
            raise ValueError(f"index and other must be made alike, got {what} {own!r:.99} and {others!r:.99}")
    return [index, other]
