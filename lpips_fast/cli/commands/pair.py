"""`lpips-fast pair`: the distance of two images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from lpips_fast.cli import command, output
from lpips_fast.cli.errors import ReadError
from lpips_fast.cli.fitting import Fit
from lpips_fast.cli.masks import Mask, find_masks
from lpips_fast.cli.options import Csv, ImageA, ImageB, Json
from lpips_fast.cli.settings import Reading, Settings


def pair(
    a: ImageA,
    b: ImageB,
    settings: Settings,
    reading: Reading,
    fit: Fit,
    mask: Mask = None,
    json: Json = None,
    csv: Csv = None,
) -> None:
    """The distance of two images."""
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.cli.reading import load_pair

    [own_mask] = find_masks(mask, [Path(a.name)])
    model, notices = Model(settings), Notices(reading)
    found = notices.pair((a, b), load_pair(a, b, fit, reading, own_mask))
    if why := model.too_small(*found.image0.shape[:2]):
        raise ReadError(f"{a}: {why}")
    value, layers = model.layers(found)
    row = {"a": str(a), "b": str(b), "lpips": value, "layers": layers}
    if not output.to_stdout(json, csv):
        print(f"{value:.3f} ({value:.7g})")
    described = {**settings.described(), **reading.described(), **asdict(fit), "mask": mask}
    output.write_json(json, {"settings": described, **row})
    output.write_csv(csv, [row], ["a", "b", "lpips"])
    notices.tell()


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "pair",
        pair,
        [
            "lpips-fast pair reference.png distorted.png",
            "lpips-fast pair a.jpg b.webp --net vgg --resize --json -",
            "lpips-fast pair ground_truth.png rendering.png --mask alpha --background black",
        ],
    )
