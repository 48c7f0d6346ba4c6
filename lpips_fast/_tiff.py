"""Recognises, by their tags, the TIFF files whose pixels Pillow gets wrong without an error.

Pillow 12.0 to 13.0 were compared with files written by tifffile and by hand: kinds of samples, photometric
interpretations, layouts, compressions and byte orders. Pillow reads every kind that is not here right, or refuses it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

_UNCOMPRESSED = 1
_WHITE_IS_ZERO, _PALETTE, _SEPARATED, _YCBCR = 0, 3, 5, 6  # PhotometricInterpretation
_INTERLEAVED, _PLANES = 1, 2  # PlanarConfiguration
_UNSIGNED, _SIGNED = 1, 2  # SampleFormat
_NOT_CMYK = 2  # InkSet

# How Pillow reads uncompressed YCbCr: a tag, its default in TIFF, and the value that Pillow assumes.
_YCBCR_AS_READ = (
    (Base.PlanarConfiguration, (_INTERLEAVED,), (_INTERLEAVED,)),
    (Base.YCbCrSubSampling, (2, 2), (1, 1)),
    (Base.YCbCrCoefficients, (0.299, 0.587, 0.114), (0.299, 0.587, 0.114)),
    (Base.ReferenceBlackWhite, (0, 255, 128, 255, 128, 255), (0, 255, 128, 255, 128, 255)),
)


def misread(image: Image.Image) -> str | None:
    """What Pillow gets wrong in an open image, and what to do; None if Pillow is right or the file is no TIFF."""
    if image.format != "TIFF":
        return None
    tags = image.tag_v2  # type: ignore[attr-defined]
    photometric = tags.get(Base.PhotometricInterpretation, _WHITE_IS_ZERO)
    bits = max(tags.get(Base.BitsPerSample, (1,)))
    compressed = tags.get(Base.Compression, _UNCOMPRESSED) != _UNCOMPRESSED
    planes = tags.get(Base.PlanarConfiguration) == _PLANES
    if photometric == _WHITE_IS_ZERO and bits > 8:
        return "Pillow does not invert WhiteIsZero of more than 8 bits: save the image as BlackIsZero"
    if bits == 8 and _SIGNED in tags.get(Base.SampleFormat, ()):
        return "Pillow reads signed samples of 8 bits as unsigned: save the image with unsigned samples"
    if image.mode in ("I", "F") and compressed and tags.prefix.startswith(b"MM"):
        return (
            "Pillow swaps the bytes of signed and float samples that are big-endian and compressed: save the image as "
            "little-endian, or without compression"
        )
    scrambled = image.mode in ("LA", "La", "PA") if compressed else bits == 16
    if planes and scrambled:
        return (
            f"Pillow scrambles {'compressed gray with alpha' if compressed else 'uncompressed samples of 16 bits'} in "
            "separate planes: save the image with interleaved samples (PlanarConfiguration 1)"
        )
    if photometric == _YCBCR and not compressed and tags.get(Base.SamplesPerPixel, 1) > 1:
        for tag, default, as_read in _YCBCR_AS_READ:
            found = np.atleast_1d(np.asarray(tags.get(tag, default), float))
            if found.shape != np.shape(as_read) or not np.allclose(found, as_read, rtol=0, atol=1e-3):
                return f"Pillow ignores {tag.name} of uncompressed YCbCr: save the image as RGB"
    if photometric == _SEPARATED and tags.get(Base.InkSet) == _NOT_CMYK:
        return "Pillow reads its inks as CMYK, and InkSet says that they are others: save the image as RGB"
    if photometric == _PALETTE and 0 < max(tags.get(Base.ColorMap, (0,))) < 256:
        return "Pillow shows a palette of 8-bit values, where TIFF has 16 bits, as black: save the image as RGB"
    return None


def is_unsigned(image: Image.Image) -> bool:
    """Whether 32-bit integers, which Pillow always opens as signed, are unsigned in the image's TIFF file."""
    return image.format == "TIFF" and _UNSIGNED in image.tag_v2.get(Base.SampleFormat, (_UNSIGNED,))  # type: ignore[attr-defined]


def gray_bits(image: Image.Image) -> int:
    """How many bits a pixel has in the file of an image that Pillow opens as 16-bit gray: 12 in some TIFF files."""
    return max(image.tag_v2.get(Base.BitsPerSample, (16,))) if image.format == "TIFF" else 16  # type: ignore[attr-defined]
