"""`lpips-fast map`: where two images differ."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lpips_fast.cli import command, output
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.fitting import Fit
from lpips_fast.cli.masks import Mask, find_masks
from lpips_fast.cli.options import OUTPUT_PANEL, ImageA, ImageB, Json
from lpips_fast.cli.settings import Reading, Settings

if TYPE_CHECKING:
    import numpy as np

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        show_default=False,
        help="The picture to write: A, B and the map of their distance. PNG, or another format by its suffix.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Layers = Annotated[bool, typer.Option("--layers", help="Add a row with the map of each layer.")]
Top = Annotated[
    float | None,
    typer.Option(
        "--max",
        help="The distance that the lightest colour shows, above 0; for pictures to be compared.",
        show_default="the map's largest",
    ),
]


def map_(
    a: ImageA,
    b: ImageB,
    settings: Settings,
    reading: Reading,
    fit: Fit,
    out: Output,
    layers: Layers = False,
    top: Top = None,
    mask: Mask = None,
    json: Json = None,
) -> None:
    """A picture of where two images differ, beside them.

    The mean of the map is the distance of the pair, up to the enlarging of each layer's map.

    With --mask the map is multiplied by the mask, and its mean is the weighted mean.
    """
    from lpips_fast.cli.drawing import Panel, arrange, check_picture, colorize, save_picture
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.cli.reading import load_pair

    check_picture(out)
    if top is not None and not 0 < top < math.inf:
        raise UsageError(f"--max must be a distance above 0, got {top:g}")
    [own_mask] = find_masks(mask, [Path(a.name)])
    model, notices = Model(settings), Notices(reading)
    pair = notices.pair((a, b), load_pair(a, b, fit, reading, own_mask))
    if why := model.too_small(*pair.image0.shape[:2]):
        raise ReadError(f"{a}: {why}")
    total, parts = model.maps(pair)
    weights = total.size if pair.mask is None else pair.mask.sum() / 255

    def mean(values: np.ndarray) -> float:
        return float(values.sum() / weights)

    def panel(name: str, values: np.ndarray) -> Panel:
        largest = float(values.max()) if top is None else top
        return Panel(colorize(values, largest), f"{name} {mean(values):.3f}, scale 0 to {largest:.3g}")

    rows = [[Panel(pair.image0, a.name), Panel(pair.image1, b.name), panel("LPIPS", total)]]
    if layers:
        rows.append([panel(f"layer {k}", part) for k, part in enumerate(parts, start=1)])
    save_picture(out, arrange(rows))
    if not output.to_stdout(json):
        print(f"{mean(total):.3f} ({mean(total):.7g}), at most {total.max():.3f}: {out}")
    output.write_json(
        json,
        {
            "settings": {
                **settings.described(),
                **reading.described(),
                **asdict(fit),
                "mask": mask,
            },
            "a": str(a),
            "b": str(b),
            "map": str(out),
            "mean": mean(total),
            "max": float(total.max()),
            "layers": [{"mean": mean(part), "max": float(part.max())} for part in parts],
        },
    )
    notices.tell()


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "map",
        map_,
        [
            "lpips-fast map reference.png distorted.png -o map.png",
            "lpips-fast map reference.png distorted.png -o map.png --layers --net vgg",
            "lpips-fast map reference.png distorted.png -o map.png --mask mask.png",
        ],
    )
