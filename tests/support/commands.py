"""The command line as a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lpips_fast

TIMEOUT = 240


def environment() -> dict[str, str]:
    """The environment of the tests, with this package on the path, no GPU and text 100 columns wide."""
    package = str(Path(lpips_fast.__file__).resolve().parents[1])
    path = os.pathsep.join([package, *sys.path])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": ""}


def command(*arguments: object, processes: int = 1, script: Path | None = None) -> list[str]:
    """The words of a call of lpips-fast, by torchrun if it takes several processes.

    Args:
        script: a file that changes something and then calls `lpips_fast.cli.main`, instead of the program.
    """
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    program = ["-m", "lpips_fast"] if script is None else [str(script)]
    return [sys.executable, *torchrun, *program, *map(str, arguments)]
