"""Results on disk while a long run goes on, so that nothing computed is lost and `--resume` can go on.

The CSV file itself grows, a row a result. For the JSON file a journal grows beside it, FILE.partial, a line a result
after a first line with the settings; it goes when the document is complete. The document of what there is is written
when the run ends early, too. A line cut short by a crash is dropped on reading.
"""

from __future__ import annotations

import csv as csv_module
import hashlib
import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import output
from .options import UsageError

Row = dict[str, Any]


class Journal:
    """The files of one run.

    Args:
        json, csv: the files asked for, or None.
        settings: on which the numbers depend; a run is only resumed with the same ones.
        columns: of the CSV file. `name` identifies a result.
        resume: whether to go on with the results in the files.

    Raises:
        UsageError: the files hold a run with other settings, or one that was cut short and is not to be resumed.
    """

    def __init__(
        self, json: Path | None, csv: Path | None, settings: Mapping[str, Any], columns: Sequence[str], resume: bool
    ) -> None:
        self.json, self.csv = json, csv
        self.settings = dict(settings)
        self.columns = [*columns, "run"]
        self.run = hashlib.sha256(json_module.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        self.partial = None if json in (None, output.STDOUT) else Path(f"{json}.partial")
        if self.partial is not None and self.partial.exists() and not resume:
            raise UsageError(
                f"{self.partial} holds the results of a run that was cut short: go on with --resume, or delete it"
            )
        if resume and self.partial is None and csv in (None, output.STDOUT):
            raise UsageError("--resume goes on with the results in a file: name it with --json or --csv")
        self.rows = self._read() if resume else []

    def start(self) -> None:
        """Opens the files, with the results that were read from them."""
        if self.csv == output.STDOUT:
            output.write_text(self.csv, output.csv_text([], self.columns, header=True))
        elif self.csv is not None:
            output.write_text(self.csv, output.csv_text(self._stamped(self.rows), self.columns, header=True))
        if self.partial is not None:
            output.write_text(self.partial, _json_lines([self.settings, *self.rows]))

    def append(self, rows: Sequence[Row]) -> None:
        """Adds results; they are with the operating system when this returns."""
        if self.csv is not None:
            text = output.csv_text(self._stamped(rows), self.columns, header=False)
            if self.csv == output.STDOUT:
                output.write_text(self.csv, text)
            else:
                _append(self.csv, text)
        if self.partial is not None:
            _append(self.partial, _json_lines(rows))

    def finish(self, document: Mapping[str, Any], complete: bool) -> None:
        """Writes the JSON document; the journal stays where the run is not complete."""
        output.write_json(self.json, {"settings": self.settings, "complete": complete, **document})
        if complete and self.partial is not None:
            self.partial.unlink(missing_ok=True)

    def _stamped(self, rows: Sequence[Row]) -> list[Row]:
        return [{**row, "run": self.run} for row in rows]

    def _read(self) -> list[Row]:
        """The results that are there, without those that were errors, which are tried again."""
        if self.partial is not None and self.partial.exists():
            rows = self._read_partial(self.partial)
        elif self.json not in (None, output.STDOUT) and self.json.exists():
            rows = self._read_document(self.json)
        elif self.csv not in (None, output.STDOUT) and self.csv.exists():
            rows = self._read_csv(self.csv)
        else:
            rows = []
        return [row for row in rows if row.get("lpips") is not None]

    def _read_partial(self, path: Path) -> list[Row]:
        try:
            settings, *rows = [json_module.loads(line) for line in _whole_lines(path)]
        except ValueError as error:
            raise UsageError(f"--resume: {path} is no journal of lpips-fast: {error}") from error
        self._check(path, settings)
        return rows

    def _read_document(self, path: Path) -> list[Row]:
        try:
            document = json_module.loads("".join(_whole_lines(path)))
            settings, rows = document["settings"], document.get("results", [])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"--resume: {path} is no result of this command: {error!r}") from error
        self._check(path, settings)
        return rows

    def _read_csv(self, path: Path) -> list[Row]:
        rows: list[Row] = list(csv_module.DictReader(_whole_lines(path)))
        if any(row.get("run") != self.run for row in rows):
            raise UsageError(f"--resume: {path} holds rows of a run with other settings (its column 'run' differs)")
        for row in rows:
            row["lpips"] = float(row["lpips"]) if row["lpips"] else None
            del row["run"]
        return rows

    def _check(self, path: Path, settings: Mapping[str, Any]) -> None:
        differing = [key for key in self.settings if settings.get(key, self) != self.settings[key]]
        if differing:
            told = ", ".join(f"{key} was {settings.get(key)!r}, is {self.settings[key]!r}" for key in differing)
            raise UsageError(f"--resume: {path} holds a run with other settings: {told}")


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json_module.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _whole_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
