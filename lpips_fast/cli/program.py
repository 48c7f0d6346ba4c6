"""The program `lpips-fast`: its commands, its version, and how it starts."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from lpips_fast.cli.commands import (
    bapps,
    bench,
    convert,
    demo,
    dirs,
    duplicates,
    evaluate,
    index,
    map,
    matrix,
    pair,
    search,
    train,
    video,
    weights,
)

app = typer.Typer(
    name="lpips-fast",
    help="LPIPS, the perceptual distance of images: the lower, the more alike they look to people.",
    epilog="Exit status: 0 all well, 1 some images could not be read or compared (they are named), 2 wrong usage, "
    "3 the run failed, 130 interrupted (what was computed is kept).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    pair,
    dirs,
    matrix,
    map,
    index,
    search,
    duplicates,
    video,
    bapps,
    train,
    evaluate,
    weights,
    convert,
    bench,
    demo,
):
    command.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("lpips_fast"))
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the program's version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the program: reads sys.argv, and exits."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller: the next file to be opened would get its number
            setattr(sys, name, open(os.devnull, mode))
    for stream in (sys.stdout, sys.stderr):  # the name of a file may hold bytes that are no text
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Threads of OpenMP would wait in a busy loop, and take the processors from the workers that read images. This must
    # be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the exit status already tells; Python must not try to flush again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
