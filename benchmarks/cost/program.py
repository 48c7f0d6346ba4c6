"""What the compiled GPU kernels cost: registers, memory, instructions, and a GPU's time for them. No GPU is needed.

    python -m benchmarks.cost [--only cuda triton] [--record]
    python -m benchmarks.cost --table code layers head devices triton [--device H200] [--bandwidth 4.8e12]
                              [--clock 1.98e9] [--case vgg:32:256] [--measured head.jsonl]

The first form reads the head's CUDA kernels from the built library, compiles the Triton kernels for four targets (some
minutes), and compares both with the records in benchmarks/results/compiled/. Where a kernel takes more it says so, and
exits with 1. With --record it writes the records anew instead; the tests compare with these.

The second form prints tables from the records:

    code      what nvcc made of the head's main kernels; instructions an element in each pass over a thread's part of a
              tile (NCHW), and in all, with the start of a tile and the sums between passes
    triton    what Triton made of its kernels, and the share of a GPU's bandwidth that their instructions allow
    layers    the head's CUDA kernels by layer: bytes, and the times for them and for the instructions
    head      the head as a whole: the time by the model of devices.py, and measured times if there are any
    devices   the same for the GPUs of devices.py: the time, and the time for the instructions in parts of the
              time for the bytes
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import lpips_fast.head.operators  # noqa: F401  loads the library
from benchmarks.cost import cuda, records, sass, tables
from benchmarks.cost.devices import DEVICES
from benchmarks.cost.records import Record
from benchmarks.kernels import parsed
from lpips_fast.bench.cases import Case

FIGURES = {"bandwidth": "bytes a second", "clock": "hertz"}  # of a device that may be given
TARGETS = ("cuda 80 32", "cuda 90 32", "cuda 100 32", "hip gfx942 64")


def of_cuda() -> list[Record]:
    """Raises FileNotFoundError if there is no library with CUDA kernels, or no tool to read it."""
    spec = importlib.util.find_spec("lpips_fast._C")
    if spec is None or not torch._C._dispatch_has_kernel_for_dispatch_key("lpips_fast::head_fwd_cuda", "CUDA"):
        raise FileNotFoundError("the library of lpips_fast was not built with CUDA")
    library = Path(str(spec.origin))
    return cuda.records(sass.of_library(library), sass.report(library))


def of_triton() -> list[Record]:
    """Compiles in processes of their own, for Triton may run its interpreter in this one."""
    if importlib.util.find_spec("triton") is None:
        raise FileNotFoundError("triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = []
    for target in TARGETS:
        command = [sys.executable, "-m", "benchmarks.cost.triton", *target.split(), "--executed"]
        run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found += [json.loads(line) for line in run.stdout.splitlines()]
    return found


SOURCES: dict[str, Callable[[], list[Record]]] = {"cuda": of_cuda, "triton": of_triton}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(SOURCES), default=tuple(SOURCES))
    parser.add_argument("--record", action="store_true", help="write the records anew")
    parser.add_argument("--table", nargs="+", choices=("code", "triton", "layers", "head", "devices"))
    parser.add_argument("--device", choices=tuple(DEVICES), default="H200")
    for name, meaning in FIGURES.items():
        parser.add_argument(f"--{name}", type=float, help=f"{meaning}, in place of the device's own")
    parser.add_argument("--case", type=parsed, default=Case("vgg", 32, 256), help="NET:PAIRS:SIZE")
    parser.add_argument("--measured", type=Path, help="with --table head: records of lpips-fast bench head")
    args = parser.parse_args(arguments)
    if args.table:
        given = {name: getattr(args, name) for name in FIGURES if getattr(args, name) is not None}
        device = DEVICES[args.device]._replace(**given)
        texts = {
            "code": tables.code_of_cuda,
            "triton": lambda: tables.code_of_triton(device),
            "layers": lambda: tables.layers(device, args.case),
            "head": lambda: tables.head(device, args.case, args.measured),
            "devices": lambda: tables.devices(args.case),
        }
        print("\n\n".join(texts[name]() for name in args.table))
        return 0
    worse = []
    for name in args.only:
        try:
            found = SOURCES[name]()
        except FileNotFoundError as error:
            worse.append(f"{name}: {error}")
            continue
        if args.record:
            records.write(name, found)
        else:
            worse += records.worse(found, records.read(name))
    print("\n".join(worse) or ("recorded" if args.record else "no kernel takes more than is recorded"))
    return int(bool(worse))
