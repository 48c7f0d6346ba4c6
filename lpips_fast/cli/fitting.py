"""--resize, --crop and --crop-border: how the images of a pair, and their mask, come to one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lpips_fast.cli.errors import ReadError, UsageError

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


@dataclass(frozen=True)
class Fit:
    """How images come to one size, and the border that is not compared.

    Args:
        resize: each image takes the size of the first.
        crop: each image is cut at the bottom and the right to the common height and width of the first two, A and B.
        crop_border: how many pixels are then cut from each of the four sides.

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
        """Brings images to one size.

        Args:
            images: A and B, [H, W, 3], and their mask [H, W] if there is one, each with its name.

        Raises:
            ReadError: the sizes differ, and the options neither resize nor crop; or the mask is smaller than the
                cropped A and B; or nothing is left within the border.
        """
        from lpips_fast.images import resize_image

        name, first = images[0]
        height, width = first.shape[:2]
        if self.crop:
            height, width = (min(image.shape[side] for _, image in images[:2]) for side in (0, 1))
            for mask, image in images[2:]:
                if image.shape[0] < height or image.shape[1] < width:
                    raise ReadError(
                        f"the mask {mask} is {image.shape[1]} x {image.shape[0]}, smaller than the {width} x {height} "
                        "pixels that A and B are cropped to"
                    )
        elif not self.resize:
            for way, (other, image) in zip(("--resize or --crop", "--resize"), images[1:], strict=False):
                check_sizes(name, (width, height), other, (image.shape[1], image.shape[0]), way)
        n = self.crop_border
        if min(height, width) <= 2 * n:
            raise ReadError(f"--crop-border {n} leaves nothing of {name}, {width} x {height} pixels")
        sized = [resize_image(image, width, height) if self.resize else image for _, image in images]
        return [image[n : height - n, n : width - n] for image in sized]


def same_shape(size0: tuple[int, int], size1: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same aspect ratio, if a side is rounded by less than a pixel."""
    (width0, height0), (width1, height1) = size0, size1
    return abs(width0 * height1 - width1 * height0) < max(width0, height0, width1, height1)


def check_sizes(
    name0: str, size0: tuple[int, int], name1: str, size1: tuple[int, int], way: str = "--resize or --crop"
) -> None:
    """Raises a ReadError that names a way to one size, unless two images have the same size (width, height)."""
    if size0 != size1:
        told0, told1 = (f"{width} x {height}" for width, height in (size0, size1))
        raise ReadError(f"sizes differ: {name0} is {told0}, {name1} {told1} ({way} makes them equal)")
