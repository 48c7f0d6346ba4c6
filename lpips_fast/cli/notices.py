"""What a run says of the image files that it has read: once, at its end, with a count."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..images import Picture
from . import output, shards
from .loading import Pair, Pictures
from .options import Reading

Name = Path | str


class Notices:
    """Takes the images as they are read, by the names that they are to be called by, and hands on their pixels."""

    def __init__(self, reading: Reading) -> None:
        self._background = reading.background
        self._transparent: set[str] = set()  # that show the background
        self._opaque = False  # whether these were compared with an image that is not transparent
        self._narrow: dict[str, tuple[int, int]] = {}  # by image of 16 bits and few levels, its range of values

    def image(self, name: Name, image: Picture) -> np.ndarray:
        """The pixels of one among images that are all compared with each other."""
        self._note_transparency(name, image)
        self._note_values(name, image)
        return image.pixels

    def pair(self, names: tuple[Name, Name], read: Pictures) -> Pair:
        """The pixels of two images that are compared with each other, and their mask."""
        for name, image in zip(names, (read.image0, read.image1), strict=True):
            if read.image0.composited != read.image1.composited:
                self._note_transparency(name, image)
            self._note_values(name, image)
        return read.pair()

    def pairs(self, names: Iterable[tuple[Name, Name]], pairs: Iterable[Pictures | str]) -> Iterator[Pair | str]:
        """The pixels of pairs as they are read; strings, which say why there is none, as they are."""
        for of_pair, read in zip(names, pairs, strict=True):
            yield read if isinstance(read, str) else self.pair(of_pair, read)

    def tell(self) -> None:
        """Says what was found, by all processes of the group, which must all call this."""
        transparent, opaque, narrow = set[str](), False, dict[str, tuple[int, int]]()
        for of_each_process in shards.gathered([(self._transparent, self._opaque, self._narrow)], shards.count()):
            for found in of_each_process:
                transparent |= found[0]
                opaque |= found[1]
                narrow |= found[2]
        if transparent and opaque:
            output.warn(
                f"{_some(transparent)}: transparent, and compared with an image that is not; transparent pixels show "
                f"{self._background} (--background takes another colour)"
            )
        if narrow:
            low, high = min(low for low, _ in narrow.values()), max(high for _, high in narrow.values())
            output.warn(
                f"{_some(narrow)}: only the high byte of the 16 bits is compared, and it takes few levels; values run "
                f"from {low} to {high} (--range {low}:{high} spreads them over all levels)"
            )

    def _note_transparency(self, name: Name, image: Picture) -> None:
        if image.composited:
            self._transparent.add(str(name))
        else:
            self._opaque = True

    def _note_values(self, name: Name, image: Picture) -> None:
        if image.narrow is not None:
            self._narrow[str(name)] = image.narrow


def _some(names: Collection[str]) -> str:
    """The first name, and how many more there are."""
    return min(names) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
