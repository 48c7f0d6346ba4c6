"""From the image files of a folder to an index of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lpips_fast.cli import output
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.folders import list_folder, one_size
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.reading import Images, read_ahead
from lpips_fast.cli.settings import Reading
from lpips_fast.cli.sources import Files
from lpips_fast.images import Picture
from lpips_fast.pairwise import images_at_once
from lpips_fast.search import Header, Index
from lpips_fast.search.header import make_header, vector_length
from lpips_fast.sketch import LENGTH, Sketch

_VECTOR_BYTES = 2**30  # whole vectors of more bytes are not kept unless asked for
_UNIT_BYTES, _UNIT_IMAGES, _UNIT_PIXELS = 2**26, 1024, 2**26  # of a unit, at most, but at least one batch


class Kind(NamedTuple):
    """What an index keeps of each image."""

    sketch: int | None  # the length of the sketch, if there is one
    vectors: bool  # whether the whole vector is kept

    def __str__(self) -> str:
        kept = [] if self.sketch is None else [f"sketches of {self.sketch} numbers"]
        return " and ".join(kept + ["whole vectors"] * self.vectors)


@dataclass(frozen=True)
class Recipe:
    """How image files become an index. Sizes are width and height."""

    folder: Path
    model: Model
    reading: Reading
    size: tuple[int, int]
    resized: bool  # whether images of other sizes are resized to it
    kind: Kind

    @classmethod
    def of(
        cls,
        folder: Path,
        count: int,
        model: Model,
        reading: Reading,
        size: tuple[int, int],
        resized: bool,
        kind: Kind | None,
    ) -> Recipe:
        """The recipe of an index of `count` images; with None for `kind`, their number and size decide.

        Raises:
            UsageError: the images are too small for the net.
        """
        width, height = size
        if why := model.too_small(height, width):
            raise UsageError(f"the images are {why}")
        if kind is None:
            whole = count * vector_length(model.lpips, (height, width)) * torch.float16.itemsize
            kind = Kind(None, True) if whole <= _VECTOR_BYTES else Kind(LENGTH, False)
        return cls(folder, model, reading, size, resized, kind)

    @functools.cached_property
    def header(self) -> Header:
        """The header of the index, which does not know yet whether images are transparent."""
        width, height = self.size
        sketch = None if self.kind.sketch is None else Sketch(self.kind.sketch)
        header = make_header(
            self.model.lpips, (height, width), self.resized, False, not self.model.settings.normalize, sketch
        )
        return header._replace(
            precision=self.model.precision, reading=self.reading.described(), folder=_absolute(self.folder)
        )

    @property
    def batch(self) -> int:
        """How many images go through the trunk at once: always as many, so that an image's numbers are always the same.

        Convolutions round differently for another size of batch.
        """
        width, height = self.size
        return min(self.model.settings.batch_size, images_at_once(height * width))

    def units(self, count: int) -> list[range]:
        """Runs of `count` images, each of whole batches. A unit is what is lost if the process is killed."""
        width, height = self.size
        row = 2 * vector_length(self.model.lpips, (height, width)) if self.kind.vectors else 1
        images = min(_UNIT_IMAGES, _UNIT_BYTES // row, _UNIT_PIXELS // (width * height))
        step = max(1, images // self.batch) * self.batch
        return [range(start, min(start + step, count)) for start in range(0, count, step)]

    def read(self, names: Sequence[str]) -> Iterator[Picture | str]:
        """The images of these names, read ahead by other processes; a string says why one cannot be read."""
        paths = [self.folder / name for name in names]
        return read_ahead(Images(paths, self.size, self.reading), self.model.settings.reader_count())

    def build(
        self,
        names: Sequence[str],
        images: Iterator[Picture | str],
        notices: Notices,
        advance: Callable[[], None],
        stamps: Tensor | None = None,
    ) -> tuple[Index, dict[int, str]]:
        """The index of the images that can be read, and for each of the others why it cannot.

        Args:
            names: the images.
            images: what `read` gives for them, and maybe for more images after them.
            notices: notes the images.
            advance: called for each image.
            stamps: [N, 2], for the index to keep.

        Raises:
            ReadError: with --strict, an image cannot be read.
        """
        batches = _Batches(self, names, images, notices, advance)
        width, height = self.size
        built = Index.build(
            self.model.lpips,
            batches,
            size=(height, width) if self.resized else None,
            batch=self.batch,
            sketch=self.kind.sketch,
            vectors=self.kind.vectors,
        )
        kept = [i for i in range(len(names)) if i not in batches.errors]
        table = built.table.selected(torch.tensor(kept, dtype=torch.int64))._replace(
            names=[names[i] for i in kept], stamps=None if stamps is None else stamps[kept]
        )
        transparent, opaque = notices.transparency
        header = self.header._replace(transparent=transparent, opaque=opaque)
        return Index(self.model.lpips, header, table), batches.errors


def build_index(
    folder: Path, model: Model, size: tuple[int, int] | None, reading: Reading, notices: Notices
) -> tuple[Index, list[str]]:
    """Makes the index of the images in a folder, in memory.

    Args:
        size: the width and height that all images take; None if they have one size already.

    Returns:
        the index of the images that can be read, and for each of the others why it cannot. It keeps whole vectors if
        they fit 1 GiB, else sketches, and reads images again.

    Raises:
        ReadError: no image can be read; or with --strict, one cannot.
        UsageError: there are no images, or their sizes differ, or are too small for the net.
    """
    names = [path.as_posix() for path in list_folder(folder)]
    wanted = size or one_size([folder / name for name in names])
    recipe = Recipe.of(folder, len(names), model, reading, wanted, size is not None, None)
    with output.progress(len(names), "images") as advance:
        built, errors = recipe.build(names, recipe.read(names), notices, advance)
    if not len(built):
        raise none_readable(len(names), errors[0])
    assert built.names is not None
    built.images = Files(folder, built.names, built.header, None, model, reading)
    return built, list(errors.values())


def none_readable(count: int, why: str) -> ReadError:
    return ReadError(f"none of the {count} images can be read: {why}")


def _absolute(folder: Path) -> str:
    """The path from the root, without `..` unless that would lead elsewhere: a link may lie before it."""
    path = os.path.abspath(folder)
    return path if os.path.realpath(path) == os.path.realpath(folder) else str(folder.absolute())


class _Batches:
    """Images that become tensors a slice at a time, in order, in whole batches: black ones fill up the last batch.

    An image that cannot be read is black, too, and has its reason in `errors`.
    """

    def __init__(
        self,
        recipe: Recipe,
        names: Sequence[str],
        images: Iterator[Picture | str],
        notices: Notices,
        advance: Callable[[], None],
    ) -> None:
        self.recipe, self.names, self.notices, self.advance = recipe, names, notices, advance
        self.errors: dict[int, str] = {}
        self._images = images
        self._held: dict[int, np.ndarray] = {}
        self._read = 0

    def __len__(self) -> int:
        return -(-len(self.names) // self.recipe.batch) * self.recipe.batch

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        self._held = {i: image for i, image in self._held.items() if i >= start}
        while self._read < min(stop, len(self.names)):
            image = next(self._images)
            if isinstance(image, str):
                if self.recipe.model.settings.strict:
                    raise ReadError(image)
                self.errors[self._read] = " ".join(image.split())
            else:
                path = self.recipe.folder / self.names[self._read]
                self._held[self._read] = self.notices.image(path, image)
            self._read += 1
            self.advance()
        width, height = self.recipe.size
        black = np.zeros((height, width, 3), np.uint8)
        return self.recipe.model.tensor([self._held.get(i, black) for i in range(start, stop)])
