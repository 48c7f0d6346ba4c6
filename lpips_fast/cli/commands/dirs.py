"""`lpips-fast dirs`: the distance of each image of a folder to its namesake in another.

Pairs in order of name form units of --batch-size pairs. A unit goes through the network in one batch for each size of
image. Units do not depend on the number of processes, nor on where a run was cut short, so neither do the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpips_fast.cli import command, output, processes
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.fitting import Fit
from lpips_fast.cli.folders import Match, list_folder, match, named_by
from lpips_fast.cli.journal import Journal
from lpips_fast.cli.masks import Mask, MaskSource, find_masks
from lpips_fast.cli.options import OUTPUT_PANEL, Csv, Folder, Json, Resume
from lpips_fast.cli.results import FilePair, Results, summarize
from lpips_fast.cli.settings import Reading, Settings

if TYPE_CHECKING:
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices

Pattern = Annotated[
    str,
    typer.Option(
        help="How B's images are named, without suffix. {name} stands for A's name: {name}_x4 pairs 01.png with "
        "01_x4.png."
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        help="Write a page (HTML, self-contained): histogram, pairs with their maps, all distances.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]

_SHOWN = 20  # distances on the screen


def dirs(
    a: Folder,
    b: Folder,
    settings: Settings,
    reading: Reading,
    fit: Fit,
    pattern: Pattern = "{name}",
    mask: Mask = None,
    json: Json = None,
    csv: Csv = None,
    resume: Resume = False,
    report: Report = None,
) -> None:
    """The distance of each image of folder A to the image of the same name in folder B, with mean and deviation.

    Images are paired by their path within the folder, and the remaining images by that path without suffix.
    """
    with processes.group():
        described = {
            **settings.described(),
            **reading.described(),
            "a": str(a),
            "b": str(b),
            "pattern": pattern,
            **asdict(fit),
            "mask": mask,
        }

        def prepare() -> tuple[Match, list[MaskSource], Journal]:
            matched = _matched(a, b, pattern)
            masks = find_masks(mask, [path_a for _, path_a, _ in matched.pairs])
            return matched, masks, Journal(json, csv, described, ["name", "a", "b", "lpips", "error"], resume)

        matched, masks, journal = processes.from_first(prepare)
        results = Results([FilePair(name, str(a / path_a), str(b / path_b)) for name, path_a, path_b in matched.pairs])
        results.add(journal.rows)
        unmatched = {"a": [p.as_posix() for p in matched.only_a], "b": [p.as_posix() for p in matched.only_b]}
        _warn_unmatched(a, b, unmatched, settings.strict)

        from lpips_fast.cli.model import Model
        from lpips_fast.cli.notices import Notices

        model, notices = Model(settings), Notices(reading)
        first = processes.rank() == 0
        if first:
            journal.start()
        complete = False
        try:
            _run(results, model, journal, notices, fit=fit, reading=reading, masks=masks)
            complete = True
        finally:
            if first:
                summary = summarize(results.values, len(results.errors))
                journal.finish({"summary": summary, "unmatched": unmatched, "results": list(results.rows())}, complete)
        if first and not output.to_stdout(json, csv, report):
            _print(results, summary)
        if first and report is not None:
            _write_report(
                report,
                results,
                model,
                fit=fit,
                reading=reading,
                masks=masks,
                settings=described,
                summary=summary,
                unmatched=unmatched,
            )
        notices.tell()
    output.end(f"{results.pairs[i].name}: {why}" for i, why in sorted(results.errors.items()))


def _matched(a: Path, b: Path, pattern: str) -> Match:
    paths_a, paths_b = list_folder(a), list_folder(b)
    matched = match(paths_a, paths_b, pattern)
    if not matched.pairs:
        first = paths_a[0]
        raise UsageError(
            f"no image in {a} has a namesake in {b}: e.g. {first} should be {named_by(pattern, first)}.* in {b}, which "
            f"has {paths_b[0]}; --pattern says how B's images are named, without suffix, and is {pattern!r}; a name "
            "that several images share without suffix pairs none"
        )
    return matched


def _warn_unmatched(a: Path, b: Path, unmatched: dict[str, list[str]], strict: bool) -> None:
    for folder, paths in ((a, unmatched["a"]), (b, unmatched["b"])):
        if paths:
            some = ", ".join(paths[:10]) + (", ..." if len(paths) > 10 else "")
            message = f"{len(paths)} in {folder} without a counterpart: {some}"
            if strict:
                raise ReadError(message)
            output.warn(message)


def _run(
    results: Results,
    model: Model,
    journal: Journal,
    notices: Notices,
    *,
    fit: Fit,
    reading: Reading,
    masks: Sequence[MaskSource],
) -> None:
    """Computes the distances that are missing, unit by unit. Rank 0 adds them to the results and the journal."""
    from lpips_fast.cli.reading import Pairs, read_ahead

    n, size = len(results.pairs), model.settings.batch_size
    units = [range(i, min(i + size, n)) for i in range(0, n, size)]
    units = [unit for unit in units if any(results.missing(i) for i in unit)]
    own = processes.own(units)
    paths = [(Path(results.pairs[i].a), Path(results.pairs[i].b), masks[i]) for unit in own for i in unit]
    read = read_ahead(Pairs(paths, fit, reading), model.settings.reader_count())
    images = notices.pairs([(a, b) for a, b, _ in paths], read)
    computed = (model.outcomes(zip(unit, images, strict=False)) for unit in own)
    with output.progress(sum(map(len, units)), "pairs") as advance:
        for of_each_process in processes.gathered(computed, len(units)):
            for outcomes in of_each_process:
                new = [i for i in sorted(outcomes) if results.missing(i)]
                for i in new:
                    results.put(i, outcomes[i])
                journal.append([results.row(i) for i in new])
                advance(len(outcomes))


def _print(results: Results, summary: dict[str, Any]) -> None:
    """Prints the largest distances and the summary."""
    if len(results.pairs) <= _SHOWN:
        title, shown = "Distances", [i for i in range(len(results.pairs)) if i not in results.errors]
    else:
        title, shown = f"The {_SHOWN} largest distances", results.worst(_SHOWN)
    output.print_table(title, ("image", "LPIPS"), [(results.pairs[i].name, f"{results.values[i]:.7g}") for i in shown])
    output.print_summary(summary)


def _write_report(
    path: Path,
    results: Results,
    model: Model,
    *,
    fit: Fit,
    reading: Reading,
    masks: Sequence[MaskSource],
    settings: dict[str, Any],
    summary: dict[str, Any],
    unmatched: dict[str, list[str]],
) -> None:
    from lpips_fast.cli.reading import Pair, load_pair
    from lpips_fast.cli.report import choose_examples, report_page

    def load(pair: FilePair) -> Pair | None:
        try:
            return load_pair(Path(pair.a), Path(pair.b), fit, reading, mask_of[pair]).pair()
        except ReadError as error:  # the file has changed since its distance was computed
            output.warn(f"{pair.name} is not shown in {path}: {error}")
            return None

    mask_of = dict(zip(results.pairs, masks, strict=True))
    distances = [(pair, d) for pair, d in zip(results.pairs, results.values, strict=True) if not math.isnan(d)]
    page = report_page(
        (settings["a"], settings["b"]),
        settings,
        summary,
        distances,
        [(results.pairs[i], why) for i, why in sorted(results.errors.items())],
        (unmatched["a"], unmatched["b"]),
        choose_examples(distances, load, lambda loaded: model.maps(loaded)[0]),
        None if path == output.STDOUT else path.parent,
    )
    output.write_text(path, page)


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "dirs",
        dirs,
        [
            "lpips-fast dirs originals/ outputs/ --json scores.json",
            "lpips-fast dirs originals/ outputs/ --csv scores.csv --resume",
            "lpips-fast dirs originals/ outputs/ --resize --net vgg --report report.html",
            'lpips-fast dirs high_resolution/ outputs/ --pattern "{name}_x4" --crop --crop-border 4',
            "lpips-fast dirs ground_truth/ renderings/ --mask alpha --background black",
            "torchrun --nproc-per-node 4 -m lpips_fast dirs originals/ outputs/ --csv scores.csv",
        ],
        sharded=True,
    )
