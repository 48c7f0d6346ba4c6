"""`lpips-fast pair`: the distance of two images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lpips_fast.cli import options, output
from lpips_fast.cli.fitting import Fit, Mask
from lpips_fast.cli.folders import find_masks
from lpips_fast.cli.options import ReadError, Reading, Settings

A = Annotated[Path, typer.Argument(help="The reference image.", show_default=False)]
B = Annotated[Path, typer.Argument(help="The image to compare with it.", show_default=False)]


def pair(
    a: A,
    b: B,
    settings: Settings,
    reading: Reading,
    fit: Fit,
    mask: Mask = None,
    json: output.Json = None,
    csv: output.Csv = None,
) -> None:
    """The distance of two images."""
    from lpips_fast.cli.loading import load_pair
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices

    [own_mask] = find_masks(mask, [Path(a.name)])
    model, notices = Model(settings), Notices(reading)
    found = notices.pair((a, b), load_pair(a, b, fit, reading, own_mask))
    if why := model.too_small(*found.image0.shape[:2]):
        raise ReadError(f"{a}: {why}")
    value, layers = model.layers(found)
    row = {"a": str(a), "b": str(b), "lpips": value, "layers": layers}
    if not output.to_stdout(json, csv):
        print(f"{value:.3f} ({value:.7g})")
    described = {**output.describe(settings, reading), **asdict(fit), "mask": mask}
    output.write_json(json, {"settings": described, **row})
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
            "lpips-fast pair ground_truth.png rendering.png --mask alpha --background black",
        ],
    )
