"""What a run says of the image files that it has read: once, at its end, with a count."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..images import Picture
from . import output, shards
from .loading import Pair, Pictures, Stretched
from .options import Reading

Name = Path | str


@dataclass
class _Found:
    """What one process has found."""

    transparent: set[str] = field(default_factory=set)  # images that show the background
    opaque: bool = False  # whether these were compared with an image that is not transparent
    narrow: dict[str, tuple[int, int]] = field(default_factory=dict)  # by image of 16 bits and few levels, its values
    stretched: dict[str, Stretched] = field(default_factory=dict)  # by image
    full_mask: bool = False  # whether a mask was 255 in every pixel
    other_mask: bool = False  # whether a mask was not

    def add(self, other: _Found) -> None:
        self.transparent |= other.transparent
        self.opaque |= other.opaque
        self.narrow |= other.narrow
        self.stretched |= other.stretched
        self.full_mask |= other.full_mask
        self.other_mask |= other.other_mask


class Notices:
    """Takes the images as they are read, by the names that they are to be called by, and hands on their pixels."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._found = _Found()

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
        self._found.stretched |= {image.name: image for image in read.stretched}
        if read.mask is not None:
            full = bool(read.mask.min() == 255)
            self._found.full_mask |= full
            self._found.other_mask |= not full
        return read.pair()

    def pairs(self, names: Iterable[tuple[Name, Name]], pairs: Iterable[Pictures | str]) -> Iterator[Pair | str]:
        """The pixels of pairs as they are read; strings, which say why there is none, as they are."""
        for of_pair, read in zip(names, pairs, strict=True):
            yield read if isinstance(read, str) else self.pair(of_pair, read)

    def index(self, name: Name, transparent: bool | None, opaque: bool | None) -> None:
        """Takes what is known of the images in an index, which are compared with all others."""
        if transparent:
            self._found.transparent.add(f"an image in {name}")
        self._found.opaque |= bool(opaque)

    @property
    def transparency(self) -> tuple[bool, bool]:
        """Whether an image was transparent, and whether one was not."""
        return bool(self._found.transparent), self._found.opaque

    def tell(
        self,
        relation: str = "compared with an image that is not",
        remedy: str = "--background takes another colour",
    ) -> None:
        """Says what was found, by all processes of the group, which must all call this.

        Args:
            relation: of transparent images to those that are not.
            remedy: where transparent pixels should show something else.
        """
        found = _Found()
        for of_each_process in shards.gathered([self._found], shards.count()):
            for of_process in of_each_process:
                found.add(of_process)
        if found.transparent and found.opaque and self._reading.background is None:  # else it was chosen
            output.warn(
                f"{_some(found.transparent)}: transparent, and {relation}; transparent pixels show "
                f"{self._reading.background_color} ({remedy})"
            )
        if found.narrow:
            low, high = min(low for low, _ in found.narrow.values()), max(high for _, high in found.narrow.values())
            output.warn(
                f"{_some(found.narrow)}: only the high byte of the 16 bits is compared, and it takes few levels; "
                f"values run from {low} to {high} (--range {low}:{high} spreads them over all levels)"
            )
        if found.stretched:
            _, size, new_size = found.stretched[min(found.stretched)]
            output.warn(
                f"{_some(found.stretched)}: --resize changes the aspect ratio, from {size[0]} x {size[1]} to "
                f"{new_size[0]} x {new_size[1]} (--crop keeps it)"
            )
        if found.full_mask and not found.other_mask:
            output.warn("the mask is full, 255 in every pixel of all images read: it changes no distance of theirs")

    def _note_transparency(self, name: Name, image: Picture) -> None:
        if image.composited:
            self._found.transparent.add(str(name))
        else:
            self._found.opaque = True

    def _note_values(self, name: Name, image: Picture) -> None:
        if image.narrow is not None:
            self._found.narrow[str(name)] = image.narrow


def _some(names: Collection[str]) -> str:
    """The first name, and how many more there are."""
    return min(names) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
