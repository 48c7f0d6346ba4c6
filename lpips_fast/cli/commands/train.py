"""`lpips-fast train`: the linear weights of LPIPS from human judgements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lpips_fast._files import replacing
from lpips_fast.cli import command, output, processes
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.options import OUTPUT_PANEL, RUN_PANEL, Judgements
from lpips_fast.cli.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from lpips_fast.bapps import TwoAFCDataset
    from lpips_fast.calibration import Calibration, FeatureCache

RECIPE_PANEL = "The recipe"
TRUNK_PANEL = "The trunk"

Out = Annotated[
    Path,
    typer.Option("--output", "-o", show_default=False, help="The folder to write.", rich_help_panel=OUTPUT_PANEL),
]
Subset = Annotated[
    list[str] | None,
    typer.Option(help="A subset, such as train/cnn; may be given several times.", show_default="all under train/"),
]
Epochs = Annotated[int, typer.Option(min=0, help="Epochs at the full learning rate.", rich_help_panel=RECIPE_PANEL)]
DecayEpochs = Annotated[
    int,
    typer.Option(
        min=0, help="Further epochs, over which the learning rate falls linearly.", rich_help_panel=RECIPE_PANEL
    ),
]
LearningRate = Annotated[float, typer.Option(help="The learning rate of Adam.", rich_help_panel=RECIPE_PANEL)]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Triplets a step, over all processes.", rich_help_panel=RECIPE_PANEL)
]
Dropout = Annotated[
    bool, typer.Option(help="Dropout of half of the squared differences.", rich_help_panel=RECIPE_PANEL)
]
Seed = Annotated[
    int, typer.Option(min=0, help="The seed of initial weights, order and dropout.", rich_help_panel=RECIPE_PANEL)
]
TuneTrunk = Annotated[bool, typer.Option("--tune-trunk", help="Train the trunk, too.", rich_help_panel=TRUNK_PANEL)]
FromScratch = Annotated[
    bool, typer.Option("--from-scratch", help="Begin with random weights in the trunk.", rich_help_panel=TRUNK_PANEL)
]
Cache = Annotated[
    Literal["memory", "disk"] | None,
    typer.Option(
        help="Compute the features of a frozen trunk once, and keep them in memory, or in files in the output folder.",
        show_default="none",
        rich_help_panel=RUN_PANEL,
    ),
]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.", rich_help_panel=RUN_PANEL)]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the checkpoint in the folder.", rich_help_panel=OUTPUT_PANEL),
]

_CHECKPOINT = "checkpoint.pt"
_LOG_EVERY = 10  # steps


def train(
    data: Judgements,
    settings: Settings,
    out: Out,
    subset: Subset = None,
    epochs: Epochs = 5,
    decay_epochs: DecayEpochs = 5,
    learning_rate: LearningRate = 1e-4,
    batch_size: BatchSize = 50,
    dropout: Dropout = True,
    seed: Seed = 0,
    tune_trunk: TuneTrunk = False,
    from_scratch: FromScratch = False,
    cache: Cache = None,
    save_every: SaveEvery = 500,
    resume: Resume = False,
) -> None:
    """Learn the linear weights of LPIPS from judgements of triplets (2AFC), by the recipe of its authors.

    The folder gets weights.pth and weights.safetensors, for --weights here and model_path of LPIPS; checkpoint.pt, from
    which --resume goes on; and TensorBoard's record.
    """
    import torch

    from lpips_fast.bapps import SampleError, TwoAFCDataset, list_subsets
    from lpips_fast.calibration import Calibration, FeatureCache, Recipe
    from lpips_fast.cli.model import make_lpips
    from lpips_fast.weights.files import save_state_dict

    if cache is not None and tune_trunk:
        raise UsageError("--cache is for a frozen trunk: with --tune-trunk features change at every step")
    if cache == "memory" and processes.count() > 1:
        raise UsageError("--cache memory is for one process: several share --cache disk")
    checkpoint = out / _CHECKPOINT
    with processes.group():
        if checkpoint.exists() and not resume:
            raise UsageError(f"{checkpoint} is of an earlier run: go on from it with --resume, or name another folder")
        try:
            names = list_subsets(data, TwoAFCDataset.kind, "train") if subset is None else subset
            if not names:
                raise UsageError(f"{data} has no folders in 2afc/train, as BAPPS has them")
            samples = TwoAFCDataset(data, names)
            recipe = Recipe(batch_size, epochs, decay_epochs, learning_rate, dropout, seed)
            torch.manual_seed(seed)
            fn = make_lpips(settings, pretrained=False, eval_mode=False, pnet_rand=from_scratch, pnet_tune=tune_trunk)
            calibration = Calibration(fn, recipe, len(samples))
            if checkpoint.exists():
                _load(checkpoint, calibration)
            features = None
            if cache is not None:
                features = FeatureCache(fn, samples, out / "features" if cache == "disk" else None)
        except SampleError as error:
            raise ReadError(str(error)) from error
        except ValueError as error:
            raise UsageError(str(error)) from error
        out.mkdir(parents=True, exist_ok=True)
        workers = settings.reader_count()
        try:
            if features is None:
                inputs = _images(calibration, samples, workers)
            else:
                _fill(features, len(samples), workers)
                inputs = map(features.take, calibration.batches())
            _run(calibration, inputs, out, save_every)
        except SampleError as error:
            raise ReadError(str(error)) from error
        if processes.rank() == 0:
            for suffix in ("safetensors", "pth"):
                save_state_dict(out / f"weights.{suffix}", calibration.weights())
            print(f"weights: {out / 'weights.pth'}")


def _load(checkpoint: Path, calibration: Calibration) -> None:
    """Loads a checkpoint.

    Raises:
        ValueError: the file is no checkpoint, or damaged, or belongs to another run.
    """
    from lpips_fast.weights.files import read_file

    state = read_file(checkpoint)
    if not isinstance(state, dict) or not isinstance(state.get("about"), dict):
        raise ValueError(f"{checkpoint} is no checkpoint of lpips-fast train")
    try:
        calibration.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{checkpoint} is of {error}") from error


def _images(
    calibration: Calibration, samples: TwoAFCDataset, workers: int
) -> Iterator[tuple[Tensor | list[Tensor], Tensor]]:
    """The images and judgements of the remaining steps."""
    import torch

    from lpips_fast.bapps import read_batches

    device = calibration.fn.scaling_layer.shift.device
    for batch in read_batches(samples, calibration.batches(), workers):
        yield torch.cat((batch.ref, batch.p0, batch.p1)).to(device), batch.judge.to(device)


def _fill(features: FeatureCache, triplets: int, workers: int) -> None:
    with output.progress(triplets, "features") as advance:
        advance(features.filled)
        for added in features.fill(workers):
            advance(added)


def _run(
    calibration: Calibration,
    inputs: Iterator[tuple[Tensor | list[Tensor], Tensor]],
    out: Path,
    save_every: int,
) -> None:
    """Takes the remaining steps. Rank 0 writes the record and the checkpoints."""
    import torch

    first = processes.rank() == 0
    writer = _writer(out, calibration.done) if first else None
    with output.progress(calibration.steps, "steps") as advance:
        advance(calibration.done)
        for images, judge in inputs:
            step = calibration.step(images, judge)
            advance()
            last = step.number == calibration.steps
            if last or step.number % _LOG_EVERY == 0:
                loss = step.loss.item()
                if not math.isfinite(loss):
                    raise RuntimeError(f"the loss of step {step.number} is {loss}: try a smaller --learning-rate")
                if writer is not None:
                    for name, value in (("loss", loss), ("2AFC", step.agreement.item()), ("learning rate", step.rate)):
                        writer.add_scalar(name, value, step.number)
            if first and (last or step.number % save_every == 0):
                with replacing(out / _CHECKPOINT) as temporary:
                    torch.save(calibration.state_dict(), temporary)
    if writer is not None:
        writer.close()


def _writer(out: Path, done: int) -> SummaryWriter | None:
    """A writer of TensorBoard's record that goes on after the steps already done; None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        output.warn("no record for TensorBoard, which is not installed: pip install 'lpips_fast[train]'")
        return None
    return SummaryWriter(str(out), purge_step=done + 1)


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "train",
        train,
        [
            "lpips-fast train dataset/ -o run/ --net squeeze --cache disk",
            "lpips-fast train dataset/ -o run/ --net squeeze --cache disk --resume",
            "lpips-fast train dataset/ -o run/ --net vgg --tune-trunk --precision bfloat16",
            "torchrun --nproc-per-node 4 -m lpips_fast train dataset/ -o run/ --net vgg",
        ],
        sharded=True,
        writes_folder=True,
        without=("weights", "normalize", "batch_size", "strict"),
    )
