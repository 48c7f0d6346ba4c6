"""What an index says of how it was made, and whether a distance and queries fit it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch

from lpips_fast._checks import checked_count
from lpips_fast.lpips import LPIPS
from lpips_fast.sketch import Sketch
from lpips_fast.trunk.execute import run
from lpips_fast.trunk.nets import Net
from lpips_fast.trunk.program import Setting
from lpips_fast.weights.files import fingerprint

LEAST_LENGTH, MOST_LENGTH = 64, 2**24  # of a sketch: with the least, the spread of an estimate is 18 %


class Header(NamedTuple):
    """How an index was made; a search must be made in the same way."""

    net: str
    version: str
    lpips: bool
    precision: str  # of the trunk; a search may have another one
    size: tuple[int, int]  # height and width that the trunk saw
    values: int  # D, of a vector; it tells how many taps were in use
    resized: bool  # whether images of other sizes are resized to it, or refused
    normalize: bool | None  # the argument of `build`, and so of `search`; None: unknown
    raw: bool | None  # whether the trunk saw [0, 1] instead of [-1, 1], by the command line's --no-normalize
    reading: dict[str, Any] | None  # how the command line read the image files, by option; None: unknown
    transparent: bool | None  # whether an image file was transparent; None: unknown
    opaque: bool | None  # whether an image file was not transparent; None: unknown
    folder: str | None  # where the command line found the image files
    sketch: Sketch | None  # of which kind the sketches are; None: there are none
    linear_sha256: str
    trunk_sha256: str

    def to_json(self) -> str:
        sketch = None if self.sketch is None else self.sketch._asdict()
        return json.dumps({**self._asdict(), "sketch": sketch})


def make_header(
    fn: LPIPS,
    size: tuple[int, int],
    resized: bool,
    normalize: bool | None,
    raw: bool | None,
    sketch: Sketch | None,
) -> Header:
    """The header of an index of images; what only the command line knows of image files is None."""
    return Header(
        **distance_of(fn),
        precision=fn.net.precision,
        size=size,
        values=vector_length(fn, size),
        resized=resized,
        normalize=normalize,
        raw=raw,
        reading=None,
        transparent=None,
        opaque=None,
        folder=None,
        sketch=sketch,
    )


def distance_of(fn: LPIPS) -> dict[str, Any]:
    """The fields of a header that say which distance it is."""
    return {
        "net": spec(fn).model,
        "version": fn.version,
        "lpips": fn.lpips,
        "linear_sha256": fingerprint(fn.linear_weights() or []),
        "trunk_sha256": fingerprint(fn.net.parameters()),
    }


def checked_header(header: Header, fn: LPIPS) -> Header:
    """A header that `read_header` gave; a ValueError if the index was made with another distance than fn."""
    size = checked_size(fn, header.size)
    own = {**distance_of(fn), "values": vector_length(fn, size)}
    for what in ("net", "version", "lpips", "values", "linear_sha256", "trunk_sha256"):
        if (made_with := getattr(header, what)) != (needed := own[what]):
            raise ValueError(f"it was made with {what} {made_with!s:.99}, this LPIPS has {needed}: build it again")
    return header._replace(size=size)


def read_header(text: str) -> Header:
    """The header in a file, whose size is not checked; a ValueError if it is damaged."""
    fields = from_json("header", text)
    if not isinstance(fields, dict) or {*fields} != {*Header._fields}:
        given = f"{fields!r:.99}" if not isinstance(fields, dict) else ", ".join(fields)
        raise ValueError(f"its header must have {', '.join(Header._fields)}, got {given:.199}")
    header = Header(**fields)
    if not isinstance(header.reading, dict | None):
        raise ValueError(f"its reading must be options by name, got {header.reading!r:.99}")
    for what in ("net", "version", "precision", "linear_sha256", "trunk_sha256"):
        if not isinstance(text := getattr(header, what), str):
            raise ValueError(f"its {what} must be text, got {text!r:.99}")
    if not isinstance(header.folder, str | None):
        raise ValueError(f"its folder must be a path, got {header.folder!r:.99}")
    for what in ("resized", "normalize", "raw", "transparent", "opaque"):
        if not isinstance(flag := getattr(header, what), bool) and (flag is not None or what == "resized"):
            raise ValueError(f"its {what} must be true or false, got {flag!r:.99}")
    return header._replace(sketch=_read_sketch(header.sketch))


def from_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {name} must be JSON: {error}") from error


def checked_sketch(length: int) -> Sketch:
    accepted = f"None or a length of at least {LEAST_LENGTH} and at most {MOST_LENGTH}, a whole number"
    length = checked_count("sketch", length, accepted)
    if not LEAST_LENGTH <= length <= MOST_LENGTH:
        raise ValueError(f"sketch must be {accepted}, got {length}")
    return Sketch(length)


def checked_size(fn: LPIPS, size: Sequence[int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Iterable) else ()
    smallest = spec(fn).min_size
    if len(sides) != 2 or not all(isinstance(side, Integral) and side >= smallest for side in sides):
        raise ValueError(
            f"size must be height and width, two whole numbers of at least {smallest} pixels for net "
            f"{fn.pnet_type!r}, got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def spec(fn: LPIPS) -> Net:
    """The spec of fn's trunk; a ValueError if layers were changed since the constructor made them."""
    if not fn.is_stock():
        raise ValueError("fn must have the layers that it was made with, for an index does not know them from others")
    return fn.net.spec


def tap_shapes(fn: LPIPS, size: tuple[int, int]) -> list[torch.Size]:
    """C_l, H_l and W_l of the taps of images of that height and width, computed from shapes alone."""
    setting = Setting(fn.net.plan, torch.float32, torch.contiguous_format)
    try:
        images = torch.empty(0, 3, *size, device="meta")
        parameters = [torch.empty_like(p, dtype=torch.float32, device="meta") for p in fn.net.parameters()]
        taps, _ = run(setting, (images,), (None, None), parameters)
    except (RuntimeError, TypeError) as error:  # offsets that are no int64
        raise ValueError(f"size must be that of images, got {by(size)}: {error}") from error
    return [tap.shape[1:] for tap in taps[: fn.L]]


def vector_length(fn: LPIPS, size: tuple[int, int]) -> int:
    """D of the vectors of images of that height and width."""
    return sum(shape.numel() for shape in tap_shapes(fn, size))


def by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _read_sketch(fields: Any) -> Sketch | None:
    if fields is None:
        return None
    whole = isinstance(fields, dict) and {*fields} == {*Sketch._fields}
    if not whole or not all(type(value) is int for value in fields.values()):
        raise ValueError(f"its sketch must have {', '.join(Sketch._fields)}, whole numbers, got {fields!r:.99}")
    sketch = Sketch(**fields)
    if not LEAST_LENGTH <= sketch.length <= MOST_LENGTH or not 0 <= sketch.seed < 2**64:
        raise ValueError(f"its sketch must have a length from {LEAST_LENGTH} and a seed of 64 bits, got {fields}")
    return sketch
