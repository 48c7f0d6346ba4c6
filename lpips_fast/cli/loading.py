"""Reading images for the commands: in worker processes, errors as values, in the order asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from ..images import image_size, load_image, open_image, resize_image, to_array
from .fitting import ALPHA, Fit, check_sizes
from .options import ReadError

T = TypeVar("T")

# What a file's pixels become: an image, or weights of pixels, or None without an alpha channel to give these.
Convert = Callable[[Image.Image], np.ndarray | None]

# Decoded images are run once they hold this many pixels, 16 of 512 x 512, even where a batch could take more.
_PIXELS_AT_ONCE = 1 << 22


class Images(Dataset[Any]):
    """Image files as arrays [H, W, 3]; a string says why one cannot be read."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int] | None) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray | str:
        try:
            image = load_image(self.paths[i])
        except OSError as error:
            return str(error)
        return image if self.size is None else resize_image(image, *self.size)


class Pair(NamedTuple):
    """Two images uint8 [H, W, 3] of one size, and the weights of their pixels, uint8 [H, W], where there is a mask."""

    image0: np.ndarray
    image1: np.ndarray
    mask: np.ndarray | None = None


class Pairs(Dataset[Any]):
    """Pairs of image files, each with its mask or None, as a `Pair`; a string says why there is none."""

    def __init__(self, paths: Sequence[tuple[Path, Path, Path | None]], fit: Fit) -> None:
        self.paths = paths
        self.fit = fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Pair | str:
        a, b, mask = self.paths[i]
        try:
            return load_pair(a, b, self.fit, mask)
        except ReadError as error:
            return str(error)


def load_pair(a: Path, b: Path, fit: Fit, mask: Path | None = None) -> Pair:
    """Two images, and a mask where one is named, at one size.

    Raises:
        ReadError: one cannot be read, or they do not fit together as `make_pair` says.
    """
    try:
        if not fit.takes_all_sizes and _sides(a) != _sides(b):
            check_sizes(str(a), image_size(a), str(b), image_size(b))
        images: list[tuple[str, np.ndarray | None]] = [(str(a), load_image(a)), (str(b), load_image(b))]
        if mask is not None:
            path, weights_of = mask_source(a, mask)
            with open_image(path) as image:
                images.append((str(path), weights_of(image)))
    except OSError as error:
        raise ReadError(str(error)) from error
    return make_pair(fit, *images)


def make_pair(fit: Fit, *images: tuple[str, np.ndarray | str | None]) -> Pair:
    """Two images and, third, the mask if there is one, at one size; each comes with its name.

    Raises:
        ReadError: one is a string, which says why it cannot be read; the mask is None, an alpha channel that is not
            there, or 0 everywhere; the sizes differ, or nothing is left of them, as `Fit` says.
    """
    arrays = []
    for name, image in images:
        if isinstance(image, str):
            raise ReadError(image)
        if image is None:
            raise ReadError(f"{name} has no alpha channel, and --mask alpha takes that of A, the reference")
        arrays.append((name, image))
    pair = Pair(*fit(*arrays))
    if pair.mask is not None and not pair.mask.any():
        raise ReadError(f"{arrays[-1][0]}: the mask is 0 in every pixel compared, so there is no mean")
    return pair


def mask_source(a: Path, mask: Path) -> tuple[Path, Convert]:
    """Where the weights of A's pixels are, and what makes them of the image there."""
    return (a, alpha_of) if mask == ALPHA else (mask, gray_of)


def gray_of(image: Image.Image) -> np.ndarray:
    """An open image as weights of pixels, uint8 [H, W]: its gray, 0 where it is transparent."""
    if image.has_transparency_data and not image.mode.startswith("I"):
        image = ImageOps.exif_transpose(image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return np.asarray(Image.fromarray(to_array(image)).convert("L"))


def alpha_of(image: Image.Image) -> np.ndarray | None:
    """The alpha channel of an open image, uint8 [H, W], or None where it has none."""
    image = ImageOps.exif_transpose(image)
    return np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None


def _sides(path: Path) -> list[int]:
    """The sides of an image in order, for its EXIF orientation may swap them; its pixels are not decoded."""
    with open_image(path) as image:
        return sorted(image.size)


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
