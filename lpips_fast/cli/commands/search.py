"""`lpips-fast search`: the images of a folder that look most like another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lpips_fast.cli import command, output, processes
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.options import RUN_PANEL, Csv, Json, Moved, Size, parse_size
from lpips_fast.cli.settings import Reading, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from lpips_fast.search import Index
    from lpips_fast.search.nearest import Candidates

Query = Annotated[Path, typer.Argument(show_default=False, help="The image to find similar images for.")]
Where = Annotated[
    Path, typer.Argument(metavar="DIR|INDEX", show_default=False, help="A folder of images, or an index of one.")
]
Count = Annotated[int, typer.Option("-k", min=1, help="How many to find.")]
Faiss = Annotated[
    str | None,
    typer.Option(
        metavar="FACTORY",
        help="Search with FAISS, by an index of this kind, e.g. HNSW32; without it all images are compared.",
        rich_help_panel=RUN_PANEL,
    ),
]
Estimate = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="Give the distances of an index's sketches, off by some percent, and read no image again.",
        rich_help_panel=RUN_PANEL,
    ),
]


def search(
    query: Query,
    where: Where,
    settings: Settings,
    reading: Reading,
    k: Count = 5,
    size: Size = None,
    faiss: Faiss = None,
    folder: Moved = None,
    estimate: Estimate = False,
    json: Json = None,
    csv: Csv = None,
) -> None:
    """The images of a folder that are nearest to an image.

    If an index was made with --size, the query is resized to that size. An index of sketches chooses the images that
    may be the nearest, and their files are read again for their distances.
    """
    wanted = parse_size(size)
    _check_options(where, wanted, faiss, folder, estimate)

    from lpips_fast.cli.indexing import build_index
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.cli.reading import load
    from lpips_fast.cli.sources import failed, open_index, reading_errors
    from lpips_fast.images import resize_image

    with processes.group():
        model, notices = Model(settings), Notices(reading)
        try:
            image = notices.image(query, load(query, reading))
        except OSError as error:
            raise ReadError(str(error)) from error
        errors: list[str] = []
        if where.is_dir():
            found, errors = build_index(where, model, wanted, reading, notices)
        else:
            otherwise = "; --estimate needs no images"
            found = open_index(where, model, reading, notices, folder, exact=not estimate, otherwise=otherwise)
            if folder is not None and found.vectors is not None:
                raise UsageError(f"--folder is for an index of sketches, and {where} keeps whole vectors: leave it out")
            if estimate and found.sketches is None:
                raise UsageError(f"--estimate is for an index of sketches, and {where} keeps whole vectors")
        height, width = found.header.size
        if found.header.resized:
            image = resize_image(image, width, height)
        queries = model.tensor([image])
        if found.header.normalize:  # an index made in Python from images in [0, 1]
            queries = (queries + 1) / 2
        try:
            near = _nearest(found, queries, k, faiss, estimate)
        except ValueError as error:
            raise (UsageError(str(error)) if where.is_dir() else failed(where, error)) from error
        except ImportError as error:
            raise UsageError(str(error)) from error
        if processes.rank() == 0:
            column = "lpips_estimate" if estimate else "lpips"
            rows = [{"rank": rank, "name": name, column: value} for rank, (name, value) in enumerate(near, start=1)]
            if not output.to_stdout(json, csv):
                shown = [(name, f"{value:.7g}") for name, value in near]
                heading = "LPIPS (estimate)" if estimate else "LPIPS"
                output.print_table(f"Nearest to {query}", ("image", heading), shown)
            output.write_json(
                json,
                {
                    "settings": {**settings.described(), **reading.described()},
                    "query": str(query),
                    "searched": str(where),
                    "estimated": estimate,
                    "results": rows,
                },
            )
            output.write_csv(csv, rows, ["rank", "name", column])
        if where.is_dir():
            notices.tell()
        else:
            notices.tell(remedy="an index made with --background takes another colour")
        errors += reading_errors(found, where)
    output.end(errors)


def _check_options(
    where: Path, size: tuple[int, int] | None, faiss: str | None, folder: Path | None, estimate: bool
) -> None:
    if where.is_dir():
        if processes.count() > 1:
            raise UsageError(f"torchrun shares the search of an index: make one, lpips-fast index {where} -o FILE")
        if folder is not None or estimate:
            raise UsageError(f"{'--estimate' if estimate else '--folder'} is for an index, and {where} is a folder")
    elif size is not None:
        raise UsageError("--size is for folders; an index has its size")
    if faiss is not None and processes.count() > 1:
        raise UsageError("--faiss is one process's work; torchrun shares the search of all images")


def _nearest(index: Index, queries: Tensor, k: int, faiss: str | None, estimate: bool) -> list[tuple[str, float]]:
    """The names and distances of the nearest images, on rank 0. All processes look for candidates."""
    # Candidates are the same for any number of processes, and one process computes the distances. It may need more of
    # them where images are gone, and tells the others for how many nearest images; 0 ends.
    compared = index.queries(queries, normalize=bool(index.header.normalize))
    mine = cast(range, processes.own_run(range(len(index))))

    def find(wanted: int) -> Sequence[Candidates]:
        wanted = processes.from_first(lambda: wanted)
        if wanted == 0:
            return []
        found = index.candidates(compared, wanted, faiss=faiss, rows=mine, estimate=estimate)
        parts = [part for of_each in processes.gathered([found], processes.count()) for part in of_each]
        return parts[0] if len(parts) == 1 else index.merged(compared, parts, wanted) if parts else found

    if processes.rank() > 0:
        while find(1):
            pass
        return []
    distances, indices = index.nearest(compared, k, find, estimate=estimate)
    find(0)
    names = index.names or range(len(index))
    near = zip(indices[0].tolist(), distances[0].tolist(), strict=True)
    return [(str(names[i]), d) for i, d in near if i >= 0]


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "search",
        search,
        [
            "lpips-fast search query.jpg photos/ -k 5 --size 64x64",
            "lpips-fast search query.jpg photos.index -k 5 --json -",
            "torchrun --nproc-per-node 4 -m lpips_fast search query.jpg photos.index",
        ],
        sharded=True,
    )
