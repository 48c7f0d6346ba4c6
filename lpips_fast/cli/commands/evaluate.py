"""`lpips-fast evaluate`: how far a distance agrees with human judgements, 2AFC and JND."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lpips_fast.cli import command, output
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.options import Json, Judgements
from lpips_fast.cli.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from lpips_fast.bapps import JNDDataset, TwoAFCDataset

Subset = Annotated[
    list[str] | None,
    typer.Option(help="A subset, such as val/cnn; may be given several times.", show_default="all under val/"),
]
DistanceName = Annotated[
    Literal["lpips", "l2", "ssim"],
    typer.Option("--model", help="The distance: LPIPS, or a baseline: squared differences of RGB, or 1 - SSIM."),
]


def evaluate(
    data: Judgements,
    settings: Settings,
    subset: Subset = None,
    model: DistanceName = "lpips",
    json: Json = None,
) -> None:
    """How far a distance agrees with people: 2AFC score and JND mean average precision, subset by subset."""
    from lpips_fast.bapps import SampleError
    from lpips_fast.bapps.scores import evaluate as score

    try:
        sets = _sets(data, subset)
        distance = _distance(model, settings)
        rows: list[dict[str, Any]] = []
        with output.progress(sum(len(samples) for _, samples in sets), "samples") as advance:
            for name, samples in sets:
                value = score(
                    samples,
                    distance,
                    batch_size=settings.batch_size,
                    workers=settings.reader_count(),
                    advance=advance,
                )
                rows.append({"kind": samples.kind, "subset": name, "samples": len(samples), "score": value})
    except SampleError as error:
        raise ReadError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    scores = {kind: [row["score"] for row in rows if row["kind"] == kind] for kind in ("2afc", "jnd")}
    means = {kind: sum(values) / len(values) for kind, values in scores.items() if values}
    if not output.to_stdout(json):
        lines = [(row["kind"], row["subset"], str(row["samples"]), f"{100 * row['score']:.2f}") for row in rows]
        lines += [(kind, "mean of subsets", "", f"{100 * value:.2f}") for kind, value in means.items()]
        output.print_table("Agreement with people", ("kind", "subset", "samples", "score, %"), lines)
    described = settings.described() if model == "lpips" else {}
    output.write_json(json, {"settings": {"model": model, **described}, "means": means, "results": rows})


def _sets(data: Path, subsets: list[str] | None) -> list[tuple[str, TwoAFCDataset | JNDDataset]]:
    """The names and samples of the subsets asked for, of 2AFC and of JND."""
    from lpips_fast.bapps import JNDDataset, TwoAFCDataset, list_subsets

    sets: list[tuple[str, TwoAFCDataset | JNDDataset]] = []
    kinds: tuple[type[TwoAFCDataset | JNDDataset], ...] = (TwoAFCDataset, JNDDataset)
    for kind in kinds:
        for name in list_subsets(data, kind.kind, "val") if subsets is None else subsets:
            if (data / kind.kind / name).is_dir():
                sets.append((name, kind(data, [name])))
    missing = set(subsets or ()) - {name for name, _ in sets}
    if missing or not sets:
        wanted = ", ".join(sorted(missing)) or "val"
        raise UsageError(f"{data} has no {wanted} under 2afc/ or jnd/, as BAPPS has them")
    return sets


def _distance(model: str, settings: Settings) -> Callable[[Tensor, list[Tensor]], list[Tensor]]:
    """A function from images and a list of other images to the distances of the first to each of the others."""
    if model == "lpips":
        from lpips_fast.cli.model import make_lpips

        fn = make_lpips(settings)
        device = fn.scaling_layer.shift.device

        def lpips(image: Tensor, others: list[Tensor]) -> list[Tensor]:
            features = fn.features(image.to(device))
            return [fn(other.to(device), features) for other in others]

        return lpips
    if model == "l2":
        return lambda image, others: [(image - other).square().mean(dim=(1, 2, 3)) for other in others]
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError as error:
        raise UsageError("--model ssim needs torchmetrics: pip install 'lpips_fast[metric]'") from error

    def dissimilarity(image: Tensor, other: Tensor) -> Tensor:
        similarity: Any = ssim(image, other, reduction="none", data_range=2.0)  # typed as a tensor or a pair of tensors
        return 1 - similarity

    return lambda image, others: [dissimilarity(image, other) for other in others]


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "evaluate",
        evaluate,
        [
            "lpips-fast evaluate dataset/ --net squeeze",
            "lpips-fast evaluate dataset/ --weights run/weights.pth --subset val/cnn --json scores.json",
            "lpips-fast evaluate dataset/ --model ssim",
        ],
        without=("normalize", "strict"),
    )
