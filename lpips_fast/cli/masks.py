"""--mask: which mask belongs to an image, and the weights of pixels that it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer

from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.folders import by_stem, list_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

ALPHA: Final = "alpha"
MaskSource = Path | Literal["alpha"] | None  # where the mask of an image is

# Makes weights of pixels, uint8 [H, W], of an open image; None if they should be its alpha channel, and it has none.
WeightsOf: TypeAlias = "Callable[[Image.Image], np.ndarray | None]"


def parse_mask(text: str) -> str:
    """The text of --mask: ALPHA, or a path, which is ./alpha for a file or folder of that name."""
    path = str(Path(text))
    return f"./{path}" if path == ALPHA and text != ALPHA else path


def mask_option(help: str) -> Any:
    """The option --mask, whose value comes from `parse_mask`."""
    return typer.Option(parser=parse_mask, metavar="PATH|alpha", help=help)


Mask = Annotated[
    str | None,
    mask_option(
        "The weights of pixels in the mean, white 1, black 0: an image, a folder of images with A's names, or alpha, "
        "which is A's alpha channel (./alpha is a folder of that name)."
    ),
]


def find_masks(mask: str | None, names: Sequence[Path]) -> list[MaskSource]:
    """The mask of each image: a path, ALPHA or None.

    A mask in a folder belongs to the image of the same name. An image without such a mask takes the mask of its name
    without suffix, if only one has it. If there is none, the image gets the path that its mask should have, with the
    suffix .*, where no file is.

    Args:
        mask: the value of --mask.
        names: the paths of the images within folder A.

    Raises:
        UsageError: `mask` is a folder without images, or without a mask for any of the images.
        ReadError: `mask` is one file for all images, and cannot be read.
    """
    if mask is None:
        return [None] * len(names)
    if mask == ALPHA:
        return [ALPHA] * len(names)
    path = Path(mask)
    if path.is_dir():
        return _masks_in_folder(mask, names)
    from lpips_fast.images import open_image

    try:
        with open_image(path) as image:
            gray_of(image)
    except OSError as error:
        raise ReadError(f"--mask: {error}") from error
    return [path] * len(names)


def _masks_in_folder(mask: str, names: Sequence[Path]) -> list[MaskSource]:
    folder = Path(mask)
    try:
        masks = list_folder(folder)
    except UsageError as error:
        raise UsageError(f"--mask {error}") from error
    all_masks, stems = set(masks), by_stem({m: m for m in masks})
    found: dict[Path, Path] = {}
    for name in names:
        candidates = [name] if name in all_masks else stems.get(name.with_suffix(""), [])
        if len(candidates) == 1:
            found[name] = candidates[0]
    if not found:
        raise UsageError(f"--mask {mask} has no mask, or more than one, named as an image in A, e.g. {names[0]}")
    return [folder / found.get(name, name.with_suffix(".*")) for name in names]


def mask_source(a: Path, mask: Path | Literal["alpha"]) -> tuple[Path, WeightsOf]:
    """The file that holds the mask of image A, and the function that makes weights of the image in it."""
    from lpips_fast.images import alpha_of

    return (a, alpha_of) if mask == ALPHA else (mask, gray_of)


def gray_of(image: Image.Image) -> np.ndarray:
    """The weights of pixels that a mask gives, uint8 [H, W]: its gray, and 0 where it is transparent.

    Raises:
        ValueError: the image has 32 bits, for which no value is white.
    """
    import numpy as np
    from PIL import Image

    from lpips_fast.images import has_sixteen_bits, to_picture

    if image.mode in ("I", "F") and not has_sixteen_bits(image):
        raise ValueError(f"a mask of 32 bits (mode {image.mode!r}) has no set white: save it with 8 bits")
    return np.asarray(Image.fromarray(to_picture(image, "black", None).pixels).convert("L"))


def no_alpha(name: str) -> str:
    """The message that an image has no alpha channel that could be its mask."""
    return f"{name} has no alpha channel, and --mask alpha takes that of A, the reference"
