"""`lpips-fast matrix`: the distances of all pairs of images, and their mean, a score of diversity.

Processes share the tiles. Blocks of images do not depend on the number of processes, so neither do the numbers. With
--sketch only the mean is computed, in one pass.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpips_fast.cli import command, output, processes
from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.folders import list_folder, one_size
from lpips_fast.cli.journal import Journal
from lpips_fast.cli.options import OUTPUT_PANEL, RUN_PANEL, Csv, Folder, Json, Size, parse_size
from lpips_fast.cli.results import Row
from lpips_fast.cli.settings import Reading, Settings

if TYPE_CHECKING:
    import numpy as np

    from lpips_fast.cli.tiles import Blocks, Table

Other = Annotated[
    Path | None,
    typer.Argument(
        help="Another folder: each image of the first is compared with each image of this one.", show_default=False
    ),
]
Block = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images in a block. The embeddings of two blocks are held, which bounds the memory.",
        show_default="what fits 1 GiB",
        rich_help_panel=RUN_PANEL,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run that was writing to --json.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Heatmap = Annotated[
    Path | None,
    typer.Option(help="Write the matrix as a picture (PNG or SVG).", rich_help_panel=OUTPUT_PANEL),
]

Length = Annotated[
    int | None,
    typer.Option(
        min=64,
        max=2**20,
        help="No matrix: only the mean, which is exact, and its standard error, in one pass over any number of images. "
        "The standard error is computed from sketches of this many numbers an image, e.g. 1024.",
        show_default=False,
    ),
]

_SHOWN = 10  # pairs on the screen
# Options that are refused with --sketch, and why.
_OF_A_MATRIX = {
    "csv": "there is no matrix to write",
    "heatmap": "there is no matrix to draw",
    "block": "no embeddings are held",
    "resume": "the run keeps no journal to go on with",
}


def matrix(
    folder: Folder,
    settings: Settings,
    reading: Reading,
    other: Other = None,
    size: Size = None,
    sketch: Length = None,
    block: Block = None,
    json: Json = None,
    csv: Csv = None,
    resume: Resume = False,
    heatmap: Heatmap = None,
) -> None:
    """The distances of all pairs of images in a folder, or of one folder to another, and their mean (diversity)."""
    from lpips_fast.cli.drawing import check_plot

    if sketch is not None:
        _refuse({"csv": csv, "heatmap": heatmap, "block": block, "resume": resume})
    check_plot(heatmap, "--heatmap")
    wanted = parse_size(size)
    with processes.group():
        folders = [folder] if other is None else [folder, other]
        listed = processes.from_first(lambda: [list_folder(f) for f in folders])
        sides = [[f / path for path in paths] for f, paths in zip(folders, listed, strict=True)]
        if wanted is None:
            wanted = processes.from_first(lambda: one_size([path for side in sides for path in side]))

        from lpips_fast.cli import diversity
        from lpips_fast.cli.model import Model
        from lpips_fast.cli.notices import Notices
        from lpips_fast.cli.tiles import Blocks, Table
        from lpips_fast.sketch import Sketch

        notices, model = Notices(reading), Model(settings)
        names = [[path.as_posix() for path in paths] for paths in listed]
        joined = "\0".join(name for side in names for name in side)
        described = {
            **settings.described(),
            **reading.described(),
            "folders": [str(f) for f in folders],
            "images": hashlib.sha256(joined.encode(errors="replace")).hexdigest()[:16],
            "size": list(wanted),
        }
        if sketch is None:
            blocks = Blocks(sides, model, wanted, block, reading, notices)
            errors = _all_pairs(blocks, Table(names), described, json, csv, resume, heatmap)
        else:
            summary, errors = diversity.mean_distance(sides, model, wanted, Sketch(sketch), reading, notices)
            if processes.rank() == 0:
                found = {"summary": summary, "errors": errors}
                output.write_json(json, {"settings": {**described, "sketch": sketch}, "complete": True, **found})
                if not output.to_stdout(json):
                    output.print_summary(summary)
        notices.tell()
    output.end(errors.values())


def _refuse(options: Mapping[str, Any]) -> None:
    """Raises a UsageError if one of the options, which only a matrix has, is given."""
    for name, given in options.items():
        if given not in (None, False):
            raise UsageError(f"--{name} does not go with --sketch: {_OF_A_MATRIX[name]}")


def _all_pairs(
    blocks: Blocks,
    table: Table,
    described: Mapping[str, Any],
    json: Path | None,
    csv: Path | None,
    resume: bool,
    heatmap: Path | None,
) -> dict[str, str]:
    """Computes the matrix, and writes all results. Returns why images cannot be read, by path."""
    from lpips_fast.cli.drawing import save_heatmap

    checked = functools.partial(_checked, blocks, table, frozenset(blocks.tiles()))
    on_which = {**described, "block": blocks.length}
    journal = processes.from_first(lambda: Journal(json, None, on_which, [], resume, checked))
    errors: dict[str, str] = {}
    first = processes.rank() == 0
    if first:
        journal.start()
    complete = False
    try:
        _run(blocks, table, journal, errors)
        complete = True
    finally:
        if first:
            summary = table.summary()
            errors = dict(sorted(errors.items()))
            shown = {"rows": table.names[0], "columns": table.names[-1], "matrix": table.values.tolist()}
            journal.finish({"summary": summary, "errors": errors, **shown}, complete)
            if csv is not None:
                _write_csv(csv, table)
    if first:
        if heatmap is not None:
            title = f"{' and '.join(described['folders'])}: mean {summary['mean']:.4f}"
            save_heatmap(heatmap, table.values, table.names[0], table.names[-1], title)
        if not output.to_stdout(json, csv):
            output.print_table(
                "The nearest",
                ("image", "to", "LPIPS"),
                [(a, b, f"{value:.7g}") for a, b, value in table.nearest(_SHOWN)],
            )
            output.print_summary(summary)
    return errors


def _run(blocks: Blocks, table: Table, journal: Journal, errors: dict[str, str]) -> None:
    """Computes the tiles that are not in the journal. Rank 0 adds them to the table and the journal."""
    import numpy as np

    length = blocks.length
    done = set()
    for row in journal.rows:
        i, j, tile = _tile(row)
        if not np.isnan(tile).any():
            table.put(i * length, j * length, tile)
            done.add((i, j))
    tiles = [at for at in blocks.tiles() if at not in done]
    computed = ((at, *blocks.tile(*at)) for at in processes.own_run(tiles))
    with output.progress(len(tiles), "tiles") as advance:
        for of_each_process in processes.gathered(computed, len(tiles)):
            for (i, j), tile, why in of_each_process:
                table.put(i * length, j * length, tile)
                errors.update(why)
                journal.append([{"name": f"{i},{j}", "lpips": tile.tolist()}])
                advance()


def _tile(row: Row) -> tuple[int, int, np.ndarray]:
    """A row of the journal as the numbers of its block of rows and of its block of columns, and their distances."""
    import numpy as np

    i, j = map(int, row["name"].split(","))
    return i, j, np.array(row["lpips"], np.float32)


def _checked(blocks: Blocks, table: Table, tiles: frozenset[tuple[int, int]], row: Any) -> Row:
    """Checks that a row of the journal holds a tile, and returns the row."""
    import numpy as np

    i, j, tile = _tile(row)
    if (i, j) not in tiles:
        raise ValueError(f"there is no tile {i},{j}")
    length = blocks.length
    shape = table.values[i * length : (i + 1) * length, j * length : (j + 1) * length].shape
    if tile.shape != shape or np.isinf(tile).any():
        raise ValueError(f"tile {i},{j} must be finite numbers of shape {shape}, got shape {tile.shape}")
    return row


def _write_csv(path: Path, table: Table) -> None:
    columns = ["name", *table.names[-1]]
    rows = zip(table.names[0], table.values.tolist(), strict=True)
    output.write_csv(path, [dict(zip(columns, [name, *row], strict=True)) for name, row in rows], columns)


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "matrix",
        matrix,
        [
            "lpips-fast matrix samples/ --json matrix.json --heatmap matrix.png",
            "lpips-fast matrix samples/ originals/ --size 256x256 --csv matrix.csv",
            "lpips-fast matrix samples/ --sketch 1024",
            "torchrun --nproc-per-node 4 -m lpips_fast matrix samples/ --json matrix.json",
        ],
        sharded=True,
    )
