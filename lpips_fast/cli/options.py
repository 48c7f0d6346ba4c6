"""What every command has in common: the options, and how a command ends."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lpips_fast.cli import shards

READ_ERRORS = 1
USAGE = 2
FAILED = 3
INTERRUPTED = 130
UNREAD = 141  # as of a program that SIGPIPE ends

MODEL_PANEL = "The distance"
RUN_PANEL = "The run"
READING_PANEL = "Reading files"
OUTPUT_PANEL = "Output"

_WRITE_FOLDERS = ("train",)  # commands whose --output is a folder


class UsageError(Exception):
    """What was asked for cannot be: ends the command with status 2 and this message."""


class ReadError(Exception):
    """An image that the command cannot do without cannot be read or compared: status 1 and this message."""


@dataclass(frozen=True)
class Settings:
    """The options that every command takes."""

    net: Annotated[
        Literal["alex", "vgg", "vgg16", "squeeze"],
        typer.Option(help="The trunk.", rich_help_panel=MODEL_PANEL),
    ] = "alex"
    version: Annotated[
        Literal["0.1", "0.0"],
        typer.Option(help="Of the linear weights.", rich_help_panel=MODEL_PANEL),
    ] = "0.1"
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A file of linear weights instead of the published ones, or of a whole model, whose trunk is then "
            "used as well.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    trunk_weights: Annotated[
        Path | None,
        typer.Option(
            help="A file of the trunk's weights, with torchvision's names, instead of torchvision's own (which are "
            "taken from its cache under TORCH_HOME, or downloaded).",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    normalize: Annotated[
        bool,
        typer.Option(
            help="Map pixels to [-1, 1], as LPIPS expects; --no-normalize leaves them in [0, 1], for comparison with "
            "figures that were computed so by mistake.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = True
    device: Annotated[
        str,
        typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps, ...", rich_help_panel=RUN_PANEL),
    ] = "auto"
    precision: Annotated[
        Literal["inherit", "float32", "tf32", "bfloat16", "float16"],
        typer.Option(help="Of the trunk's arithmetic; inherit is float32.", rich_help_panel=RUN_PANEL),
    ] = "inherit"
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Images of one size that go through the trunk together, fewer where they are large.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = 16
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read images; 0 reads them in the main one.",
            show_default="one a core, 8 at most",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="End at the first image that cannot be read or has no counterpart.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = False

    def reader_count(self) -> int:
        """How many processes to read with."""
        return min(os.cpu_count() or 1, 8) if self.workers is None else self.workers


@dataclass(frozen=True)
class Reading:
    """The options of every command that reads image files: how `load_image` makes pixels of them.

    Raises:
        UsageError: `load_image` would not take them.
    """

    background: Annotated[
        str | None,
        typer.Option(
            metavar="COLOR",
            help="Under transparent pixels: white, black or #rrggbb; drop ignores transparency, as lpips does.",
            show_default="white",
            rich_help_panel=READING_PANEL,
        ),
    ] = None
    range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="The values of 16- or 32-bit gray that become black and white, e.g. 0:4095.",
            show_default="the high byte of 16 bits",
            rich_help_panel=READING_PANEL,
        ),
    ] = None

    def __post_init__(self) -> None:
        from lpips_fast.images import check_background

        try:
            check_background(self.background_color)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        parse_range(self.range)

    @property
    def background_color(self) -> str:
        return "white" if self.background is None else self.background

    @property
    def value_range(self) -> tuple[float, float] | None:
        return parse_range(self.range)

    def described(self) -> dict[str, Any]:
        """The options as results, journals and indexes hold them."""
        ends = self.value_range
        color = {"#ffffff": "white", "#000000": "black"}.get(
            self.background_color.lower(), self.background_color.lower()
        )
        return {"background": color, "range": None if ends is None else list(ends)}


@dataclass(frozen=True)
class VideoReading(Reading):
    """The options of commands that read video files, too."""

    color_matrix: Annotated[
        Literal["auto", "bt601", "bt709", "bt2020"],
        typer.Option(
            help="By which a video file's YUV becomes RGB; auto: as the stream is tagged, bt601 if it is not.",
            rich_help_panel=READING_PANEL,
        ),
    ] = "auto"

    def described(self) -> dict[str, Any]:
        return {**super().described(), "color_matrix": self.color_matrix}


def parse_range(text: str | None) -> tuple[float, float] | None:
    """LOW:HIGH as numbers."""
    from lpips_fast.images import check_range

    if text is None:
        return None
    try:
        low, high = map(float, text.split(":"))
        check_range((low, high))
    except ValueError:
        raise UsageError(
            f"--range must be LOW:HIGH, two finite numbers, LOW below HIGH, e.g. 0:4095, got {text!r:.99}"
        ) from None
    return low, high


def parse_size(size: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT as numbers."""
    if size is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", size)
    if found is None:
        raise UsageError(f"--size must be WIDTHxHEIGHT in pixels (9 digits at most), e.g. 256x256, got {size!r:.99}")
    return int(found[1]), int(found[2])


def register(
    app: typer.Typer,
    name: str,
    run: Callable[..., None],
    examples: list[str],
    *,
    sharded: bool = False,
    without: tuple[str, ...] = (),
) -> None:
    """Adds a command, whose function may take dataclasses such as `settings: Settings` beside its own arguments.

    On the command line the fields of these, but for those it goes `without`, are options then; exceptions become
    messages and an exit status. Only a `sharded` command can share its work among processes. The files of its output
    options are checked before it runs, and are its own while it does.
    """
    own = inspect.signature(run)
    hints = typing.get_type_hints(run, include_extras=True)
    groups = {name: hints[name] for name in own.parameters if is_dataclass(hints[name])}
    parameters = [p.replace(annotation=hints[p.name]) for p in own.parameters.values() if p.name not in groups]
    shared = {name: _parameters(kind, without) for name, kind in groups.items()}
    outputs = {} if name in _WRITE_FOLDERS else _output_options(parameters)

    @functools.wraps(run)
    def command(**arguments: Any) -> None:
        with ending():
            for group, kind in groups.items():
                arguments[group] = kind(**{p.name: arguments.pop(p.name) for p in shared[group]})
            if shards.count() > 1 and not sharded:
                raise UsageError(f"{name} is one process's work; torchrun can share that of dirs, matrix and train")
            from lpips_fast.cli import output

            files = {option: arguments[key] for key, option in outputs.items() if arguments[key] is not None}
            with output.claiming(files if shards.rank() == 0 else {}):
                try:
                    run(**arguments)
                finally:
                    sys.stdout.flush()

    command.__signature__ = inspect.Signature([*parameters, *itertools.chain(*shared.values())])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    del command.__wrapped__
    app.command(name, epilog="\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in examples)]))(command)


def _parameters(kind: type[Any], without: tuple[str, ...]) -> list[inspect.Parameter]:
    """The fields of a dataclass of options as a command's parameters."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(kind)
        if f.name not in without
    ]


def _output_options(parameters: Sequence[inspect.Parameter]) -> dict[str, str]:
    """By the parameter's name, the options that name a file to write."""
    found = {}
    for p in parameters:
        kind, option = typing.get_args(p.annotation)
        if option.rich_help_panel == OUTPUT_PANEL and Path in (kind, *typing.get_args(kind)):
            found[p.name] = option.default if isinstance(option.default, str) else f"--{p.name}"
    return found


class ending:
    """Turns what ends a command early into a message on stderr and an exit status."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, SystemExit | typer.Exit):
            return
        if isinstance(error, KeyboardInterrupt):
            _say("interrupted")
            raise typer.Exit(INTERRUPTED)
        if isinstance(error, BrokenPipeError):  # who reads stdout has had enough, as `head`
            raise typer.Exit(UNREAD) from error
        failures = (OSError, RuntimeError, MemoryError)
        for kinds, status in ((UsageError, USAGE), (ReadError, READ_ERRORS), (failures, FAILED)):
            if isinstance(error, kinds):
                _say(f"error: {str(error) or repr(error)}")
                raise typer.Exit(status) from error


def _say(message: str) -> None:
    rank = f" (rank {shards.rank()})" if shards.count() > 1 else ""
    print(f"lpips-fast{rank}: {message}", file=sys.stderr, flush=True)
