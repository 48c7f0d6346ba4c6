"""The results of a run: for each pair its distance, or why there is none; and their statistics."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]  # a result, by the names of its columns


class FilePair(NamedTuple):
    """Two image files, and their common name."""

    name: str
    a: str
    b: str


def summarize(values: Iterable[float], errors: int) -> dict[str, Any]:
    """Count, mean, standard deviation (of the population), extremes and median of the values that are not NaN.

    Sums are rounded once, so they are the same in any order of the values.
    """
    known = sorted(value for value in values if not math.isnan(value))
    n = len(known)
    if n == 0:
        return {"count": 0, "errors": errors}
    mean = math.fsum(known) / n
    return {
        "count": n,
        "errors": errors,
        "mean": mean,
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in known) / n),
        "min": known[0],
        "median": (known[(n - 1) // 2] + known[n // 2]) / 2,
        "max": known[-1],
    }


class Results:
    """The distance of each pair, or why there is none. Takes 8 bytes for a distance, because a run may be long."""

    def __init__(self, pairs: Sequence[FilePair]) -> None:
        self.pairs = pairs
        self.values = array("d", [math.nan]) * len(pairs)
        self.errors: dict[int, str] = {}
        self._index = {name: i for i, (name, _, _) in enumerate(pairs)}

    def add(self, rows: Sequence[Row]) -> None:
        """Adds distances that an earlier run has computed. Pairs that are no longer there are left out."""
        for row in rows:
            if (i := self._index.get(row["name"])) is not None:
                self.put(i, row["lpips"])

    def put(self, i: int, outcome: float | str) -> None:
        """Adds the distance of a pair, or a string that says why there is none."""
        if isinstance(outcome, str):
            self.errors[i] = outcome
        else:
            self.values[i] = outcome

    def missing(self, i: int) -> bool:
        """Whether a pair has neither a distance nor a reason yet."""
        return math.isnan(self.values[i]) and i not in self.errors

    def row(self, i: int) -> Row:
        name, a, b = self.pairs[i]
        row: Row = {"name": name, "a": a, "b": b, "lpips": self.values[i]}
        return {**row, "lpips": None, "error": self.errors[i]} if i in self.errors else row

    def rows(self) -> Iterator[Row]:
        """A row for each pair that is not missing, in order of name."""
        return (self.row(i) for i in range(len(self.pairs)) if not self.missing(i))

    def worst(self, k: int) -> list[int]:
        """The numbers of the pairs with the k largest distances, largest first."""
        known = (i for i, value in enumerate(self.values) if not math.isnan(value))
        return sorted(known, key=lambda i: (-self.values[i], i))[:k]
