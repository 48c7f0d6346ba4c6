"""`lpips-fast video`: the distance of two videos, frame by frame."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lpips_fast.cli import command, output
from lpips_fast.cli.errors import ReadError
from lpips_fast.cli.fitting import Fit
from lpips_fast.cli.journal import Journal
from lpips_fast.cli.masks import mask_option
from lpips_fast.cli.options import OUTPUT_PANEL, Csv, Json, Resume
from lpips_fast.cli.results import Row, summarize
from lpips_fast.cli.settings import Settings, VideoReading
from lpips_fast.cli.video.pairing import PairBy

if TYPE_CHECKING:
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.reading import Pair
    from lpips_fast.cli.video.frames import FramePair

A = Annotated[
    Path,
    typer.Argument(
        help="The reference: a video, an animated GIF, WebP, PNG or AVIF, a folder of frames.", show_default=False
    ),
]
B = Annotated[Path, typer.Argument(help="The video to compare with it, likewise.", show_default=False)]
Mask = Annotated[
    str | None,
    mask_option(
        "The weights of pixels in the mean, white 1, black 0: an image for all frames, a video or folder with a mask "
        "a frame, or alpha, which is A's alpha channel (./alpha is a file or folder of that name)."
    ),
]
PairByOption = Annotated[
    PairBy | None,
    typer.Option(
        help="time pairs each frame of A with the frame of B shown at the same time, index with the frame of the same "
        "number.",
        show_default="time where A and B have times, else index",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(help="Write the distance over time as a picture (PNG or SVG).", rich_help_panel=OUTPUT_PANEL),
]

_SPANS = 10  # spans of frames that a message names


def video(
    a: A,
    b: B,
    settings: Settings,
    reading: VideoReading,
    fit: Fit,
    mask: Mask = None,
    pair_by: PairByOption = None,
    json: Json = None,
    csv: Csv = None,
    resume: Resume = False,
    plot: Plot = None,
) -> None:
    """The distance of each frame of A to the frame of B at the same time, with mean and deviation."""
    from lpips_fast.cli.drawing import check_plot, save_curve
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.cli.video.coding import remarks
    from lpips_fast.cli.video.frames import frame_pairs, open_pairing

    check_plot(plot, "--plot")
    described = {
        **settings.described(),
        **reading.described(),
        "a": str(a),
        "b": str(b),
        **asdict(fit),
        "mask": mask,
        "pair_by": pair_by,
    }
    journal = Journal(json, csv, described, ["frame", "seconds", "lpips", "error", "frame_b"], resume, _from_file)
    rows = {row["frame"]: row for row in journal.rows}
    model, notices = Model(settings), Notices(reading)

    def uneven(message: str) -> None:
        if settings.strict:
            raise ReadError(message)
        output.warn(message)

    pairing, codings = open_pairing(a, b, mask, reading, pair_by, settings.strict)
    pairs = frame_pairs(pairing, fit, uneven, notices)
    for remark in remarks((a, b), codings):
        output.warn(remark)
    inputs = {name: coding._asdict() for name, coding in zip("ab", codings, strict=True) if coding is not None}
    journal.start()
    complete = False
    try:
        _run(pairs, model, rows, journal)
        complete = True
    finally:
        results = [rows[n] for n in sorted(rows)]
        values = [math.nan if row["lpips"] is None else row["lpips"] for row in results]
        errors = {row["frame"]: row["error"] for row in results if row.get("error")}
        summary = summarize(values, len(errors))
        found = {"inputs": inputs, "pairing": pairing.described(), "summary": summary, "results": results}
        journal.finish(found, complete)
    if plot is not None and summary["count"]:
        timed = all(row["seconds"] is not None for row in results)
        x = [row["seconds" if timed else "frame"] for row in results]
        title = f"{a.name} and {b.name}, {settings.net}, paired by {pairing.by}"
        save_curve(plot, x, values, "time (s)" if timed else "frame", title)
    if not output.to_stdout(json, csv):
        output.print_summary({**summary, "paired by": pairing.by})
    pairing.tell()
    notices.tell()
    output.end(f"{_named(frames)}: {why}" for why, frames in _by_reason(errors).items())


def _run(pairs: Iterator[FramePair], model: Model, rows: dict[int, Row], journal: Journal) -> None:
    """Computes the frames that have no row yet, unit by unit."""
    from lpips_fast.cli.video.frames import ahead

    size = model.settings.batch_size
    frames = ahead(pairs, 2 * size)
    with output.progress(None, "frames") as advance:
        for start in itertools.count(0, size):
            count = _compute(range(start, start + size), frames, model, rows, journal)
            advance(count)
            if count < size:
                return


def _compute(unit: range, frames: Iterator[FramePair], model: Model, rows: dict[int, Row], journal: Journal) -> int:
    """Computes a unit of frames, unless all have rows. Reads them as the network takes them; returns how many."""
    read: dict[int, tuple[float | None, int]] = {}  # the time and the number in B, by number in A

    def pairs() -> Iterator[tuple[int, Pair | str]]:
        for n, (seconds, number_b, pair) in zip(unit, frames, strict=False):
            if isinstance(pair, str) and model.settings.strict:
                raise ReadError(f"frame {n}: {pair}")
            read[n] = seconds, number_b
            yield n, pair

    if all(n in rows for n in unit):
        deque(pairs(), maxlen=0)
        return len(read)
    for n, outcome in sorted(model.outcomes(pairs()).items()):
        if n not in rows:
            seconds, number_b = read[n]
            found: Row = {"lpips": None, "error": outcome} if isinstance(outcome, str) else {"lpips": outcome}
            rows[n] = {"frame": n, "seconds": seconds, **found, "frame_b": number_b}
            journal.append([rows[n]])
    return len(read)


def _by_reason(errors: dict[int, str]) -> dict[str, list[int]]:
    """The frames of each error."""
    frames: dict[str, list[int]] = {}
    for n, why in errors.items():
        frames.setdefault(why, []).append(n)
    return frames


def _named(frames: list[int]) -> str:
    """Names frames, given in order: frames 0 to 39, 41, 50 to 52."""
    spans = []
    for _, span in itertools.groupby(enumerate(frames), lambda counted: counted[1] - counted[0]):
        (_, first), *others = span
        spans.append(f"{first} to {others[-1][1]}" if others else f"{first}")
    some = ", ".join(spans[:_SPANS]) + (", ..." if len(spans) > _SPANS else "")
    return f"{len(frames)} frames ({some})" if len(spans) > _SPANS else f"frame{'s' * (len(frames) > 1)} {some}"


def _from_file(row: Row) -> Row:
    """Converts a result that was read from a file, whose numbers may be text."""
    numbers = {key: None if row[key] in (None, "") else float(row[key]) for key in ("seconds", "lpips")}
    return {"frame": int(row["frame"]), **numbers, "frame_b": int(row["frame_b"])}


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "video",
        video,
        [
            "lpips-fast video original.mp4 compressed.mp4 --csv frames.csv --plot frames.png",
            "lpips-fast video frames_a/ frames_b/ --net vgg --json frames.json",
            "lpips-fast video original.mp4 compressed.mp4 --mask masks/ --crop-border 8",
            "lpips-fast video slow.mp4 fast.mp4 --pair-by index",
        ],
    )
