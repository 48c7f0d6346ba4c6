"""`lpips-fast index` and `lpips-fast search`: the images of a folder that look most like another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpips_fast.cli import options, output
from lpips_fast.cli.commands.matrix import Folder, Size
from lpips_fast.cli.folders import list_folder, one_size
from lpips_fast.cli.options import ReadError, Reading, Settings, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.search import Header, Index

Output = Annotated[
    Path,
    typer.Option("--output", "-o", show_default=False, help="The file.", rich_help_panel=output.OUTPUT_PANEL),
]
Query = Annotated[Path, typer.Argument(show_default=False, help="The image to find others like.")]
Where = Annotated[
    Path, typer.Argument(metavar="DIR|INDEX", show_default=False, help="A folder of images, or an index of one.")
]
Count = Annotated[int, typer.Option("-k", min=1, help="How many to find.")]
Faiss = Annotated[
    str | None,
    typer.Option(
        metavar="FACTORY",
        help="Search with FAISS, by an index of this kind, e.g. HNSW32; without it all images are compared.",
        rich_help_panel=options.RUN_PANEL,
    ),
]


def index(folder: Folder, settings: Settings, reading: Reading, out: Output, size: Size = None) -> None:
    """Prepare a folder for `search`: a file with what the network makes of each image.

    It grows with the size of the images: for each 64 KB (alex), 240 KB (squeeze) or 1 MB (vgg) at 64 x 64 pixels.
    """
    if out == output.STDOUT:
        raise UsageError("--output must be a file, an index does not go to stdout")
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices

    notices = Notices(reading)
    built, errors = _build(folder, Model(settings), options.parse_size(size), reading, notices)
    transparent, opaque = notices.transparency
    built.header = built.header._replace(transparent=transparent, opaque=opaque)
    built.save(out)
    print(f"{len(built)} images: {out}")
    notices.tell("other images are not")
    _end(errors)


def search(
    query: Query,
    where: Where,
    settings: Settings,
    reading: Reading,
    k: Count = 5,
    size: Size = None,
    faiss: Faiss = None,
    json: output.Json = None,
    csv: output.Csv = None,
) -> None:
    """The images of a folder that are nearest to an image.

    A query of another size than an index made with --size is resized likewise.
    """
    from lpips_fast.cli.loading import load
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.images import resize_image
    from lpips_fast.search import Index

    wanted = options.parse_size(size)
    model, notices = Model(settings), Notices(reading)
    try:
        image = notices.image(query, load(query, reading))
    except OSError as error:
        raise ReadError(str(error)) from error
    errors: list[str] = []
    if where.is_dir():
        found, errors = _build(where, model, wanted, reading, notices)
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
    if found.header.normalize:  # of an index from Python, whose images were given in [0, 1]
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
        {"settings": output.describe(settings, reading), "query": str(query), "searched": str(where), "results": rows},
    )
    output.write_csv(csv, rows, ["rank", "name", "lpips"])
    if where.is_dir():
        notices.tell()
    else:
        notices.tell(remedy="an index made with --background takes another colour")
    _end(errors)


def _check_made_likewise(where: Path, header: Header, settings: Settings, reading: Reading) -> None:
    """Raises a UsageError where an index is of images that were read otherwise than the query is."""
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
    """An option of `Reading` with its value, as a result or an index holds it, as it would be given."""
    if value is None:
        return f"no --{key}"
    if isinstance(value, list):
        return f"--{key} {':'.join(repr(end).removesuffix('.0') for end in value):.99}"
    return f"--{key} {value!r:.99}"


def _build(
    folder: Path, model: Model, size: tuple[int, int] | None, reading: Reading, notices: Notices
) -> tuple[Index, list[str]]:
    """The index of the readable images of a folder, and why the others are not."""
    from lpips_fast.search import Index

    names = list_folder(folder)
    paths = [folder / name for name in names]
    width, height = size or one_size(paths)
    if why := model.too_small(height, width):
        raise UsageError(f"the images are {why}")
    with output.progress(len(paths), "images") as advance:
        images = _Files(paths, (width, height), model, reading, notices, advance)
        built = Index.build(
            model.lpips,
            images,
            names=[name.as_posix() for name in names],
            size=(height, width) if size else None,
            batch=model.settings.batch_size,
        )
    built.header = built.header._replace(raw=not model.settings.normalize, reading=reading.described())
    if not images.errors:
        return built, []
    kept = [i for i in range(len(paths)) if i not in images.errors]
    if not kept:
        raise ReadError(f"none of the {len(paths)} images can be read: {images.errors[0]}")
    readable = Index(model.lpips, built.header, built.vectors[kept], [names[i].as_posix() for i in kept])
    return readable, list(images.errors.values())


class _Files:
    """Image files as tensors, a slice at a time and in order, read ahead; black where one cannot be read."""

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        model: Model,
        reading: Reading,
        notices: Notices,
        advance: Any,
    ) -> None:
        from lpips_fast.cli.loading import Images, read_ahead

        self.paths, self.size, self.model, self.notices, self.advance = paths, size, model, notices, advance
        self.errors: dict[int, str] = {}
        self._items = read_ahead(Images(paths, size, reading), model.settings.reader_count())
        self._held: dict[int, np.ndarray] = {}
        self._read = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Tensor:
        import numpy as np

        start, stop, _ = rows.indices(len(self))
        self._held = {i: image for i, image in self._held.items() if i >= start}
        while self._read < stop:
            image = next(self._items)
            if isinstance(image, str):
                if self.model.settings.strict:
                    raise ReadError(image)
                self.errors[self._read] = " ".join(image.split())
                self._held[self._read] = np.zeros((self.size[1], self.size[0], 3), np.uint8)
            else:
                self._held[self._read] = self.notices.image(self.paths[self._read], image)
            self._read += 1
            self.advance()
        return self.model.tensor([self._held[i] for i in range(start, stop)])


def _end(errors: Sequence[str]) -> None:
    for why in errors:
        output.warn(why)
    if errors:
        raise typer.Exit(options.READ_ERRORS)


def register(app: typer.Typer) -> None:
    options.register(
        app,
        "index",
        index,
        ["lpips-fast index photos/ -o photos.index --size 64x64"],
    )
    options.register(
        app,
        "search",
        search,
        [
            "lpips-fast search query.jpg photos/ -k 5 --size 64x64",
            "lpips-fast search query.jpg photos.index -k 5 --json -",
        ],
    )
