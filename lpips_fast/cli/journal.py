"""Results on disk while a long run goes on, so that nothing computed is lost, and `--resume` can go on.

The CSV file itself grows, a row for each result. A JSON file cannot grow, so a journal FILE.partial grows beside it: a
line with the settings, then a line for each result. The journal is deleted when the document is complete. If the run
ends early, the document is written with the results so far. A line that a crash cut short is dropped on reading.
"""

from __future__ import annotations

import csv as csv_module
import functools
import hashlib
import json as json_module
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lpips_fast._files import replaceable
from lpips_fast.cli import output
from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.results import Row

# Exceptions that reading a damaged file may raise.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, csv_module.Error)


class Journal:
    """The files of one run.

    Args:
        json, csv: the files of --json and --csv, or None.
        settings: the settings on which the numbers depend. A run is resumed only with the same settings.
        columns: the columns of the CSV file. `name` identifies a result.
        resume: whether to go on with the results in the files.
        read_row: checks and converts a result that was read from a file, whose numbers may be text. It may raise any
            exception of _DAMAGE. None reads results whose `lpips` is one number.

    Raises:
        UsageError: the files hold a run with other settings, or are damaged; or they hold a run that was cut short, and
            `resume` is False.
    """

    def __init__(
        self,
        json: Path | None,
        csv: Path | None,
        settings: Mapping[str, Any],
        columns: Sequence[str],
        resume: bool,
        read_row: Callable[[Any], Row] | None = None,
    ) -> None:
        self.json, self.csv = json, csv
        self.settings = dict(settings)
        self.columns = [*columns, "run"]
        self.run = hashlib.sha256(json_module.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        self.partial = None if json in (None, output.STDOUT) else Path(f"{json}.partial")
        if self.partial is not None:
            self._check_partial(self.partial, resume)
        if resume and self.partial is None and csv in (None, output.STDOUT):
            raise UsageError("--resume goes on with the results in a file: name it with --json or --csv")
        self.rows = self._read(read_row or functools.partial(_distance_row, columns)) if resume else []

    def start(self) -> None:
        """Opens the files, with the results that were read from them."""
        if self.csv == output.STDOUT:
            output.write_text(self.csv, output.csv_text([], self.columns, header=True))
        elif self.csv is not None:
            output.write_text(self.csv, output.csv_text(self._stamped(self.rows), self.columns, header=True))
        if self.partial is not None:
            output.write_text(self.partial, _json_lines([self.settings, *self.rows]))

    def append(self, rows: Sequence[Row]) -> None:
        """Adds results. The operating system has them when this returns."""
        if self.csv is not None:
            text = output.csv_text(self._stamped(rows), self.columns, header=False)
            if self.csv == output.STDOUT:
                output.write_text(self.csv, text)
            else:
                _append(self.csv, text)
        if self.partial is not None:
            _append(self.partial, _json_lines(rows))

    def finish(self, document: Mapping[str, Any], complete: bool) -> None:
        """Writes the JSON document. The journal stays if the run is not complete."""
        output.write_json(self.json, {"settings": self.settings, "complete": complete, **document})
        if complete and self.partial is not None:
            self.partial.unlink(missing_ok=True)

    def _stamped(self, rows: Sequence[Row]) -> list[Row]:
        return [{**row, "run": self.run} for row in rows]

    def _check_partial(self, path: Path, resume: bool) -> None:
        try:
            target = replaceable(path)
        except OSError as error:
            raise UsageError(f"--json keeps its journal in {path}: {error}") from error
        if self.csv not in (None, output.STDOUT) and replaceable(self.csv) == target:
            raise UsageError(f"--csv {self.csv} is where --json keeps its journal: name another file")
        if path.exists() and not resume:
            raise UsageError(f"{path} holds the results of a run that was cut short: go on with --resume, or delete it")

    def _read(self, read_row: Callable[[Any], Row]) -> list[Row]:
        """The results in the files. Errors are left out, so that they are tried again."""
        readers = (self.partial, self._read_partial), (self.json, self._read_document), (self.csv, self._read_csv)
        there = ((path, read) for path, read in readers if path not in (None, output.STDOUT) and path.exists())
        path, read = next(there, (None, None))
        if path is None or read is None:
            return []
        rows = []
        try:
            for n, found in enumerate(read(path), start=1):
                try:
                    rows.append(read_row(found))
                except _DAMAGE as error:
                    raise ValueError(f"result {n}: {_text_of(error)}") from error
        except _DAMAGE as error:
            raise UsageError(f"--resume: {path} is damaged, or no result of this command: {_text_of(error)}") from error
        return [row for row in rows if row["lpips"] is not None]

    def _read_partial(self, path: Path) -> list[Any]:
        lines = _whole_lines(path)
        if not lines:
            raise ValueError("it does not begin with a line of settings")
        settings, *rows = [json_module.loads(line) for line in lines]
        self._check(path, settings)
        return rows

    def _read_document(self, path: Path) -> list[Any]:
        document = json_module.loads("".join(_whole_lines(path)))
        self._check(path, document["settings"])
        rows = document.get("results", [])
        if not isinstance(rows, list):
            raise ValueError(f"its results are {rows!r:.99}, no list")
        return rows

    def _read_csv(self, path: Path) -> list[Row]:
        reader = csv_module.DictReader(_whole_lines(path), strict=True)
        rows: list[Row] = list(reader)
        missing = [column for column in self.columns if column not in (reader.fieldnames or ())]
        if missing and path.stat().st_size:
            names = list(reader.fieldnames or ())
            raise ValueError(f"it has no column {missing[0]!r}, but {names!r:.99} (older versions had fewer)")
        for n, row in enumerate(rows, start=1):
            if None in row or None in row.values():
                raise ValueError(f"result {n}: it has not a cell a column")
        if any(row["run"] != self.run for row in rows):
            raise UsageError(
                f"--resume: {path} holds rows of a run with other settings (its column 'run' differs); the "
                f"settings that count are {', '.join(self.settings)}"
            )
        return [{column: row[column] for column in self.columns[:-1]} for row in rows]

    def _check(self, path: Path, settings: Any) -> None:
        if not isinstance(settings, dict):
            raise ValueError(f"its settings are {settings!r:.99}")
        differing = [key for key in self.settings if settings.get(key, self) != self.settings[key]]
        if differing:
            told = ", ".join(
                f"{key} was {settings[key]!r}, is {self.settings[key]!r}"
                if key in settings
                else f"{key} is not in it, as in results of an older version"
                for key in differing
            )
            raise UsageError(f"--resume: {path} holds a run with other settings: {told}")


def _distance_row(columns: Sequence[str], row: Any) -> Row:
    """Checks and converts a result with one distance that was read from JSON or CSV."""
    if not isinstance(row, dict):
        raise ValueError(f"{row!r:.99} is no row")
    missing = [column for column in columns if column not in row and column != "error"]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    return {**row, **{column: read(row[column]) for column, read in _READERS.items() if column in columns}}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.99} is no text")
    return value


def _number(value: Any) -> float | None:
    number = None if value in (None, "") else float(value)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{value!r:.99} is not finite")
    return number


_READERS: dict[str, Callable[[Any], Any]] = {"name": _text, "lpips": _number}


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | csv_module.Error) else repr(error)


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json_module.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _whole_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
