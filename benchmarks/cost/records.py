"""The committed records of what compiled kernels cost, and whether new ones are worse.

A line of cuda.jsonl and triton.jsonl in benchmarks/results/compiled/ is a kernel, compiled for one target by one
version of a compiler.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

FOLDER = Path(__file__).parents[1] / "results" / "compiled"
ANEW = "python -m benchmarks.cost --record"
SLACK = 0.1  # what another version of a compiler may take more of
_NAMES = ("target", "kernel", "dtype", "packs", "variant")
_FIGURES = ("registers", "shared", "instructions", "executed")


def read(name: str, folder: Path = FOLDER) -> list[Record]:
    """The records of 'cuda' or 'triton'."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def write(name: str, records: Iterable[Record], folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def label(record: Record) -> str:
    return ", ".join(str(record[name]) for name in _NAMES if name in record)


def worse(found: Sequence[Record], recorded: Sequence[Record]) -> list[str]:
    """What kernels take more of than the records of their targets say; and kernels that have none, or are gone.

    Of another version of the compiler a kernel may take SLACK more, but no spills.
    """
    old, new = ({label(record): record for record in records} for records in (recorded, found))
    targets = {record["target"] for record in found}
    gone = [name for name, record in old.items() if record["target"] in targets and name not in new]
    messages = [f"{name}: recorded, but no longer there" for name in gone]
    for name, record in new.items():
        if name not in old:
            messages.append(f"{name}: not recorded")
            continue
        slack = 0.0 if record["compiler"] == old[name]["compiler"] else SLACK
        gone = set(old[name].get("ways", ())) - set(record.get("ways", ()))
        messages += [f"{name}: {way} is recorded, but no longer counted" for way in sorted(gone)]
        allowed = dict(_figures(old[name]))
        for figure, value in _figures(record):
            most = allowed.get(figure)
            if most is None or value > most * (1 if figure == "spills" else 1 + slack):
                messages.append(f"{name}: {figure} {value}, recorded {most} by {old[name]['compiler']}")
    return messages and [*messages, f"If that is meant: {ANEW}"]


def _figures(record: Record) -> Iterator[tuple[str, float]]:
    yield "spills", record["spills"]
    for figure in _FIGURES:
        if record.get(figure) is not None:
            yield figure, record[figure]
    for way, of_way in record.get("ways", {}).items():
        for lanes, executed in of_way["executed"].items():
            yield f"{way}, executed with {lanes} lanes", executed
