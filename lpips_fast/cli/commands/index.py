"""`lpips-fast index`: a file with the embeddings of a folder of images, for `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpips_fast.cli import command, output
from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.options import OUTPUT_PANEL, Folder, Size, parse_size
from lpips_fast.cli.settings import Reading, Settings

Output = Annotated[
    Path,
    typer.Option("--output", "-o", show_default=False, help="The index file to write.", rich_help_panel=OUTPUT_PANEL),
]


def index(folder: Folder, settings: Settings, reading: Reading, out: Output, size: Size = None) -> None:
    """Prepare a folder for `search`: write a file with the embedding of each image.

    An image of 64 x 64 pixels takes 64 KB (alex), 240 KB (squeeze) or 1 MB (vgg); a larger one takes more.
    """
    if out == output.STDOUT:
        raise UsageError("--output must be a file, an index does not go to stdout")
    from lpips_fast.cli.indexing import build_index
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices

    notices = Notices(reading)
    built, errors = build_index(folder, Model(settings), parse_size(size), reading, notices)
    transparent, opaque = notices.transparency
    built.header = built.header._replace(transparent=transparent, opaque=opaque)
    built.save(out)
    print(f"{len(built)} images: {out}")
    notices.tell("other images are not")
    output.end(errors)


def register(app: typer.Typer) -> None:
    command.register(app, "index", index, ["lpips-fast index photos/ -o photos.index --size 64x64"])
