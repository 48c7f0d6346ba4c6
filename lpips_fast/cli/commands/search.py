"""`lpips-fast search`: the images of a folder that look most like another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpips_fast.cli import command, output
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.options import RUN_PANEL, Csv, Json, Size, parse_size
from lpips_fast.cli.settings import Reading, Settings

if TYPE_CHECKING:
    from lpips_fast.search import Header

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


def search(
    query: Query,
    where: Where,
    settings: Settings,
    reading: Reading,
    k: Count = 5,
    size: Size = None,
    faiss: Faiss = None,
    json: Json = None,
    csv: Csv = None,
) -> None:
    """The images of a folder that are nearest to an image.

    If an index was made with --size, the query is resized to that size.
    """
    from lpips_fast.cli.indexing import build_index
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.cli.reading import load
    from lpips_fast.images import resize_image
    from lpips_fast.search import Index

    wanted = parse_size(size)
    model, notices = Model(settings), Notices(reading)
    try:
        image = notices.image(query, load(query, reading))
    except OSError as error:
        raise ReadError(str(error)) from error
    errors: list[str] = []
    if where.is_dir():
        found, errors = build_index(where, model, wanted, reading, notices)
    elif wanted is not None:
        raise UsageError("--size is for folders; an index has its size")
    else:
        try:
            found = Index.load(where, model.lpips)
        except (ValueError, FileNotFoundError) as error:
            raise UsageError(str(error)) from error
        _check_made_likewise(where, found.header, settings, reading)
        notices.index(where, found.header.transparent, found.header.opaque)
    height, width = found.header.size
    if found.header.resized:
        image = resize_image(image, width, height)
    queries = model.tensor([image])
    if found.header.normalize:  # an index made in Python from images in [0, 1]
        queries = (queries + 1) / 2
    try:
        distances, indices = found.search(queries, k, normalize=bool(found.header.normalize), faiss=faiss)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    names = found.names or [str(i) for i in range(len(found))]
    near = [(names[i], d) for i, d in zip(indices[0].tolist(), distances[0].tolist(), strict=True) if i >= 0]
    rows = [{"rank": rank, "name": name, "lpips": value} for rank, (name, value) in enumerate(near, start=1)]
    if not output.to_stdout(json, csv):
        shown = [(name, f"{value:.7g}") for name, value in near]
        output.print_table(f"Nearest to {query}", ("image", "LPIPS"), shown)
    output.write_json(
        json,
        {
            "settings": {**settings.described(), **reading.described()},
            "query": str(query),
            "searched": str(where),
            "results": rows,
        },
    )
    output.write_csv(csv, rows, ["rank", "name", "lpips"])
    if where.is_dir():
        notices.tell()
    else:
        notices.tell(remedy="an index made with --background takes another colour")
    output.end(errors)


def _check_made_likewise(where: Path, header: Header, settings: Settings, reading: Reading) -> None:
    """Raises a UsageError if the images of an index were read with other options than the query."""
    if header.raw is settings.normalize:
        made = "with" if header.raw else "without"
        raise UsageError(f"{where} was made {made} --no-normalize: search it likewise, or build it again")
    made_with = header.reading or {}
    for key, value in reading.described().items():
        if made_with.get(key, value) != value:
            raise UsageError(
                f"{where} was made with {_option(key, made_with[key])}, the search has {_option(key, value)}: search "
                "it likewise, or build it again"
            )


def _option(key: str, value: Any) -> str:
    """An option of `Reading` as a user would give it, with the value that a result or an index holds."""
    if value is None:
        return f"no --{key}"
    if isinstance(value, list):
        return f"--{key} {':'.join(repr(end).removesuffix('.0') for end in value):.99}"
    return f"--{key} {value!r:.99}"


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "search",
        search,
        [
            "lpips-fast search query.jpg photos/ -k 5 --size 64x64",
            "lpips-fast search query.jpg photos.index -k 5 --json -",
        ],
    )
