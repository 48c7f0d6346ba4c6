"""`lpips-fast bapps`: a small made-up data set of judgements, to try `train` and `evaluate` on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpips_fast.cli import command, output
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.folders import list_folder
from lpips_fast.cli.settings import Settings

Synthesize = Annotated[
    Path, typer.Option("--synthesize", metavar="DIR", show_default=False, help="The folder to make the data set in.")
]
Images = Annotated[
    Path | None,
    typer.Option(help="A folder of images to cut patches from.", show_default="patches are drawn"),
]
Triplets = Annotated[
    int, typer.Option(min=4, help="How many triplets to train with; a quarter as many are for evaluation.")
]
Seed = Annotated[int, typer.Option(min=0, help="The seed of images, distortions, votes and the judge's taste.")]


def bapps(
    settings: Settings,
    synthesize: Synthesize,
    images: Images = None,
    triplets: Triplets = 1000,
    seed: Seed = 0,
) -> None:
    """Make a small data set laid out as BAPPS, whose judge is an LPIPS of known linear weights.

    The judge has the linear weights of --weights, or random ones. They are in DIR/judge.safetensors: `evaluate DIR
    --weights DIR/judge.safetensors` gives the score that no distance can be expected to exceed.
    """
    from lpips_fast import bapps as judgements
    from lpips_fast.cli.model import make_lpips

    paths = None if images is None else [images / name for name in list_folder(images)]
    judge = make_lpips(settings)
    if settings.weights is None:
        judgements.give_taste(judge, seed)
    try:
        with output.progress(triplets + 2 * (triplets // 4), "samples") as advance:
            judgements.synthesize(synthesize, judge, triplets=triplets, images=paths, seed=seed, advance=advance)
    except judgements.SampleError as error:
        raise ReadError(str(error)) from error
    except (ValueError, FileExistsError) as error:
        raise UsageError(str(error)) from error
    print(f"{triplets} triplets to train with: {synthesize}")


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "bapps",
        bapps,
        [
            "lpips-fast bapps --synthesize judged/",
            "lpips-fast bapps --synthesize judged/ --images photos/ --triplets 5000 --net squeeze",
        ],
        without=("normalize", "batch_size", "workers", "strict"),
    )
