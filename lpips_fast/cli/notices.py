"""What a run says at its end about the images that it has read: one line for each notice, with a count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from lpips_fast.cli import output, processes
from lpips_fast.cli.errors import ReadError
from lpips_fast.cli.reading import Pair, ReadPair, Stretched
from lpips_fast.cli.settings import Reading
from lpips_fast.images import Picture

Name = Path | str
T = TypeVar("T")


class FrameName(str):
    """The name of a video, for one of its frames. Frames come in order, and one may come several times in a row."""

    video: Path
    number: int

    def __new__(cls, video: Path, number: int) -> FrameName:
        name = super().__new__(cls, video)
        name.video, name.number = video, number
        return name


@dataclass
class _Images(Generic[T]):
    """The images that one notice is about, each counted once.

    Files may come in any order and several times. So all of them are kept by name, like the run's own list of files. A
    video may be long: its first frame is kept by name, and the others are counted.
    """

    named: dict[str, T] = field(default_factory=dict)  # what was found in each image, by name
    latest: dict[Path, int] = field(default_factory=dict)  # the number of the latest frame, by video
    others: int = 0  # frames that are not in `named`

    def add(self, name: Name, found: T) -> None:
        if isinstance(name, FrameName):
            latest = self.latest.get(name.video)
            self.latest[name.video] = name.number
            if latest is not None:
                self.others += name.number > latest
                return
            name = f"{name} frame {name.number}"
        self.named[str(name)] = found

    def update(self, other: _Images[T]) -> None:
        """Adds what another process has found. No two processes read frames of the same video."""
        self.named |= other.named
        self.others += other.others

    def first(self) -> T:
        return self.named[min(self.named)]

    def __bool__(self) -> bool:
        return bool(self.named)

    def __str__(self) -> str:
        """The first name, and how many more there are."""
        more = len(self.named) + self.others - 1
        return min(self.named) + (f" and {more} more" if more else "")


@dataclass
class _Found:
    """What one process has found."""

    transparent: _Images[None] = field(default_factory=_Images)  # images that show the background
    opaque: bool = False  # whether one of them was compared with an image that is not transparent
    narrow: _Images[None] = field(default_factory=_Images)  # images of 16 bits and few levels
    values: tuple[float, float] = (math.inf, -math.inf)  # the least and the largest value in them
    stretched: _Images[Stretched] = field(default_factory=_Images)
    full_mask: bool = False  # whether a mask was 255 in every pixel
    other_mask: bool = False  # whether a mask was not

    def add(self, other: _Found) -> None:
        self.transparent.update(other.transparent)
        self.opaque |= other.opaque
        self.narrow.update(other.narrow)
        self.values = _both(self.values, other.values)
        self.stretched.update(other.stretched)
        self.full_mask |= other.full_mask
        self.other_mask |= other.other_mask


class Notices:
    """Notes what there is to say about images as they are read, and hands on their pixels.

    Each image comes with the name that a notice gives it.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._found = _Found()

    def image(self, name: Name, image: Picture) -> np.ndarray:
        """Notes an image that is compared with all other images, and returns its pixels."""
        self._note_transparency(name, image)
        self._note_values(name, image)
        return image.pixels

    def readable(
        self, paths: Sequence[Path], read: Iterable[Picture | str], strict: bool
    ) -> tuple[list[np.ndarray], list[int], dict[str, str]]:
        """Notes images that are compared with all other images as they are read.

        Args:
            paths: the files.
            read: their images. A string in the place of an image says why it cannot be read.

        Returns:
            the pixels of the readable images, their numbers, and why others are not readable, by path.

        Raises:
            ReadError: an image cannot be read, and `strict` is True.
        """
        images, numbers, errors = [], [], {}
        for i, (path, image) in enumerate(zip(paths, read, strict=True)):
            if isinstance(image, str):
                if strict:
                    raise ReadError(image)
                errors[str(path)] = " ".join(image.split())
            else:
                images.append(self.image(path, image))
                numbers.append(i)
        return images, numbers, errors

    def pair(self, names: tuple[Name, Name], read: ReadPair) -> Pair:
        """Notes two images that are compared with each other, and returns their pixels and their mask."""
        for name, image in zip(names, (read.image0, read.image1), strict=True):
            if read.image0.transparent != read.image1.transparent:
                self._note_transparency(name, image)
            self._note_values(name, image)
        for stretched in read.stretched:
            self._found.stretched.add(stretched.name, stretched)
        if read.mask is not None:
            full = bool(read.mask.min() == 255)
            self._found.full_mask |= full
            self._found.other_mask |= not full
        return read.pair()

    def pairs(self, names: Iterable[tuple[Name, Name]], pairs: Iterable[ReadPair | str]) -> Iterator[Pair | str]:
        """Notes pairs as they are read, and yields their pixels. A string, which says why there is no pair, stays."""
        for of_pair, read in zip(names, pairs, strict=True):
            yield read if isinstance(read, str) else self.pair(of_pair, read)

    def index(self, name: Name, transparent: bool | None, opaque: bool | None) -> None:
        """Notes an index, whose images are compared with all others.

        Args:
            name: the index.
            transparent, opaque: whether an image in it is transparent, and whether one is not; None if that is unknown.
        """
        if transparent and not opaque:  # else `index` has said so
            self._found.transparent.add(f"an image in {name}", None)
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
        """Prints what all processes of the group have found. All of them must call this.

        Args:
            relation: how the transparent images relate to the others.
            remedy: what to do if transparent pixels should show something else.
        """
        found = _Found()
        for of_each_process in processes.gathered([self._found], processes.count()):
            for of_process in of_each_process:
                found.add(of_process)
        if found.transparent and found.opaque and self._reading.background is None:  # else the user chose it
            output.warn(
                f"{found.transparent}: transparent, and {relation}; transparent pixels show "
                f"{self._reading.background_color} ({remedy})"
            )
        if found.narrow:
            low, high = found.values
            output.warn(
                f"{found.narrow}: only the high byte of the 16 bits is compared, and it takes few levels; "
                f"values run from {low} to {high} (--range {low}:{high} spreads them over all levels)"
            )
        if found.stretched:
            _, size, new_size = found.stretched.first()
            output.warn(
                f"{found.stretched}: --resize changes the aspect ratio, from {size[0]} x {size[1]} to "
                f"{new_size[0]} x {new_size[1]} (--crop keeps it)"
            )
        if found.full_mask and not found.other_mask:
            output.warn("the mask is full, 255 in every pixel of all images read: it changes no distance of theirs")

    def _note_transparency(self, name: Name, image: Picture) -> None:
        if image.transparent:
            self._found.transparent.add(name, None)
        else:
            self._found.opaque = True

    def _note_values(self, name: Name, image: Picture) -> None:
        if image.narrow is not None:
            self._found.narrow.add(name, None)
            self._found.values = _both(self._found.values, image.narrow)


def _both(values: tuple[float, float], others: tuple[float, float]) -> tuple[float, float]:
    """The least and the largest of two ranges of values."""
    return min(values[0], others[0]), max(values[1], others[1])
