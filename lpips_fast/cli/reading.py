"""Image files, and pairs of them, read in order by worker processes. An error is a string in place of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from lpips_fast.cli.errors import ReadError
from lpips_fast.cli.fitting import Fit, check_sizes, same_shape
from lpips_fast.cli.masks import MaskSource, mask_source, no_alpha
from lpips_fast.cli.settings import Reading
from lpips_fast.images import Picture, image_size, open_image, read_image, resize_image

T = TypeVar("T")


class Images(Dataset[Any]):
    """Image files at one size (width, height), as `Picture`s. A string says why a file cannot be read."""

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


class Pair(NamedTuple):
    """Two images uint8 [H, W, 3] of one size, and the weights of their pixels, uint8 [H, W], if there is a mask."""

    image0: np.ndarray
    image1: np.ndarray
    mask: np.ndarray | None = None


class Stretched(NamedTuple):
    """An image that was resized to another aspect ratio. Sizes are width and height."""

    name: str
    size: tuple[int, int]
    new_size: tuple[int, int]


class ReadPair(NamedTuple):
    """A pair as it was read, with what the notices at the end of a run need to know."""

    image0: Picture
    image1: Picture
    mask: np.ndarray | None = None
    stretched: Sequence[Stretched] = ()

    def pair(self) -> Pair:
        return Pair(self.image0.pixels, self.image1.pixels, self.mask)


class Pairs(Dataset[Any]):
    """Pairs of image files, each with its mask or None, as `ReadPair`s. A string says why there is no pair."""

    def __init__(self, paths: Sequence[tuple[Path, Path, MaskSource]], fit: Fit, reading: Reading) -> None:
        self.paths = paths
        self.fit = fit
        self.reading = reading

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> ReadPair | str:
        a, b, mask = self.paths[i]
        try:
            return load_pair(a, b, self.fit, self.reading, mask)
        except ReadError as error:
            return str(error)


def load(path: Path, reading: Reading) -> Picture:
    """Reads an image file by the options. Raises what `read_image` raises."""
    return read_image(path, reading.background_color, reading.value_range)


def load_pair(a: Path, b: Path, fit: Fit, reading: Reading, mask: MaskSource = None) -> ReadPair:
    """Reads two images, and their mask if there is one, and brings them to one size.

    Raises:
        ReadError: a file cannot be read, or `make_pair` refuses the images.
    """
    try:
        if not fit.takes_all_sizes and _sides(a) != _sides(b):
            check_sizes(str(a), image_size(a), str(b), image_size(b))
        image0, image1 = (str(a), load(a, reading)), (str(b), load(b, reading))
        if mask is None:
            return make_pair(fit, image0, image1)
        path, weights_of = mask_source(a, mask)
        try:
            with open_image(path) as image:
                weights = weights_of(image)
        except FileNotFoundError:
            raise ReadError(f"no mask {path}, or more than one") from None
    except OSError as error:
        raise ReadError(str(error)) from error
    return make_pair(fit, image0, image1, (str(path), weights))


def make_pair(
    fit: Fit,
    image0: tuple[str, Picture],
    image1: tuple[str, Picture],
    mask: tuple[str, np.ndarray | None] | None = None,
) -> ReadPair:
    """Brings two images, and their mask if there is one, to one size.

    Args:
        fit: how.
        image0, image1: the images, each with its name.
        mask: the name and the weights of the mask. The weights are None if they should be an alpha channel, and the
            image has none.

    Raises:
        ReadError: the mask's weights are None, or 0 everywhere; or `fit` refuses the sizes.
    """
    named = [(name, image.pixels) for name, image in (image0, image1)]
    if mask is not None:
        name, weights = mask
        if weights is None:
            raise ReadError(no_alpha(name))
        named.append((name, weights))
    pixels0, pixels1, *masks = fit(*named)
    stretched = []
    if fit.resize:
        (_, size0), *others = [(name, (pixels.shape[1], pixels.shape[0])) for name, pixels in named]
        stretched = [Stretched(name, size, size0) for name, size in others if not same_shape(size0, size)]
    if masks and not masks[0].any():
        raise ReadError(f"{name}: the mask is 0 in every pixel compared, so there is no mean")
    mask_pixels = masks[0] if masks else None
    return ReadPair(image0[1]._replace(pixels=pixels0), image1[1]._replace(pixels=pixels1), mask_pixels, stretched)


def _sides(path: Path) -> list[int]:
    """The sides of an image, smaller first, because its EXIF orientation may swap them. Decodes no pixels."""
    with open_image(path) as image:
        return sorted(image.size)


def read_ahead(dataset: Dataset[T], workers: int) -> Iterator[T]:
    """The items of a dataset in order, read by worker processes that stay a little ahead.

    Workers send arrays through pipes. Tensors would need room in /dev/shm, which containers keep small.
    """
    workers = min(workers, len(dataset) // 4)  # type: ignore[arg-type]  # a worker for a few files is not worth its start
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
