"""The matrix of all distances, tile by tile.

A block is a run of images, and a tile has the distances of one block to another. While the embeddings of a block are
held, each of its images has gone through the trunk once, and a tile is a matrix product.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.reading import Images, read_ahead
from lpips_fast.cli.settings import Reading
from lpips_fast.pairwise import squared_distances

_HELD_BYTES = 2**30
_LEAST_BLOCK = 16


class Blocks:
    """The embeddings of the images, a block at a time. A few blocks stay in memory.

    Args:
        sides: the paths of the images of the rows, and of the columns if these are other images.
        model: the network.
        size: the width and height of all images.
        length: how many images a block has; two blocks are then held. None chooses a length so that the blocks held fit
            a GiB.
        reading: how the images are read.
        notices: notes the images.

    Raises:
        UsageError: the images are too small for the net.
    """

    def __init__(
        self,
        sides: Sequence[Sequence[Path]],
        model: Model,
        size: tuple[int, int],
        length: int | None,
        reading: Reading,
        notices: Notices,
    ) -> None:
        if why := model.too_small(size[1], size[0]):
            raise UsageError(f"the images are {why}")
        self.sides, self.model, self.size = sides, model, size
        self.reading, self.notices = reading, notices
        total = sum(map(len, sides))
        if length is None:
            black = np.zeros((size[1], size[0], 3), np.uint8)
            fitting = max(2, _HELD_BYTES // model.embed([black]).nbytes)
            length = max(_LEAST_BLOCK, -(-total // 4)) if total <= fitting else fitting // 2
            self.held = -(-fitting // length)
        else:
            self.held = 2
        self.length = length
        self._cache: OrderedDict[tuple[int, int], tuple[Tensor, list[int], dict[str, str]]] = OrderedDict()

    def tiles(self) -> list[tuple[int, int]]:
        """The tiles, each as the number of its block of rows and of its block of columns.

        If rows and columns are the same images, these are the tiles of the upper triangle. Each tile shares a block
        with the tile before it.
        """
        rows = -(-len(self.sides[0]) // self.length)
        if len(self.sides) == 1:
            return [(i, j) for i in range(rows) for j in (i, *reversed(range(i + 1, rows)))]
        columns = -(-len(self.sides[1]) // self.length)
        return [(i, j) for i in range(rows) for j in (range(columns) if i % 2 == 0 else reversed(range(columns)))]

    def tile(self, i: int, j: int) -> tuple[np.ndarray, dict[str, str]]:
        """The distances of block i to block j, NaN for an image that cannot be read; and why it cannot, by path."""
        e, rows, errors0 = self._block(0, i)
        f, columns, errors1 = self._block(len(self.sides) - 1, j)
        values = np.full((len(rows) + len(errors0), len(columns) + len(errors1)), np.nan, np.float32)
        if rows and columns:
            values[np.ix_(rows, columns)] = squared_distances(e, f).cpu().numpy()
        return values, {**errors0, **errors1}

    def _block(self, side: int, k: int) -> tuple[Tensor, list[int], dict[str, str]]:
        """The embeddings of a block's readable images, their numbers in the block, and why others are not, by path."""
        key = side, k
        if key not in self._cache:
            while len(self._cache) >= self.held:
                self._cache.popitem(last=False)
            self._cache[key] = self._embed(self.sides[side][k * self.length : (k + 1) * self.length])
        self._cache.move_to_end(key)
        return self._cache[key]

    def _embed(self, paths: Sequence[Path]) -> tuple[Tensor, list[int], dict[str, str]]:
        items = read_ahead(Images(paths, self.size, self.reading), self.model.settings.reader_count())
        images, readable, errors = self.notices.readable(paths, items, self.model.settings.strict)
        return self.model.embed(images) if images else torch.empty(0), readable, errors


class Table:
    """The matrix as it fills. NaN is a distance that is not computed yet, or cannot be."""

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self.names = names
        self.values = np.full((len(names[0]), len(names[-1])), np.nan, np.float32)

    @property
    def one_sided(self) -> bool:
        """Whether rows and columns are the same images."""
        return len(self.names) == 1

    def put(self, row: int, column: int, tile: np.ndarray) -> None:
        """Puts a tile in its place, and in the mirrored place below the diagonal if the matrix is symmetric."""
        height, width = tile.shape
        self.values[row : row + height, column : column + width] = tile
        if self.one_sided:
            self.values[column : column + width, row : row + height] = tile.T

    def distances(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """The distances of different images, each pair once, row by row: the row, its first column, the values."""
        for i, row in enumerate(self.values):
            start = i + 1 if self.one_sided else 0
            yield i, start, row[start:]

    def summary(self) -> dict[str, Any]:
        """Count, mean, standard deviation (of the population) and extremes over the pairs of different images."""
        count, total, low, high = 0, 0.0, math.inf, -math.inf
        for _, _, row in self.distances():
            known = row[~np.isnan(row)].astype(np.float64)
            if known.size:
                count, total = count + known.size, total + known.sum()
                low, high = min(low, known.min()), max(high, known.max())
        if count == 0:
            return {"count": 0, **dict.fromkeys(("mean", "std", "min", "max"), math.nan)}
        mean = total / count
        squares = sum(np.nansum((row.astype(np.float64) - mean) ** 2) for _, _, row in self.distances())
        return {"count": count, "mean": mean, "std": math.sqrt(squares / count), "min": float(low), "max": float(high)}

    def nearest(self, k: int) -> list[tuple[str, str, float]]:
        """The k pairs of different images with the smallest distances."""
        found: list[tuple[float, int, int]] = []
        for i, start, row in self.distances():
            for j in np.argsort(row, kind="stable")[:k]:
                if not np.isnan(row[j]):
                    found.append((float(row[j]), i, start + int(j)))
            found = sorted(found)[:k]
        return [(self.names[0][i], self.names[-1][j], value) for value, i, j in found]
