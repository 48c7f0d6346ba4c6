"""`lpips-fast video`: the distance of two videos, frame by frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, output
from .dirs import Resume
from .journal import Journal, Row
from .options import ReadError, Settings
from .results import summarize

if TYPE_CHECKING:
    from .model import Model

A = Annotated[
    Path,
    typer.Argument(help="The reference: a video, an animated GIF or WebP, a folder of frames.", show_default=False),
]
B = Annotated[Path, typer.Argument(help="The video to compare with it, likewise.", show_default=False)]
Resize = Annotated[
    bool, typer.Option("--resize", help="Resize B's frames to the size of A's (bicubic) where they differ.")
]
Plot = Annotated[
    Path | None,
    typer.Option(help="Write the distance over time as a picture (PNG or SVG).", rich_help_panel=output.OUTPUT_PANEL),
]


def video(
    a: A,
    b: B,
    settings: Settings,
    resize: Resize = False,
    json: output.Json = None,
    csv: output.Csv = None,
    resume: Resume = False,
    plot: Plot = None,
) -> None:
    """The distance of each frame of A to the frame of the same number of B, with mean and deviation."""
    from .model import Model
    from .plots import check_plot, save_curve

    check_plot(plot, "--plot")
    described = {**output.describe(settings), "a": str(a), "b": str(b), "resize": resize}
    journal = Journal(json, csv, described, ["frame", "seconds", "lpips", "error"], resume)
    rows = {int(row["frame"]): _from_file(row) for row in journal.rows}
    model = Model(settings)
    journal.start()
    complete = False
    try:
        _run(a, b, model, resize, rows, journal)
        complete = True
    finally:
        results = [rows[n] for n in sorted(rows)]
        values = [math.nan if row["lpips"] is None else row["lpips"] for row in results]
        errors = {row["frame"]: row["error"] for row in results if row.get("error")}
        summary = summarize(values, len(errors))
        journal.finish({"summary": summary, "results": results}, complete)
    if plot is not None and summary["count"]:
        timed = all(row["seconds"] is not None for row in results)
        x = [row["seconds" if timed else "frame"] for row in results]
        title = f"{a.name} and {b.name}, {settings.net}"
        save_curve(plot, x, values, "time (s)" if timed else "frame", title)
    if not output.to_stdout(json, csv):
        output.print_summary(summary)
    for n, why in errors.items():
        output.warn(f"frame {n}: {why}")
    if errors:
        raise typer.Exit(options.READ_ERRORS)


def _run(a: Path, b: Path, model: Model, resize: bool, rows: dict[int, Row], journal: Journal) -> None:
    """Computes the frames that have no row yet."""
    from .frames import ahead, frame_pairs

    def uneven(message: str) -> None:
        if model.settings.strict:
            raise ReadError(message)
        output.warn(message)

    size = model.settings.batch_size
    frames = enumerate(ahead(frame_pairs(a, b, resize, uneven), 2 * size))
    with output.progress(None, "frames") as advance:
        while unit := list(itertools.islice(frames, size)):
            _compute(unit, model, rows, journal)
            advance(len(unit))


def _compute(unit: list[tuple[int, Any]], model: Model, rows: dict[int, Row], journal: Journal) -> None:
    seconds = {n: time for n, (time, _) in unit}
    pairs: Iterator[tuple[int, Any]] = ((n, pair) for n, (_, pair) in unit)
    if all(n in rows for n in seconds):
        return
    for n, outcome in sorted(model.outcomes(pairs).items()):
        if n not in rows:
            found: Row = {"lpips": None, "error": outcome} if isinstance(outcome, str) else {"lpips": outcome}
            rows[n] = {"frame": n, "seconds": seconds[n], **found}
            journal.append([rows[n]])


def _from_file(row: Row) -> Row:
    seconds = row["seconds"]
    return {
        "frame": int(row["frame"]),
        "seconds": None if seconds in (None, "") else float(seconds),
        "lpips": row["lpips"],
    }


def register(app: typer.Typer) -> None:
    options.register(
        app,
        "video",
        video,
        [
            "lpips-fast video original.mp4 compressed.mp4 --csv frames.csv --plot frames.png",
            "lpips-fast video frames_a/ frames_b/ --net vgg --json frames.json",
        ],
    )
