"""`lpips-fast map`: where two images differ."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, output
from .fitting import Crop, CropBorder, Fit, Resize
from .options import ReadError, Settings, UsageError
from .pair import A, B

if TYPE_CHECKING:
    import numpy as np

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        show_default=False,
        help="The picture to write: A, B and the map of their distance. PNG, or another format by its suffix.",
        rich_help_panel=output.OUTPUT_PANEL,
    ),
]
Layers = Annotated[bool, typer.Option("--layers", help="Add a row with the map of each layer.")]
Top = Annotated[
    float | None,
    typer.Option(
        "--max",
        help="The distance shown in the lightest colour, above 0, to compare pictures.",
        show_default="the map's largest",
    ),
]


def map_(
    a: A,
    b: B,
    settings: Settings,
    out: Output,
    layers: Layers = False,
    top: Top = None,
    resize: Resize = False,
    crop: Crop = False,
    crop_border: CropBorder = 0,
    json: output.Json = None,
) -> None:
    """A picture of where two images differ, beside them.

    Its mean is (up to the enlarging of each layer's map) the distance of the pair.
    """
    from ..pictures import Panel, arrange, colorize
    from .loading import load_pair
    from .model import Model

    output.check_picture(out)
    if top is not None and not 0 < top < math.inf:
        raise UsageError(f"--max must be a distance above 0, got {top:g}")
    fit = Fit(resize, crop, crop_border)
    model = Model(settings)
    image0, image1, _ = load_pair(a, b, fit)
    if why := model.too_small(*image0.shape[:2]):
        raise ReadError(f"{a}: {why}")
    total, parts = model.maps(image0, image1)

    def panel(name: str, values: np.ndarray) -> Panel:
        largest = float(values.max()) if top is None else top
        return Panel(colorize(values, largest), f"{name} {values.mean():.3f}, scale 0 to {largest:.3g}")

    rows = [[Panel(image0, a.name), Panel(image1, b.name), panel("LPIPS", total)]]
    if layers:
        rows.append([panel(f"layer {k}", part) for k, part in enumerate(parts, start=1)])
    output.save_picture(out, arrange(rows))
    if not output.to_stdout(json):
        print(f"{total.mean():.3f} ({total.mean():.7g}), at most {total.max():.3f}: {out}")
    output.write_json(
        json,
        {
            "settings": {**output.describe(settings), **asdict(fit)},
            "a": str(a),
            "b": str(b),
            "map": str(out),
            "mean": float(total.mean()),
            "max": float(total.max()),
            "layers": [{"mean": float(part.mean()), "max": float(part.max())} for part in parts],
        },
    )


def register(app: typer.Typer) -> None:
    options.register(
        app,
        "map",
        map_,
        [
            "lpips-fast map reference.png distorted.png -o map.png",
            "lpips-fast map reference.png distorted.png -o map.png --layers --net vgg",
        ],
    )
