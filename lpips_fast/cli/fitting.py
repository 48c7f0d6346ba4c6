"""How the images of a pair come to one size, and which of their pixels count: options of several commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ReadError, UsageError

if TYPE_CHECKING:
    import numpy as np

Resize = Annotated[bool, typer.Option("--resize", help="Resize B to the size of A (bicubic) where they differ.")]
Crop = Annotated[
    bool,
    typer.Option(
        "--crop", help="Where sizes differ, cut A and B at the bottom and the right to the size that they share."
    ),
]
CropBorder = Annotated[
    int,
    typer.Option(min=0, help="Leave out this many pixels at each of the four sides, as is usual in super-resolution."),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        help="The weights of pixels in the mean, white 1, black 0: an image, a folder of images named as A's, or "
        "alpha, which is A's alpha channel.",
    ),
]

ALPHA = Path("alpha")


@dataclass(frozen=True)
class Fit:
    """How images come to one size, and the border that is not compared.

    Args:
        resize: each takes the size of the first.
        crop: each is cut at the bottom and the right to the height and width that all have.
        crop_border: the number of pixels that are then cut from each of the four sides.

    Raises:
        UsageError: both `resize` and `crop` are set.
    """

    resize: Resize = False
    crop: Crop = False
    crop_border: CropBorder = 0

    def __post_init__(self) -> None:
        if self.resize and self.crop:
            raise UsageError("--resize and --crop are two ways to one size: choose one")

    @property
    def takes_all_sizes(self) -> bool:
        return self.resize or self.crop

    def __call__(self, *images: tuple[str, np.ndarray]) -> list[np.ndarray]:
        """Images [H, W, 3] and masks [H, W], given with their names, at one size.

        Raises:
            ReadError: the sizes differ, and this neither resizes nor crops; or nothing is left within the border.
        """
        from ..images import resize_image

        name, first = images[0]
        height, width = first.shape[:2]
        if self.crop:
            height, width = (min(image.shape[side] for _, image in images) for side in (0, 1))
        elif not self.resize:
            for other, image in images[1:]:
                check_sizes(name, (width, height), other, (image.shape[1], image.shape[0]))
        n = self.crop_border
        if min(height, width) <= 2 * n:
            raise ReadError(f"--crop-border {n} leaves nothing of {name}, {width} x {height} pixels")
        sized = [resize_image(image, width, height) if self.resize else image for _, image in images]
        return [image[n : height - n, n : width - n] for image in sized]


def check_sizes(name0: str, size0: tuple[int, int], name1: str, size1: tuple[int, int]) -> None:
    """Raises a ReadError, unless two images are of one size (width, height)."""
    if size0 != size1:
        told0, told1 = (f"{width} x {height}" for width, height in (size0, size1))
        raise ReadError(f"sizes differ: {name0} is {told0}, {name1} {told1} (--resize or --crop makes them equal)")
