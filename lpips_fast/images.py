"""Images to and from tensors, with the names and conventions of `lpips`.

Every format that Pillow reads (PNG, JPEG, WebP, AVIF, BMP, TIFF, GIF and more) comes out as 8-bit RGB:

- The EXIF orientation is applied.
- Transparent pixels are composited over white or another background, so that invisible colours do not count.
- Gray is repeated over the channels, palettes are looked up, CMYK is converted without colour management.
- 16 bits a channel are reduced to the high byte. For gray of 16 or 32 bits, a range of values can be given instead.
- TIFF files whose pixels Pillow gets wrong without an error are refused (`_tiff.py`).
- The first frame of an animation is read.

EPS is refused: it is a program, and Pillow would make Ghostscript run it.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lpips_fast import _tiff

_OPAQUE = 240  # the least alpha that counts as opaque in notices: lossy codecs turn 255 into 250 or so
_FEW_LEVELS = 32  # a 16-bit image with fewer different high bytes loses most of its content

# Pillow has no media type for DDS and QOI, and opens MPO as JPEG.
_ALSO_PICTURES = ("DDS", "MPO", "QOI")


class Picture(NamedTuple):
    """An image as read, and what reading it lost."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    transparent: bool  # whether the background shows through pixels with an alpha below _OPAQUE
    # The least and largest 16-bit value if the high byte hardly tells the values apart, else None.
    narrow: tuple[int, int] | None


def load_image(
    path: str | PathLike[str], background: str = "white", value_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Reads an image file as RGB, uint8 [H, W, 3], converted as this module's description says.

    Args:
        path: the file.
        background: the colour under transparent pixels, 'white', 'black' or '#rrggbb'. 'drop' ignores transparency and
            takes the stored colours, as `lpips` does.
        value_range: (low, high), for gray of 16 bits, 32-bit integers or floats. Values are mapped linearly from
            [low, high] to [0, 255], clipped and rounded. They are Pillow's values: it scales a 16-bit PGM so that the
            file's white is 65535. With None, 16-bit gray keeps its high byte and 32-bit pixels are refused.

    Raises:
        TypeError: path is no path.
        ValueError: background or value_range is not one of the above.
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read: it is no image, no regular file (a folder, a device, a pipe), broken or cut
            short; it is EPS, a decompression bomb (more than twice Pillow's Image.MAX_IMAGE_PIXELS, 179 million
            pixels) or a TIFF file that Pillow gets wrong; it has 32-bit pixels and no value_range was given, or
            value_range was given for another kind of image.
    """
    return read_image(path, background, value_range).pixels


def read_image(
    path: str | PathLike[str], background: str = "white", value_range: tuple[float, float] | None = None
) -> Picture:
    """The image that `load_image` reads, and what reading it lost; raises as `load_image` does."""
    check_background(background)
    check_range(value_range)
    with open_image(path) as image:
        return to_picture(image, background, value_range)


def check_background(background: object) -> None:
    """Raises a ValueError unless `load_image` accepts this background."""
    if not isinstance(background, str) or not re.fullmatch(r"white|black|drop|#[0-9a-fA-F]{6}", background):
        raise ValueError(f"background must be white, black, #rrggbb or drop, got {background!r:.99}")


def check_range(value_range: object) -> None:
    """Raises a ValueError unless `load_image` accepts this range of values."""
    if value_range is None:
        return
    ends = tuple(value_range) if isinstance(value_range, Sequence) else ()
    largest = sys.float_info.max
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends) or not -largest <= ends[0] < ends[1] <= largest:
        raise ValueError(
            f"value_range must be None or two finite numbers, (low, high), low below high, got {value_range!r:.99}"
        )


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Width and height of what `load_image` returns, without decoding the pixels; raises as `load_image` does."""
    with open_image(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


@contextmanager
def open_image(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """An image file opened by Pillow; any exception in the block becomes an error as `load_image` raises it."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be the path of an image file, a str or a Path, got {_kind(path)}")
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for a writer
            raise ValueError("it is a folder, a device or a pipe")
        with Image.open(path) as image:
            if image.format == "EPS":
                raise ValueError("EPS is a program to be run, not pixels")
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}") from None
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise OSError(f"{path} cannot be read as an image: {reason}") from error


def to_picture(image: Image.Image, background: str, value_range: tuple[float, float] | None) -> Picture:
    """An open Pillow image as `read_image` returns it."""
    sixteen_bits, bits, unsigned = has_sixteen_bits(image), _tiff.gray_bits(image), _tiff.is_unsigned(image)
    narrow = None
    image = _upright(image)
    if value_range is not None:
        image = _stretched(image, value_range, unsigned)
    elif sixteen_bits:
        values = np.asarray(image)
        levels = (values >> (bits - 8)).astype(np.uint8)
        if "transparency" in image.info and background != "drop":
            seen = _opaque(image)
            narrow = _narrow(values[seen], levels[seen])
        else:
            narrow = _narrow(values, levels)
        image = _gray(image, levels)
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of mode {image.mode!r} (32 bits) have no set range: give one (value_range, or --range), or save "
            "them with 8 or 16 bits"
        )
    transparent = False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if background != "drop":
            least = int(np.asarray(image.getchannel("A")).min())
            transparent = least < _OPAQUE
            if least < 255:
                image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return Picture(np.array(image.convert("RGB")), transparent, narrow)


def has_sixteen_bits(image: Image.Image) -> bool:
    """Whether an open Pillow image is gray of 16 bits."""
    # Pillow opens 16-bit PGM, whose values it scales to 65535, and some PNG as 32-bit integers.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def alpha_of(image: Image.Image) -> np.ndarray | None:
    """The alpha channel of an open Pillow image, uint8 [H, W], with the EXIF orientation applied; None without one."""
    image = _upright(image)
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # converting 16 bits to RGBA would lose the transparent value
        image = _gray(image, np.zeros((image.height, image.width), np.uint8))
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _upright(image: Image.Image) -> Image.Image:
    """An open image with EXIF orientation applied and gray not premultiplied; a ValueError if Pillow misreads it."""
    if reason := _tiff.misread(image):
        raise ValueError(reason)
    image = ImageOps.exif_transpose(image)
    return image.convert("LA") if image.mode == "La" else image  # Pillow converts La to nothing else


def _stretched(image: Image.Image, value_range: tuple[float, float], unsigned: bool) -> Image.Image:
    """Gray of 16 or 32 bits as 8 bits, with values mapped linearly from the range."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        raise ValueError(
            "a range of values is for gray of 16 bits, 32-bit integers or floats, not for pixels of mode "
            f"{image.mode!r}, 8 bits a channel (to which Pillow reduces 16 bits of colour, or of gray with alpha)"
        )
    values = np.asarray(image)
    if unsigned and image.mode == "I":
        values = values.view(np.uint32)
    if np.isnan(values).any():
        raise ValueError("some of its values are NaN")
    return _gray(image, np.rint(np.interp(values, value_range, (0, 255))).astype(np.uint8))


def _gray(deep: Image.Image, levels: np.ndarray) -> Image.Image:
    """8-bit levels [H, W] as an image, transparent where the deep image has its transparent value."""
    image = Image.fromarray(levels)
    if "transparency" in deep.info:
        image.putalpha(Image.fromarray(_opaque(deep).astype(np.uint8) * 255))
    return image


def _opaque(deep: Image.Image) -> np.ndarray:
    """A mask [H, W] of the pixels of a deep image that do not have its transparent value."""
    return np.asarray(deep) != deep.info["transparency"]


def _narrow(values: np.ndarray, levels: np.ndarray) -> tuple[int, int] | None:
    """The least and largest 16-bit value if the high bytes (the levels) are few and several values share one."""
    if not values.size:  # all pixels are transparent
        return None
    count = np.count_nonzero(Image.fromarray(levels).histogram())  # faster than NumPy's
    if count >= _FEW_LEVELS or count == np.count_nonzero(np.bincount(values.ravel())):
        return None
    return int(values.min()), int(values.max())


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image [H, W, 3] resized to [height, width, 3], bicubic and antialiased; itself if it has that size."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of image files, in lower case: of all formats that the installed Pillow opens as pictures.

    A format counts as a picture if Pillow has a media type image/... for it; DDS, MPO and QOI count, too. That leaves
    out formats that Pillow opens with other programs (EPS, WMF, HDF5, GRIB, BUFR), video (MPEG), and rare formats whose
    suffixes mean something else to most people, such as .pcd, a cloud of points.
    """
    Image.init()
    pictures = {kind for kind in Image.OPEN if Image.MIME.get(kind, "").startswith("image/")} | {*_ALSO_PICTURES}
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in pictures)


def list_images(folder: str | PathLike[str]) -> list[Path]:
    """The image files in a folder and its subfolders, as sorted relative paths.

    The suffix decides what is an image file. Hidden files and folders are left out.

    Raises:
        OSError: the folder, or one in it that is not hidden, cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise OSError(f"folder {error.filename} cannot be read: {error.strerror}") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [p.relative_to(folder) for p in paths if p.suffix.lower() in suffixes() and p.is_file()]
    return sorted(found)


def im2tensor(image: np.ndarray, imtype: type = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0) -> Tensor:
    """An image [H, W, 3] in [0, 255] as a float32 tensor [1, 3, H, W] in [-1, 1]."""
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise ValueError(f"image must be an array [H, W, 3], got {_kind(image)}")
    return torch.from_numpy((image / factor - cent).astype(np.float32).transpose(2, 0, 1)[None].copy())


def tensor2im(
    image_tensor: Tensor, imtype: type = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0
) -> np.ndarray:
    """The first image of a batch [N, 3, H, W] in [-1, 1] as an array [H, W, 3] in [0, 255], truncated to `imtype`."""
    if not isinstance(image_tensor, Tensor) or image_tensor.dim() != 4:
        raise ValueError(f"image_tensor must be a tensor [N, 3, H, W], got {_kind(image_tensor)}")
    image = image_tensor[0].detach().cpu().float().numpy()
    return ((np.transpose(image, (1, 2, 0)) + cent) * factor).astype(imtype)


def _kind(given: object) -> str:
    """The type of what was given, and its shape if it has one."""
    shape = f" {list(given.shape)}" if isinstance(given, np.ndarray | Tensor) else ""
    return f"{type(given).__name__}{shape}"
