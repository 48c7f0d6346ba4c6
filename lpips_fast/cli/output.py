"""Where results go: the screen, and JSON and CSV files, which appear under their name only when they are complete."""

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
    """Whether one of the files of results is stdout, which then gets nothing else."""
    return STDOUT in paths


@contextmanager
def claiming(files: Mapping[str, Path]) -> Iterator[None]:
    """Reserves the files that a run will write for this run.

    A lock lies beside each file while the run goes on. The lock is the operating system's, and ends with the process.

    Args:
        files: the files by option; - is stdout.

    Raises:
        UsageError: a file cannot be written, two options name the same file, or another run writes to one.
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
    with contextlib.suppress(OSError):  # some systems keep an open file; it stays there, unlocked
        lock.unlink()


def write_text(path: Path, text: str, errors: str = "surrogateescape") -> None:
    """Writes a whole file, or to stdout.

    Args:
        errors: how a file gets the bytes of names that are no text: by default as they are.
    """
    if path == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors, newline="")


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Writes a document in UTF-8. Numbers that JSON does not have (NaN, infinity) become null."""
    if path is not None:
        text = json_module.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n"
        write_text(path, text, "backslashreplace")  # \udcff is JSON's own escape


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
    """The rows of a CSV file, which end in \n.

    The writer ends them in \r\n, because csv quotes only characters that can end a row.
    """

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
    """Prints a line on stderr, from one of all processes."""
    if processes.rank() == 0:
        print(f"lpips-fast: {message}", file=sys.stderr, flush=True)


def end(reasons: Iterable[str]) -> None:
    """Ends a command: prints why images could not be read or compared, and exits with status 1 if there is a reason."""
    failed = False
    for why in reasons:
        warn(why)
        failed = True
    if failed:
        raise typer.Exit(READ_ERRORS)


@contextmanager
def progress(total: int | None, label: str) -> Iterator[Any]:
    """A progress bar on stderr, if it is a terminal. Yields a function that advances the bar."""
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
    """Prints a table on stdout, or lines with tabs, for other programs, if stdout is no terminal."""
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
