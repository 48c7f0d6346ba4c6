"""The head's CUDA kernels on the CPU: builds tests/head/emulator around csrc/head/cuda, and loads it.

Then `backend="cuda"` works for CPU tensors. This needs an x86-64 processor, Linux, g++, and CUDA's headers: those in
Triton's wheel, or the toolkit's. The build takes ten seconds. build/emulator keeps it, named by a hash of its parts.

LPIPS_FAST_SANITIZE adds a sanitizer, which tools/sanitize.py preloads: '1' is AddressSanitizer and
UndefinedBehaviorSanitizer, as in setup.py, and 'thread' is ThreadSanitizer. With 'coverage' gcc counts the executed
lines.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from filelock import FileLock

import lpips_fast.head.operators  # noqa: F401  the schemas of the operators

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "head" / "emulator"
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "emulator"

FLAGS = ("-std=c++20", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wno-attributes", "-Wno-maybe-uninitialized")
# The compiler may fuse products and sums, as nvcc does. Shared memory changes its type, as CUDA allows.
KERNEL_FLAGS = ("-O1", "-ffp-contract=fast", "-fno-strict-aliasing", "-DTORCH_TARGET_VERSION=0x020b000000000000")
SANITIZERS = {
    "": (),
    "0": (),
    "1": ("-g", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
    "thread": ("-g", "-fsanitize=thread"),
    "coverage": ("-O0", "--coverage"),
}


class Unavailable(Exception):
    """This machine cannot build the emulator, for the reason given."""


class Emulator:
    """The loaded library. Its settings hold for all launches of the process until `reset`."""

    def __init__(self, path: Path):
        torch.ops.load_library(path)
        self._library = ctypes.CDLL(path)
        self.reset()

    def reset(self, seed: int = 0, shared_memory: int = 228 << 10) -> None:
        """Sets the order of threads, and brings back a barrier that was left out.

        Args:
            shared_memory: bytes of a multiprocessor of the emulated device: 228 KiB of sm_90 and sm_100, 164 KiB of
                sm_80, 100 KiB of sm_86, sm_89 and sm_120.
        """
        self.set_seed(seed)
        self.leave_out_barrier("", 0)
        self._library.emulator_set_shared_memory(shared_memory)

    def set_seed(self, seed: int) -> None:
        """The order in which threads run, from launch to launch."""
        self._library.emulator_set_seed(ctypes.c_uint64(seed))

    def leave_out_barrier(self, file: str, line: int) -> None:
        """Ignores the barrier at a line of a file of csrc/head/cuda."""
        self._file = ctypes.c_char_p(file.encode())  # the library keeps the pointer
        self._library.emulator_leave_out_barrier(self._file, line)

    def shared_memory_of_main_kernel(self) -> int:
        """Bytes of dynamic shared memory of a block in the last launch that asked for any."""
        return self._library.emulator_shared_memory_of_main_kernel()


def load() -> Emulator:
    """Builds the emulator, unless it is there, and loads it, once for the process.

    Raises:
        Unavailable: the machine lacks what it takes to build it.
        RuntimeError: the compiler refuses the source.
    """
    found = _loaded()
    if isinstance(found, Exception):
        raise found
    return found


@functools.cache
def _loaded() -> Emulator | Exception:
    try:
        return Emulator(build(SOURCES / "operators.cpp", CSRC))
    except (Unavailable, RuntimeError) as error:
        return error


def build(kernels: Path, *folders: Path) -> Path:
    """The library of a file with kernels, and of the scheduler; `folders` are more places for its headers."""
    compiler, cuda = _tools()
    torch_folder = Path(torch.__file__).parent
    headers = [f"-I{folder}" for folder in (*folders, SOURCES)]
    headers += [f"-isystem{folder}" for folder in (torch_folder / "include", cuda, SOURCES / "fallback")]
    sanitizer = SANITIZERS[os.environ.get("LPIPS_FAST_SANITIZE", "")]
    fma = ["-mfma"] if "AVX" in torch.backends.cpu.get_cpu_capability() else []
    compilations = [
        [compiler, *FLAGS, *headers, "-O2", "-c", str(SOURCES / "scheduler.cpp")],
        [compiler, *FLAGS, *headers, *KERNEL_FLAGS, *fma, *sanitizer, "-c", str(kernels)],
    ]
    # -Bsymbolic: the functions here that stand for torch's are this library's own.
    link = [compiler, "-shared", "-Wl,-Bsymbolic", *sanitizer, f"-L{torch_folder / 'lib'}"]
    version = _run([compiler, "--version"]) + torch.__version__
    folder = FOLDER / _hash([*compilations, link, version], [SOURCES, *folders])
    library = folder / f"{kernels.stem}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not library.exists():
            objects = [str(folder / "scheduler.o"), str(folder / f"{kernels.stem}.o")]
            for command, path in zip(compilations, objects):
                _run([*command, "-o", path])
            made = folder / "new.so"
            _run([*link, *objects, "-ltorch", "-ltorch_cpu", "-o", str(made)])
            made.rename(library)
    return library


def _tools() -> tuple[str, Path]:
    """The compiler, and the folder with CUDA's headers."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        raise Unavailable(f"the emulator is for Linux on x86-64, not for {sys.platform} on {platform.machine()}")
    compiler = shutil.which("g++")
    if compiler is None:
        raise Unavailable("the emulator needs g++")
    triton = importlib.util.find_spec("triton")
    toolkits = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [Path(triton.origin).parent / "backends" / "nvidia" / "include"] if triton and triton.origin else []
    folders += [Path(toolkit, "include") for toolkit in toolkits if toolkit]
    for folder in folders:
        if all((folder / name).exists() for name in ("driver_types.h", "vector_functions.h", "cuda_bf16.h")):
            return compiler, folder
    raise Unavailable("the emulator needs CUDA's headers, of Triton or of the toolkit")


def _hash(words: list, folders: list[Path]) -> str:
    files = sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()})
    digest = hashlib.sha256(repr(words).encode())
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> str:
    # A sanitizer that is preloaded into this process is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{run.stderr}")
    return run.stdout
