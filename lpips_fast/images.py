"""Images to and from tensors, with the names and conventions of `lpips`.

Every format that Pillow reads (PNG, JPEG, WebP, AVIF, BMP, TIFF, GIF and more) comes out as 8-bit RGB:

- The image is turned as its EXIF orientation says.
- Transparent pixels are composited over white, so that what cannot be seen cannot count, or over another background.
- Gray is repeated over the channels, palettes are looked up, CMYK is converted without colour management.
- 16 bits a channel are reduced to the high byte. Gray of 16 or 32 bits can be given a range of values instead.
- TIFF files whose pixels Pillow gets wrong without an error are refused (module tiff).
- Of an animation the first frame is read.

EPS is refused: it is a program, which Pillow would have Ghostscript run.
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

from lpips_fast import _tiff as tiff

_OPAQUE = 240  # alpha from here on counts as opaque in notices: lossy codecs make 250 or so of 255
_FEW_LEVELS = 32  # high bytes of a 16-bit image: fewer hardly show what it shows

# Pillow gives DDS and QOI no media type, and opens MPO as JPEG.
_ALSO_PICTURES = ("DDS", "MPO", "QOI")


class Picture(NamedTuple):
    """An image as read, and what was lost of it."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    transparent: bool  # whether the background shows in pixels of an alpha below _OPAQUE
    narrow: (
        tuple[int, int] | None
    )  # the least and largest of 16-bit values, where the high byte hardly tells them apart


def load_image(
    path: str | PathLike[str], background: str = "white", value_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Reads an image file as RGB, uint8 [H, W, 3], converted as this module's description says.

    Args:
        path: the file.
        background: the colour under transparent pixels, 'white', 'black' or '#rrggbb'. 'drop' ignores transparency and
            takes colours as they are stored, as `lpips` does.
        value_range: (low, high), for gray of 16 bits, 32-bit integers or floats. Values are mapped linearly from
            [low, high] to [0, 255], clipped and rounded. Values are those that Pillow gives: it scales a 16-bit PGM so
            that the file's white is 65535. None: 16-bit gray keeps its high byte, and 32 bits are refused.

    Raises:
        TypeError: path is no path.
        ValueError: a background or range other than those above.
        FileNotFoundError: there is no such file.
        OSError: it cannot be read: no image, no file (a folder, a device, a pipe), broken, cut short, EPS, a
            decompression bomb (of more than twice Pillow's Image.MAX_IMAGE_PIXELS, 179 million pixels), a TIFF file
            that Pillow gets wrong, 32 bits without a value_range, or another image with one.
    """
    return read_image(path, background, value_range).pixels


def read_image(
    path: str | PathLike[str], background: str = "white", value_range: tuple[float, float] | None = None
) -> Picture:
    """What `load_image` reads, and what was lost of it; raises as `load_image` does."""
    check_background(background)
    check_range(value_range)
    with open_image(path) as image:
        return to_picture(image, background, value_range)


def check_background(background: object) -> None:
    """Raises a ValueError, unless this is a background that `load_image` takes."""
    if not isinstance(background, str) or not re.fullmatch(r"white|black|drop|#[0-9a-fA-F]{6}", background):
        raise ValueError(f"background must be white, black, #rrggbb or drop, got {background!r:.99}")


def check_range(value_range: object) -> None:
    """Raises a ValueError, unless this is a range of values that `load_image` takes."""
    if value_range is None:
        return
    ends = tuple(value_range) if isinstance(value_range, Sequence) else ()
    largest = sys.float_info.max
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends) or not -largest <= ends[0] < ends[1] <= largest:
        raise ValueError(
            f"value_range must be None or two finite numbers, (low, high), low below high, got {value_range!r:.99}"
        )


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Width and height that `load_image` will return, without decoding the pixels; raises as it does."""
    with open_image(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


@contextmanager
def open_image(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """An image file, for Pillow to decode; what goes wrong with it in the block becomes `load_image`'s error."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be the path of an image file, a str or a Path, got {_kind(path)}")
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # to open a pipe would be to wait for it
            raise ValueError("it is a folder, a device or a pipe")
        with Image.open(path) as image:
            if image.format == "EPS":
                raise ValueError("EPS is a program to be run, not pixels")
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise OSError(f"{path} cannot be read as an image: {reason}") from error


def to_picture(image: Image.Image, background: str, value_range: tuple[float, float] | None) -> Picture:
    """An open Pillow image, as `read_image` gives it."""
    sixteen_bits, bits, unsigned = has_sixteen_bits(image), tiff.gray_bits(image), tiff.is_unsigned(image)
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
    """Whether an image as Pillow has opened it is gray of 16 bits."""
    # Pillow gives 16-bit PGM, whose values it scales to 65535, and some PNG as 32-bit integers.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def alpha_of(image: Image.Image) -> np.ndarray | None:
    """The alpha channel of an open Pillow image, uint8 [H, W], turned as `to_picture` turns it, or None without one."""
    image = _upright(image)
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # converting 16 bits to RGBA would lose which value is transparent
        image = _gray(image, np.zeros((image.height, image.width), np.uint8))
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _upright(image: Image.Image) -> Image.Image:
    """An open image turned as its EXIF orientation says, its gray not premultiplied; a ValueError if misread."""
    if reason := tiff.misread(image):
        raise ValueError(reason)
    image = ImageOps.exif_transpose(image)
    return image.convert("LA") if image.mode == "La" else image  # Pillow converts La to nothing else


def _stretched(image: Image.Image, value_range: tuple[float, float], unsigned: bool) -> Image.Image:
    """Gray of 16 or 32 bits as 8 bits, its values mapped linearly from the range."""
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
    """Levels [H, W] of 8 bits as an image, transparent where the deep image has its colour for that."""
    image = Image.fromarray(levels)
    if "transparency" in deep.info:
        image.putalpha(Image.fromarray(_opaque(deep).astype(np.uint8) * 255))
    return image


def _opaque(deep: Image.Image) -> np.ndarray:
    """Where [H, W] a deep image has not its colour for transparent pixels."""
    return np.asarray(deep) != deep.info["transparency"]


def _narrow(values: np.ndarray, levels: np.ndarray) -> tuple[int, int] | None:
    """The least and largest of 16-bit values, where their high bytes, the levels, are few, and several share one."""
    if not values.size:  # all are transparent
        return None
    count = np.count_nonzero(Image.fromarray(levels).histogram())  # faster than NumPy's
    if count >= _FEW_LEVELS or count == np.count_nonzero(np.bincount(values.ravel())):
        return None
    return int(values.min()), int(values.max())


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image [H, W, 3] resized to [height, width, 3]: bicubic, antialiased. One of that size is returned itself."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of image files, in lower case: Pillow's, of the formats that this Pillow opens as pictures.

    A format counts as a picture where Pillow has a media type image/... for it; DDS, MPO and QOI count, too. That
    leaves out what Pillow opens with other programs (EPS, WMF, HDF5, GRIB, BUFR), video (MPEG), and rare formats whose
    suffixes mean something else to most people, such as .pcd, a cloud of points.
    """
    Image.init()
    pictures = {kind for kind in Image.OPEN if Image.MIME.get(kind, "").startswith("image/")} | {*_ALSO_PICTURES}
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in pictures)


def list_images(folder: str | PathLike[str]) -> list[Path]:
    """The image files under a folder, at any depth, by their suffix, hidden ones left out; sorted relative paths.

    Raises:
        OSError: it, or a folder in it that is not hidden, cannot be read.
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
    """What was given, and its shape if it has one."""
    shape = f" {list(given.shape)}" if isinstance(given, np.ndarray | Tensor) else ""
    return f"{type(given).__name__}{shape}"
