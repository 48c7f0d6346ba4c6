"""Where results go: the screen, JSON and CSV files. Whole files appear at once, under their name only when complete."""

from __future__ import annotations

import contextlib
import csv as csv_module
import json as json_module
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from lpips_fast._files import replaceable, replacing
from lpips_fast.cli import processes
from lpips_fast.cli.errors import READ_ERRORS, UsageError

STDOUT = Path("-")


def to_stdout(*paths: Path | None) -> bool:
    """Whether a file of results is stdout, which then gets nothing else."""
    return STDOUT in paths


@contextmanager
def claiming(files: Mapping[str, Path]) -> Iterator[None]:
    """Keeps the files that a run is to write, by option, for this run; - is stdout.

    Beside each lies a lock while the run goes on, which is the system's and ends with the process.

    Raises:
        UsageError: one could not be written in the end, two are the same, or another run writes one.
    """
    from filelock import FileLock, Timeout

    claimed: dict[Path, str] = {}
    with contextlib.ExitStack() as held:
        for option, path in files.items():
            try:
                target = path if path == STDOUT else replaceable(path)
                if target in claimed:
                    raise UsageError(f"{claimed[target]} and {option} are the same file, {path}")
                claimed[target] = option
                if path == STDOUT:
                    continue
                if not target.parent.is_dir():
                    raise FileNotFoundError(f"there is no folder {target.parent}")
                lock = target.with_name(f".{target.name}.lock")
                held.enter_context(FileLock(lock, timeout=0))
                held.callback(_remove, lock)
            except Timeout as error:
                raise UsageError(f"{option} {path}: another run is writing it") from error
            except OSError as error:
                raise UsageError(f"{option} {path} cannot be written: {error}") from error
        yield


def _remove(lock: Path) -> None:
    with contextlib.suppress(OSError):  # where an open file cannot go, it stays, unlocked
        lock.unlink()


def write_text(path: Path, text: str) -> None:
    if path == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Writes a document; numbers that JSON does not have (NaN, infinity) become null."""
    if path is not None:
        write_text(path, json_module.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path | None, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if path is not None:
        write_text(path, csv_text(rows, columns, header=True))


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], header: bool) -> str:
    lines = _Lines()
    writer = csv_module.DictWriter(lines, columns, extrasaction="ignore", lineterminator="\r\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return "".join(lines)


class _Lines(list[str]):
    """Rows of a CSV file, which end in \n, but are written to end in \r\n: csv only quotes what can end a row."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def warn(message: str) -> None:
    """A line on stderr, from one process of many."""
    if processes.rank() == 0:
        print(f"lpips-fast: {message}", file=sys.stderr, flush=True)


def end(reasons: Iterable[str]) -> None:
    """Ends a command: names what could not be read or compared, with exit status 1 if there is anything."""
    failed = False
    for why in reasons:
        warn(why)
        failed = True
    if failed:
        raise typer.Exit(READ_ERRORS)


@contextmanager
def progress(total: int | None, label: str) -> Iterator[Any]:
    """A progress bar on stderr where that is a terminal; yields a function that advances it."""
    if not sys.stderr.isatty() or processes.rank() != 0:
        yield lambda steps=1: None
        return
    from rich import progress as bar
    from rich.console import Console

    columns = (
        bar.TextColumn("{task.description}"),
        bar.BarColumn(),
        bar.MofNCompleteColumn(),
        bar.TimeElapsedColumn(),
        bar.TextColumn("left"),
        bar.TimeRemainingColumn(),
    )
    with bar.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total)
        yield lambda steps=1: bars.advance(task, steps)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; where that is no terminal, plain lines with tabs, for other programs."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_summary(summary: Mapping[str, Any]) -> None:
    rows = [(key, f"{value:.7g}" if isinstance(value, float) else str(value)) for key, value in summary.items()]
    print_table("Summary", ("statistic", "value"), rows)
