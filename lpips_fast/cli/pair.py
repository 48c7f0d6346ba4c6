"""`lpips-fast pair`: the distance of two images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options, output
from .options import ReadError, Reading, Settings

A = Annotated[Path, typer.Argument(help="The reference image.", show_default=False)]
B = Annotated[Path, typer.Argument(help="The image to compare with it.", show_default=False)]
Resize = Annotated[bool, typer.Option("--resize", help="Resize B to the size of A (bicubic) where they differ.")]


def pair(
    a: A,
    b: B,
    settings: Settings,
    reading: Reading,
    resize: Resize = False,
    json: output.Json = None,
    csv: output.Csv = None,
) -> None:
    """The distance of two images."""
    from .loading import load_pair
    from .model import Model
    from .notices import Notices

    model, notices = Model(settings), Notices(reading)
    image0, image1 = notices.pair((a, b), load_pair(a, b, resize, reading))
    if why := model.too_small(*image0.shape[:2]):
        raise ReadError(f"{a}: {why}")
    value, layers = model.layers(image0, image1)
    row = {"a": str(a), "b": str(b), "lpips": value, "layers": layers}
    if not output.to_stdout(json, csv):
        print(f"{value:.3f} ({value:.7g})")
    output.write_json(json, {"settings": output.describe(settings, reading), **row})
    output.write_csv(csv, [row], ["a", "b", "lpips"])
    notices.tell()


def register(app: typer.Typer) -> None:
    options.register(
        app,
        "pair",
        pair,
        [
            "lpips-fast pair reference.png distorted.png",
            "lpips-fast pair a.jpg b.webp --net vgg --resize --json -",
        ],
    )
