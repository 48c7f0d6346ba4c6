"""`lpips-fast demo`: what lpips_fast does, in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lpips_fast.cli import command

Net = Annotated[Literal["alex", "vgg", "squeeze"], typer.Option(help="The trunk.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the optimisation.")]
Output = Annotated[Path, typer.Option(help="The picture to write.")]


def demo(net: Net = "alex", steps: Steps = 60, output: Output = Path("demo.png")) -> None:
    """Distances of distorted images, an image optimised against LPIPS, speed beside plain torch; in one picture."""
    from lpips_fast.demo import main

    main(net, steps, output)


def register(app: typer.Typer) -> None:
    command.register(app, "demo", demo, ["lpips-fast demo", "lpips-fast demo --net vgg --output vgg.png"])
