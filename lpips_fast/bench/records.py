"""Records of measurements: lines of JSON, in a file for each benchmark.

A record is complete in itself. It has the fields of its benchmark (FIELDS) and of its run (`Run.context`). It also has
what was measured, at least q20_s, median_s and q80_s in seconds, or `error`, the reason why there is nothing. If the
reason is that a call would take too long, it also has `expected_s`, the seconds (`patience`). New records are appended.
The last run of each case counts, and in it the last record of each measurement. Ratios are taken within one run.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lpips_fast

Record = dict[str, Any]

# The instructions for convolutions and matrix products, the fastest first, by their names in /proc/cpuinfo; and the
# environment variables by which this package, torch and oneDNN are kept from using all that a processor has.
_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"amx_bf16": "amx", "avx512_bf16": "avx512_bf16", "avx512f": "avx512", "avx2": "avx2"}
_LIMITS = ("LPIPS_FAST_CPU_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")

# FIELDS name a measurement. CASE is the part of FIELDS that one table shows.
FIELDS = {
    "ceilings": ("what", "precision"),
    "head": ("net", "pairs", "size", "precision", "mode", "layout", "provider"),
    "end_to_end": ("net", "pairs", "size", "mode", "provider", "precision"),
    "layers": ("net", "pairs", "size", "mode", "layer", "provider", "precision"),
}
CASE = {
    "ceilings": (),
    "head": ("net", "pairs", "size", "precision"),
    "end_to_end": ("net", "pairs", "size"),
    "layers": ("net", "pairs", "size", "mode"),
}
CONTEXT = ("run", "date", "commit", "device", "threads", "python", "torch", "lpips_fast")
MEASURED = ("q20_s", "median_s", "q80_s")


class Run:
    """One run of benchmarks, on a device.

    Args:
        device: the device that computes.
        name: the name of the run. Processes that measure parts of one run share it.
    """

    def __init__(self, device: torch.device, name: str | None = None) -> None:
        self.device = device
        self.name = name or secrets.token_hex(4)

    @cached_property
    def context(self) -> Record:
        """The fields that every record of the run has."""
        return {
            "run": self.name,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": _commit(),
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "lpips_fast": lpips_fast.__version__,
        }

    def complete(self, benchmark: str, record: Record) -> Record:
        """The record with the fields of its run, checked."""
        record = {**record, **self.context}
        check(benchmark, record)
        return record


def check(benchmark: str, record: Record) -> None:
    """Raises ValueError if a record of this benchmark lacks a field."""
    needed = (*FIELDS[benchmark], *CONTEXT, *(() if "error" in record else MEASURED))
    missing = [field for field in needed if field not in record]
    if missing:
        raise ValueError(f"a record of {benchmark} lacks {', '.join(missing)}")


def append(path: Path, record: Record) -> None:
    """Adds a line to a file of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read(path: Path) -> list[Record]:
    """The records of a file NAME.jsonl, where NAME is a benchmark.

    Raises:
        ValueError: the file has another name, or a line is no record of that benchmark.
        OSError: the file cannot be read.
    """
    if path.stem not in FIELDS or path.suffix != ".jsonl":
        raise ValueError(f"{path}: the name of a file of records is one of {', '.join(f'{n}.jsonl' for n in FIELDS)}")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            check(path.stem, record)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        records.append(record)
    return records


def results(path: Path) -> dict[str, list[Record]]:
    """The records of one file, or of all files in a folder of results, by benchmark in the order of FIELDS.

    Raises:
        ValueError, OSError: as in `read`; or the folder has no file of records.
    """
    if not path.is_dir():
        return {path.stem: read(path)}
    found = {name: read(path / f"{name}.jsonl") for name in FIELDS if (path / f"{name}.jsonl").exists()}
    if not found:
        raise ValueError(f"{path} has none of {', '.join(f'{name}.jsonl' for name in FIELDS)}")
    return found


def by_case(benchmark: str, records: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """By case, the records of its last run: the last of each measurement."""
    cases: dict[tuple[Any, ...], dict[tuple[Any, ...], Record]] = {}
    for record in records:
        case, name = (tuple(record[field] for field in fields[benchmark]) for fields in (CASE, FIELDS))
        of_case = cases.setdefault(case, {})
        if of_case and next(iter(of_case.values()))["run"] != record["run"]:
            of_case.clear()
        of_case[name] = record
    return {case: list(of_case.values()) for case, of_case in cases.items()}


def distinct(records: Sequence[Record], field: str) -> list[Any]:
    """The values of a field, in the order in which they first appear."""
    return list(dict.fromkeys(record[field] for record in records))


def device_name(device: torch.device) -> str:
    """The name of a GPU; of a CPU also its instructions, what they are limited to, and the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}{_limited()}, {threads} thread{'s' * (threads != 1)}"


def _processor() -> str:
    """The processor, and on x86 which instructions it has: those of one name may differ."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    instructions = next((f" with {name}" for flag, name in _INSTRUCTIONS.items() if flag in flags), "")
    return fields.get("model name", platform.machine()) + instructions


def _limited() -> str:
    """What the environment limits the instructions to, or else each variable that limits some."""
    limits = {name: os.environ[name] for name in _LIMITS if os.environ.get(name)}
    values = {value.lower() for value in limits.values()}
    if len(limits) == len(_LIMITS) and len(values) == 1:
        return f", limited to {values.pop()}"
    return "".join(f", {name}={value}" for name, value in limits.items())


def _commit() -> str | None:
    """The commit of the checkout that this package is in, or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
