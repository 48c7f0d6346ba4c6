"""Arguments and options that several commands take, and the panels that group them in the help texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from lpips_fast.cli.errors import UsageError

MODEL_PANEL = "The distance"
RUN_PANEL = "The run"
READING_PANEL = "Reading files"
OUTPUT_PANEL = "Output"

ImageA = Annotated[Path, typer.Argument(help="The reference image.", show_default=False)]
ImageB = Annotated[Path, typer.Argument(help="The image to compare with it.", show_default=False)]
Folder = Annotated[Path, typer.Argument(show_default=False, help="A folder of images, at any depth.")]
Judgements = Annotated[
    Path, typer.Argument(show_default=False, help="A folder laid out as BAPPS, with 2afc/, jnd/ or both.")
]
Size = Annotated[
    str | None,
    typer.Option(help="Resize all images (bicubic), e.g. 256x256; without it they must be of one size."),
]
Moved = Annotated[
    Path | None,
    typer.Option(help="Where the images of an index are now, if they have moved.", rich_help_panel=READING_PANEL),
]
Json = Annotated[
    Path | None,
    typer.Option(help="Write results as JSON to this file; - for stdout.", rich_help_panel=OUTPUT_PANEL),
]
Csv = Annotated[
    Path | None,
    typer.Option(help="Write results as CSV to this file; - for stdout.", rich_help_panel=OUTPUT_PANEL),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the results that are in --json or --csv.", rich_help_panel=OUTPUT_PANEL),
]


def parse_size(size: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT as numbers.

    Raises:
        UsageError: the text is something else.
    """
    if size is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", size)
    if found is None:
        raise UsageError(f"--size must be WIDTHxHEIGHT in pixels (9 digits at most), e.g. 256x256, got {size!r:.99}")
    return int(found[1]), int(found[2])
