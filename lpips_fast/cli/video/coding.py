"""How the frames of a video file are coded: matrix, range, orientation and more, as its stream is tagged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lpips_fast.cli.errors import ReadError

# Frames are tagged with codes of ITU-T H.273. These are the names of the codes. swscale converts these matrices.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
MATRIX_CODES = {name: code for code, name in _MATRICES.items()}
_NO_MATRIX = (0, 2, 3)  # RGB, which is wrong for YUV; unspecified; reserved
LIMITED, FULL = 1, 2
_PRIMARIES = {
    1: "bt709",
    2: "unspecified",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}
_TRANSFERS = {
    1: "bt709",
    2: "unspecified",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}

# Wide gamuts and HDR, by the names that users know. A line says so if A and B differ in these. All other tags, and no
# tag, count as alike, because encoders tag one picture as sRGB, BT.709, BT.601 or not at all.
_WIDE_PRIMARIES = {
    "film": "film",
    "bt2020": "BT.2020",
    "smpte428": "CIE XYZ",
    "smpte431": "DCI-P3",
    "smpte432": "Display P3",
}
_HDR_TRANSFERS = {
    "linear": "linear light",
    "log100": "log 100:1",
    "log316": "log 316:1",
    "smpte2084": "PQ",
    "smpte428": "SMPTE 428",
    "arib-std-b67": "HLG",
}

Range = Literal["limited", "full"]
Source = Literal["tagged", "assumed", "given", "pixel format"]


class Coding(NamedTuple):
    """How the frames of a video file are coded, and how they are read. Results have the same names."""

    width: int  # of a frame as it is compared, after it is turned
    height: int
    pixel_format: str  # FFmpeg's name
    matrix: str | None  # None for RGB and gray, which have no matrix
    matrix_source: Source | None
    range: Range
    range_source: Source | None  # None for RGB, a palette and black and white, which are always full
    primaries: str  # neither primaries nor transfer function are converted
    transfer: str
    rotation: int | None  # degrees clockwise; None for an angle that frames are not turned by
    mirrored: bool  # left to right, after it is turned
    sample_aspect_ratio: str  # width:height of a pixel; pixels are compared as stored
    alpha: Literal["decoded", "dropped"] | None  # None without an alpha channel
    interlaced: bool  # the two fields of a frame are compared together


class RawFrame(NamedTuple):
    """A frame as PyAV decodes it, before its conversion to RGB."""

    frame: Any
    tags: Any  # a frame that has the tags of this one
    alpha_dropped: bool  # whether the stream has an alpha channel that was not decoded


def coding_of(path: Path, stream: Any, raw: RawFrame, color_matrix: str) -> Coding:
    frame, tags, alpha_dropped = raw
    matrix: str | None = None
    matrix_source: Source | None = None
    if _is_yuv(frame.format):
        matrix, matrix_source = _matrix(path, tags.colorspace, color_matrix)
    range_, range_source = _range(frame.format, tags.color_range)
    rotation, mirrored = _orientation(tags)
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or 1
    alpha: Literal["decoded", "dropped"] | None = "dropped" if alpha_dropped else None
    return Coding(
        width=height if rotation in (90, 270) else width,
        height=width if rotation in (90, 270) else height,
        pixel_format=frame.format.name,
        matrix=matrix,
        matrix_source=matrix_source,
        range=range_,
        range_source=range_source,
        primaries=_PRIMARIES.get(tags.color_primaries, str(tags.color_primaries)),
        transfer=_TRANSFERS.get(tags.color_trc, str(tags.color_trc)),
        rotation=rotation,
        mirrored=mirrored,
        sample_aspect_ratio=f"{aspect.numerator}:{aspect.denominator}",
        alpha="decoded" if has_alpha(frame.format) else alpha,
        interlaced=frame.interlaced_frame,
    )


def _is_yuv(form: Any) -> bool:
    return len(form.components) > 2 and not form.is_rgb


def _is_gray(form: Any) -> bool:
    """Whether a format is gray, which may have limited range. A format of 1 bit is black and white instead."""
    return len(form.components) <= 2 and not form.has_palette and form.components[0].bits >= 8


def has_alpha(form: Any) -> bool:
    return form.has_palette or any(component.is_alpha for component in form.components)


def _matrix(path: Path, code: int, color_matrix: str) -> tuple[str, Source]:
    """The matrix that converts a frame from YUV, and its source."""
    if color_matrix != "auto":
        return color_matrix, "given"
    if code in _NO_MATRIX:
        return "bt601", "assumed"
    if code not in _MATRICES:
        raise ReadError(
            f"{path} is tagged with matrix {code} of ITU-T H.273, which cannot be converted: bt601, bt709 and "
            "bt2020 can (--color-matrix reads it as one of them)"
        )
    return _MATRICES[code], "tagged"


def _range(form: Any, code: int) -> tuple[Range, Source | None]:
    """The range of a frame's values, and its source."""
    if form.name.startswith("yuvj"):
        return "full", "pixel format"
    if not (_is_yuv(form) or _is_gray(form)):
        return "full", None
    if code in (LIMITED, FULL):
        return ("full" if code == FULL else "limited"), "tagged"
    return ("full" if _is_gray(form) else "limited"), "assumed"


def _orientation(frame: Any) -> tuple[int | None, bool]:
    """The rotation in degrees clockwise, and the mirroring, that a frame's display matrix asks for.

    The matrix begins with a, b, _, c, d. It shows the point (x, y) of the frame, y downwards, at (ax + cy, bx + dy). It
    mirrors if the determinant ad - bc is negative.
    """
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(found, np.int32)[:5].tolist()
    mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(b, -a if mirrored else a))
    turns = round(degrees / 90)
    return (turns % 4 * 90 if abs(degrees - 90 * turns) < 1 else None), mirrored


def remarks(paths: Sequence[Path], codings: Sequence[Coding | None]) -> list[str]:
    """What a user should know about the codings of A and B. None stands for a folder or an animation."""
    found: list[str] = []
    for path, coding in zip(paths, codings, strict=True):
        if coding is not None and coding.rotation is None:
            found.append(f"{path} is not turned: its display matrix has an angle that is no multiple of 90 degrees")
        if coding is not None and coding.alpha == "dropped":
            found.append(f"{path}: its alpha channel is ignored, for this FFmpeg has no decoder that keeps it")
    (path_a, a), (path_b, b) = zip(paths, codings, strict=True)
    if a is None or b is None:
        return found
    other_matrices = a.matrix != b.matrix and {a.matrix_source, b.matrix_source} == {"tagged", "assumed"}
    if _wide_or_hdr(a) != _wide_or_hdr(b):
        hint = " (if one merely lacks its tags, --color-matrix reads both by one matrix)" if other_matrices else ""
        found.append(
            f"{path_a} is {_colors(a)} and {path_b} is {_colors(b)}: primaries and transfer functions are not "
            f"converted, so the distance compares other colours{hint}"
        )
    elif other_matrices:
        found.append(
            f"of {path_a} and {path_b} one is tagged with a matrix and the other is not: they are read by {a.matrix} "
            f"({a.matrix_source}) and {b.matrix} ({b.matrix_source}); --color-matrix reads both by one"
        )
    if (a.width, a.height) != (b.width, b.height):
        for path, coding in ((path_a, a), (path_b, b)):
            if coding.rotation in (90, 270):
                found.append(f"{path} was turned by {coding.rotation} degrees, as its display matrix says")
    if a.range != b.range and {a.range_source, b.range_source} == {"tagged", "assumed"}:
        found.append(
            f"of {path_a} and {path_b} one does not say its range: they are read as {a.range} ({a.range_source}) and "
            f"{b.range} ({b.range_source})"
        )
    if a.sample_aspect_ratio != b.sample_aspect_ratio:
        found.append(
            f"{path_a} and {path_b} differ in the aspect ratio of a pixel, {a.sample_aspect_ratio} and "
            f"{b.sample_aspect_ratio}; pixels are compared as they are stored"
        )
    return found


def _wide_or_hdr(coding: Coding) -> tuple[str | None, str | None]:
    """The primaries if they are wide, and the transfer function if it is one of HDR; else None."""
    return _WIDE_PRIMARIES.get(coding.primaries), _HDR_TRANSFERS.get(coding.transfer)


def _colors(coding: Coding) -> str:
    """Names the primaries and the transfer function that a stream is tagged with."""
    primaries = _WIDE_PRIMARIES.get(coding.primaries, coding.primaries)
    transfer = _HDR_TRANSFERS.get(coding.transfer, coding.transfer)
    tagged = dict.fromkeys(name for name in (primaries, transfer) if name != "unspecified")
    return " with ".join(tagged) or "untagged"
