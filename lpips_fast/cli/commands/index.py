"""`lpips-fast index`: a file with sketches or embeddings of a folder of images, for `search` and `duplicates`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpips_fast.cli import command, output, processes
from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.options import OUTPUT_PANEL, Folder, Size, parse_size
from lpips_fast.cli.settings import Reading, Settings

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        show_default=False,
        help="The index file. If it is there, it is brought up to date.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
SketchLength = Annotated[
    int | None,
    typer.Option(
        "--sketch",
        metavar="M",
        min=64,
        max=2**20,
        help="Keep a sketch of M numbers of each image, 2 M bytes; 1024 is a good one.",
        show_default="1024 if whole vectors would take more than 1 GiB",
    ),
]
Vectors = Annotated[
    bool, typer.Option("--vectors", help="Keep whole vectors, however large. With --sketch, keep both.")
]
Rebuild = Annotated[
    bool,
    typer.Option("--rebuild", help="Take nothing from the index file that is there.", rich_help_panel=OUTPUT_PANEL),
]


def index(
    folder: Folder,
    settings: Settings,
    reading: Reading,
    out: Output,
    size: Size = None,
    sketch: SketchLength = None,
    vectors: Vectors = False,
    rebuild: Rebuild = False,
) -> None:
    """Prepare a folder for `search` and `duplicates`: write a file with what they compare, or bring it up to date.

    A whole vector of an image of 64 x 64 pixels takes 64 KB (alex), 240 KB (squeeze) or 1 MB (vgg); a larger one takes
    more. A sketch of 1024 numbers takes 2 KB for an image of any size; both commands then read the nearest images
    again. Without --sketch and --vectors a file that is there keeps its kind, and a new one gets whole vectors if those
    of all images fit 1 GiB, else sketches.

    If the file is there, images that have not changed since are not read again. If a run is cut short, the same command
    goes on with it.
    """
    if out == output.STDOUT:
        raise UsageError("--output must be a file, an index does not go to stdout")
    from lpips_fast.cli.indexing import Kind
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.cli.updating import update_index

    kind = None if sketch is None and not vectors else Kind(sketch, vectors)
    notices = Notices(reading)
    with processes.group():
        done = update_index(folder, out, Model(settings), parse_size(size), reading, notices, kind, rebuild)
        if processes.rank() == 0:
            print(f"{done.images} images: {out} ({done.kind}; {done.kept} from before)")
        notices.tell("other images are not")
    output.end(done.errors)


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "index",
        index,
        [
            "lpips-fast index photos/ -o photos.index --size 64x64",
            "lpips-fast index photos/ -o photos.index --size 64x64 --sketch 1024",
            "torchrun --nproc-per-node 4 -m lpips_fast index photos/ -o photos.index --size 64x64",
        ],
        sharded=True,
    )
