"""Images to and from tensors, with the names and conventions of `lpips`.

Every format that Pillow reads (PNG, JPEG, WebP, BMP, TIFF, GIF and more) comes out as 8-bit RGB:

- turned as its EXIF orientation says;
- transparency composited over white, so that what cannot be seen cannot count;
- gray repeated over the channels, palettes looked up, CMYK converted without colour management;
- 16 bits a channel reduced to the high byte; of an animation the first frame.

But for EPS, which is a program, and which Pillow would have Ghostscript run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


def load_image(path: str | PathLike[str]) -> np.ndarray:
    """Reads an image file as RGB, uint8 [H, W, 3], converted as this module's description says.

    Raises:
        TypeError: no path.
        FileNotFoundError: there is no such file.
        OSError: it cannot be read: no image, no file (a folder, a device, a pipe), broken, cut short, EPS, of values
            without a range (float, 32-bit integers), or a decompression bomb (of more than twice Pillow's
            Image.MAX_IMAGE_PIXELS, 179 million pixels).
    """
    with open_image(path) as image:
        return to_array(image)


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


def to_array(image: Image.Image) -> np.ndarray:
    """An open Pillow image as RGB, uint8 [H, W, 3], converted as this module's description says."""
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(image)
    if sixteen_bits:  # of PPM's whatever their largest value: Pillow scales that to 65535
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} (32 bits) have no set range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image [H, W, 3] resized to [height, width, 3]: bicubic, antialiased."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


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
        found += [p.relative_to(folder) for p in paths if p.suffix.lower() in SUFFIXES and p.is_file()]
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
