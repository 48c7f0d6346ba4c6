"""`lpips-fast bench`: how fast LPIPS is here, and how near the machine's limits. lpips_fast/bench measures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpips_fast._files import replacing
from lpips_fast.cli import command, output
from lpips_fast.cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from lpips_fast.bench.cases import Case
    from lpips_fast.bench.ceilings import Ceilings
    from lpips_fast.bench.providers import Provider
    from lpips_fast.bench.records import Record


class Benchmark(str, Enum):
    CEILINGS = "ceilings"
    HEAD = "head"
    END_TO_END = "end-to-end"
    LAYERS = "layers"


class Precision(str, Enum):
    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


What = Annotated[
    list[Benchmark] | None,
    typer.Argument(
        help="The machine's limits, the head alone, LPIPS whole, or the trunk layer by layer.", show_default="all"
    ),
]
CaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--case",
        help="NET:PAIRS:SIZE; may be given several times.",
        show_default="vgg:1:256, on a GPU vgg:32:256",
        metavar="CASE",
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="An implementation to compare end to end; may be given several times. An unknown name lists all.",
        show_default="those that suit the device",
        metavar="NAME",
    ),
]
PrecisionOption = Annotated[
    list[Precision] | None,
    typer.Option(
        "--precision",
        help="The precision of the head's features, of this package's layers and of matrix products; may be given "
        "several times.",
        show_default="float32 and bfloat16, on a GPU all",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compare with torch.compile, too, which takes minutes on a CPU.",
        show_default="on a GPU",
    ),
]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the CPU.", show_default="torch's")]
Rounds = Annotated[
    int | None, typer.Option(min=1, help="How often each implementation is timed.", show_default="5, on a GPU 20")
]
Memory = Annotated[bool, typer.Option(help="Measure peak memory, on the CPU in a process for each provider.")]
Results = Annotated[
    Path | None, typer.Option("--output", help="A folder of results: add the records to its files.", metavar="FOLDER")
]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="Count the records as part of the run of this name: one table has the records of one run.",
        metavar="NAME",
        show_default="a run of its own",
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(
        help="Measure nothing. Print the tables of a folder of results, or of one of its files; --case and --provider "
        "select their rows."
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        help="Measure nothing. Draw the plots of a folder of results, and write its table.md.", metavar="FOLDER"
    ),
]


def bench(
    what: What = None,
    case: CaseOption = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    compile: Compile = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Rounds = None,
    memory: Memory = True,
    results: Results = None,
    run_name: RunName = None,
    table: Table = None,
    report: Report = None,
) -> None:
    """How fast LPIPS is here, beside the packages people use today and the machine's limits.

    Results are checked before anything is timed. Implementations take turns. Times are medians with 20% and 80%
    quantiles. On a CPU, what would take long for a result that nobody can use is left out and named, such as bfloat16
    without instructions for it. Exit status 1: something of this package failed or was wrong. It is named, and the rest
    is measured.
    """
    if table is not None or report is not None:
        if table is not None:
            print(_markdown(_results(table, _cases(case or ()), provider or ())), end="")
        if report is not None:
            _write_report(report)
        return
    import torch

    from lpips_fast.bench.records import Run, append
    from lpips_fast.cli.model import find_device

    on = find_device(device)
    if on.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: benchmarks run on cpu or cuda")
    if on.index is not None:
        torch.cuda.set_device(on)  # the events that measure time belong to the current device
    if threads is not None:
        torch.set_num_threads(threads)
    gpu = on.type == "cuda"
    cases = _cases(case or (["vgg:32:256"] if gpu else ["vgg:1:256"]))
    compile = gpu if compile is None else compile
    providers = _providers(provider, on, compile)
    every = list(Precision) if gpu else [Precision.FLOAT32, Precision.BFLOAT16]
    run = Run(on, run_name)
    found: dict[str, list[Record]] = {}
    for name, record in _measured(
        what or list(Benchmark),
        cases,
        providers,
        compile,
        [chosen.value for chosen in precision or every],
        on,
        rounds or (20 if gpu else 5),
        memory,
    ):
        record = run.complete(name, record)
        if results is not None:
            append(results / f"{name}.jsonl", record)
        found.setdefault(name, []).append(record)
        _tell(name, record)
    print(_markdown(found), end="")
    _end(found)


def _cases(texts: Sequence[str]) -> list[Case]:
    from lpips_fast.bench.cases import Case

    try:
        return [Case.parse(text) for text in texts]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _providers(names: Sequence[str] | None, device: torch.device, compile: bool) -> dict[str, Provider]:
    from lpips_fast.bench.providers import PROVIDERS

    if names is None:
        suited = {name: provider for name, provider in PROVIDERS.items() if device.type in provider.default}
        return {name: provider for name, provider in suited.items() if compile or provider.wrapper != "compile"}
    there = {name: provider for name, provider in PROVIDERS.items() if device.type in provider.devices}
    for name in names:
        if name not in there:
            listed = "\n".join(f"  {known}" for known in there)
            raise UsageError(f"--provider {name!r} is none of those for {device.type}:\n{listed}")
    return {name: there[name] for name in names}


def _measured(
    what: Sequence[Benchmark],
    cases: Sequence[Case],
    providers: Mapping[str, Provider],
    compile: bool,
    precisions: Sequence[str],
    device: torch.device,
    rounds: int,
    memory: bool,
) -> Iterator[tuple[str, Record]]:
    """Measures. Yields the name of a benchmark and a record as soon as there is one."""
    from lpips_fast.bench import ceilings, end_to_end, head, layers

    limits: Ceilings | None = None
    if set(what) != {Benchmark.HEAD}:  # the benchmark of the head times a copy, its limit, in its own rounds
        records = []
        for record in ceilings.measure(device, precisions, rounds):
            records.append(record)
            yield "ceilings", record
        limits = ceilings.of_records(records)
    if Benchmark.HEAD in what:
        floats = [precision for precision in precisions if precision != "tf32"]  # no tensor has this type
        for case, precision, mode, layout in itertools.product(cases, floats, head.MODES, head.LAYOUTS):
            heads = head.providers(device, compile)
            for record in head.measure(case, precision, layout, mode, device, rounds, heads):
                yield "head", record
    if Benchmark.END_TO_END in what:
        assert limits is not None
        for case, mode in itertools.product(cases, end_to_end.MODES):
            for record in end_to_end.measure(case, mode, device, rounds, providers, limits, memory):
                yield "end_to_end", record
    if Benchmark.LAYERS in what:
        assert limits is not None
        for case in cases:
            of_layers = layers.providers(case.net, device, precisions)
            for record in layers.measure(case, device, rounds, of_layers, limits):
                yield "layers", record


def _tell(name: str, record: Record) -> None:
    """Prints a record as a line on stderr."""
    from lpips_fast.bench.records import FIELDS

    names = " ".join(str(record[field]) for field in FIELDS[name] if record[field] is not None)
    found = record["error"] if "error" in record else f"{1e3 * record['median_s']:.3f} ms"
    output.warn(f"{name.replace('_', '-')}: {names}: {found}")


def _end(found: Mapping[str, Sequence[Record]]) -> None:
    from lpips_fast.bench.providers import PEERS

    errors = [r for records in found.values() for r in records if "error" in r and "expected_s" not in r]
    failed = [record for record in errors if record.get("provider") not in PEERS]
    if failed:
        output.warn(f"{len(failed)} measurements of this package failed; they are named above")
        raise typer.Exit(1)


def _results(path: Path, cases: Sequence[Case] = (), providers: Sequence[str] = ()) -> dict[str, list[Record]]:
    """The records of a folder or file. `cases` selects all kinds of records, `providers` the records of end to end."""
    from lpips_fast.bench import records

    try:
        found = records.results(path)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    of_cases = {tuple(case) for case in cases}

    def wanted(name: str, record: Record) -> bool:
        if name == "ceilings":
            return True
        if name == "end_to_end" and providers and record["provider"] not in providers:
            return False
        return not cases or (record["net"], record["pairs"], record["size"]) in of_cases

    return {name: [record for record in of_name if wanted(name, record)] for name, of_name in found.items()}


def _markdown(results: Mapping[str, Sequence[Record]]) -> str:
    from lpips_fast.bench.tables import markdown

    return markdown(results)


def _write_report(folder: Path) -> None:
    """Writes table.md and the plots of a folder of results."""
    from lpips_fast.bench.plots import figures

    results = _results(folder)
    if not folder.is_dir():
        raise UsageError(f"--report {folder}: a folder of results is wanted, not one of its files")
    output.write_text(folder / "table.md", _markdown(results))
    try:
        drawn: dict[str, Any] = dict(figures(results))
    except ImportError:
        output.warn('no plots: they need matplotlib (pip install "lpips-fast[plot]")')
        return
    for name, figure in drawn.items():
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110)


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "bench",
        bench,
        [
            "lpips-fast bench",
            "lpips-fast bench end-to-end --case vgg:4:256 --case alex:4:256 --output results/",
            "lpips-fast bench end-to-end --provider 'lpips 0.1.4' --provider ours --no-memory",
            "lpips-fast bench layers --case vgg:4:256 --precision float32 --threads 2",
            "lpips-fast bench --report results/",
            "lpips-fast bench --table results/end_to_end.jsonl --case vgg:4:256",
        ],
    )
