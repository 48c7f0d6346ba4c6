"""Video files, and what their frames must be in RGB."""

from __future__ import annotations

import numpy as np
import pytest

from lpips_fast.cli.settings import VideoReading
from lpips_fast.cli.video.frames import open_frames

av = pytest.importorskip("av", reason="video files need PyAV")

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
CODES = {"bt601": 6, "bt709": 1, "bt2020": 9}  # of ITU-T H.273


def to_rgb(planes: list[np.ndarray], bits: int, matrix: str, full: bool) -> np.ndarray:
    """Planes of one size as RGB [H, W, 3] in [0, 255], in float64, by the definition of BT.601, BT.709 and BT.2020."""
    y, u, v = (plane.astype(np.float64) for plane in planes)
    s = 2 ** (bits - 8)
    if full:
        y, cb, cr = y / (2**bits - 1), (u - 128 * s) / (2**bits - 1), (v - 128 * s) / (2**bits - 1)
    else:
        y, cb, cr = (y - 16 * s) / (219 * s), (u - 128 * s) / (224 * s), (v - 128 * s) / (224 * s)
    kr, kb = KR_KB[matrix]
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return 255 * np.clip(np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], axis=-1), 0, 1)


def from_rgb(image: np.ndarray, bits: int, matrix: str) -> list[np.ndarray]:
    """RGB uint8 [H, W, 3] as planes of limited range, 4:4:4, rounded."""
    r, g, b = np.moveaxis(image / 255, -1, 0)
    kr, kb = KR_KB[matrix]
    y = kr * r + kb * b + (1 - kr - kb) * g
    s = 2 ** (bits - 8)
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    return [np.rint(v) for v in (219 * s * y + 16 * s, 224 * s * cb + 128 * s, 224 * s * cr + 128 * s)]


def frame_of(form: str, width: int, height: int, planes: list[np.ndarray]):
    """A frame with these values in its planes. Values of shape () fill a plane."""
    frame = av.VideoFrame(width, height, form)
    deep = max(component.bits for component in frame.format.components) > 8
    for plane, values in zip(frame.planes, planes, strict=True):
        stored = np.zeros((plane.height, plane.line_size // (1 + deep)), "<u2" if deep else np.uint8)
        stored[:, : plane.width] = values
        plane.update(stored)
    return frame


def save(path, frames, codec="ffv1", options=None, display=None, **tags):
    """Writes frames. Tags are attributes of the encoder; those of colour are codes of H.273."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        for name, code in tags.items():
            setattr(stream.codec_context, name, code)
        if display is not None:
            stream.set_display_matrix(display)
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read(path, **options):
    """The pixels of the first frame, and how it is coded."""
    coding, frames = open_frames(path, VideoReading(**options))
    return next(frames).image.pixels, coding


def rgb_frames(image: np.ndarray, count: int = 2) -> list:
    """A frame of this image, several times."""
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for _ in range(count)]


def turned(image: np.ndarray, degrees: int, mirrored: bool) -> np.ndarray:
    """An image turned clockwise, then mirrored left to right."""
    image = np.rot90(image, -degrees // 90)
    return image[:, ::-1] if mirrored else image


def display_matrix(degrees: float, mirrored: bool) -> list[int]:
    """A display matrix as in ISO base media files: a, b, u, c, d, v, x, y, w in fixed point."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x = -1 if mirrored else 1
    a, b, c, d = (round(v * 65536) for v in (x * cos, sin, -x * sin, cos))
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]
