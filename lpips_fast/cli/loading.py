"""Reading images for the commands: in worker processes, errors as values, in the order asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ..images import Picture, image_size, open_image, read_image, resize_image
from .options import ReadError, Reading

T = TypeVar("T")

# Decoded images are run once they hold this many pixels, 16 of 512 x 512, even where a batch could take more.
_PIXELS_AT_ONCE = 1 << 22


class Images(Dataset[Any]):
    """Image files as pictures; a string says why one cannot be read."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], reading: Reading) -> None:
        self.paths = paths
        self.size = size
        self.reading = reading

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Picture | str:
        try:
            image = load(self.paths[i], self.reading)
        except OSError as error:
            return str(error)
        return image._replace(pixels=resize_image(image.pixels, *self.size))


class Pairs(Dataset[Any]):
    """Pairs of image files as pairs of pictures of one size; a string says why there is none."""

    def __init__(self, paths: Sequence[tuple[Path, Path]], resize: bool, reading: Reading) -> None:
        self.paths = paths
        self.resize = resize
        self.reading = reading

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Picture, Picture] | str:
        try:
            return load_pair(*self.paths[i], self.resize, self.reading)
        except ReadError as error:
            return str(error)


def load(path: Path, reading: Reading) -> Picture:
    """An image file as the options ask for it; raises as `read_image` does."""
    return read_image(path, reading.background, reading.value_range)


def load_pair(a: Path, b: Path, resize: bool, reading: Reading) -> tuple[Picture, Picture]:
    """Two images of one size.

    Raises:
        ReadError: one cannot be read, or their sizes differ and `resize` is not set.
    """
    try:
        if not resize and _sides(a) != _sides(b):
            check_sizes(str(a), image_size(a), str(b), image_size(b))
        image0, image1 = load(a, reading), load(b, reading)
    except OSError as error:
        raise ReadError(str(error)) from error
    return image0, same_size(str(a), image0, str(b), image1, resize)


def _sides(path: Path) -> list[int]:
    """The sides of an image in order, for its EXIF orientation may swap them; its pixels are not decoded."""
    with open_image(path) as image:
        return sorted(image.size)


def same_size(name0: str, image0: Picture, name1: str, image1: Picture, resize: bool) -> Picture:
    """The second image at the size of the first."""
    (height, width), (height1, width1) = image0.pixels.shape[:2], image1.pixels.shape[:2]
    if not resize:
        check_sizes(name0, (width, height), name1, (width1, height1))
    return image1._replace(pixels=resize_image(image1.pixels, width, height))


def check_sizes(name0: str, size0: tuple[int, int], name1: str, size1: tuple[int, int]) -> None:
    """Raises a ReadError, unless two images are of one size (width, height)."""
    if size0 != size1:
        told0, told1 = (f"{width} x {height}" for width, height in (size0, size1))
        raise ReadError(f"sizes differ: {name0} is {told0}, {name1} {told1} (--resize makes them equal)")


def read_ahead(dataset: Dataset[T], workers: int) -> Iterator[T]:
    """The items of a dataset in order, read by worker processes that stay a little ahead.

    Arrays travel through pipes; tensors would need room in /dev/shm, which containers keep small.
    """
    workers = min(workers, len(dataset) // 4)  # type: ignore[arg-type]  # for a few files none is worth its start
    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def _as_is(item: T) -> T:
    return item


def by_size(items: Iterable[tuple[T, Any, np.ndarray]]) -> Iterator[list[tuple[T, Any, np.ndarray]]]:
    """Groups items by the size of the image that ends them; what is held back stays bounded."""
    groups: dict[tuple[int, ...], list[tuple[T, Any, np.ndarray]]] = {}
    pixels = 0
    for item in items:
        shape = item[-1].shape
        groups.setdefault(shape, []).append(item)
        pixels += shape[0] * shape[1]
        if pixels >= _PIXELS_AT_ONCE:
            yield from groups.values()
            groups, pixels = {}, 0
    yield from groups.values()
