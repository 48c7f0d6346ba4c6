"""Checks that the package works for others: the content of its archives, and their use in clean environments.

    make wheel      builds dist/*.tar.gz and dist/*.whl
    make smoke      does that, then runs python tools/smoke.py [TORCH ...]      default: the newest torch, and 2.11.0

For each torch it makes a virtual environment, which it deletes afterwards (5 GB with torch's default CUDA build). There
these must work, one after the other: the wheel; the sdist compiled with nvcc, if there is one; the sdist compiled
without nvcc; and the sdist installed without a compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_TORCH = "2.11.0"


def main() -> None:
    sdist, wheel = (_only(f"lpips_fast-*{suffix}") for suffix in (".tar.gz", "-abi3-*.whl"))
    check_sdist(sdist)
    check_wheel(wheel)
    print(f"{sdist.name}, {wheel.name}: complete", flush=True)
    for version in sys.argv[1:] or ["", OLDEST_TORCH]:
        with tempfile.TemporaryDirectory(prefix="lpips_fast-smoke-") as folder:
            smoke(Path(folder), version, sdist, wheel)


def _only(pattern: str) -> Path:
    found = list((ROOT / "dist").glob(pattern))
    if len(found) != 1:
        sys.exit(f"smoke: dist/ must have one {pattern}, has {[path.name for path in found]}: make wheel")
    return found[0]


def tracked(*folders: str) -> set[str]:
    """The files that git tracks in these folders."""
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def check_sdist(sdist: Path) -> None:
    """Checks that it has every file that is compiled or installed, and no tests."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = tracked("csrc", "kernels", "lpips_fast") | {"setup.py", "pyproject.toml"}
    wanted |= {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md"}
    _compare(sdist, wanted - names, {name for name in names if name.startswith("tests")})


def check_wheel(wheel: Path) -> None:
    """Checks that it has the package, the library and the licences, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    wanted = {
        name if name.startswith("lpips_fast/") else f"lpips_fast/{name}" for name in tracked("lpips_fast", "kernels")
    }
    wanted |= {"lpips_fast/_C.abi3.so"} | {f"{about}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    _compare(wheel, wanted - names, {name for name in names - wanted if not name.startswith(about)})


def _compare(archive: Path, missing: set[str], extra: set[str]) -> None:
    if missing or extra:
        sys.exit(f"smoke: {archive.name} lacks {sorted(missing)}, has beyond need {sorted(extra)}")


def smoke(folder: Path, version: str, sdist: Path, wheel: Path) -> None:
    """Tries wheel and sdist in a new environment with this torch."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"

    def run(*arguments: str | Path, **environment: str) -> None:
        subprocess.run([python, "-I", *arguments], cwd=folder, env={**os.environ, **environment}, check=True)

    def install(*what: str | Path, **environment: str) -> None:
        run("-m", "pip", "install", "-qq", "--disable-pip-version-check", *what, **environment)

    def build(**environment: str) -> None:
        install("--force-reinstall", "--no-deps", "--no-build-isolation", "--no-cache-dir", sdist, **environment)

    def check(*built: str) -> None:
        run(ROOT / "tools" / "smoke_check.py", *built)

    install("--upgrade", "pip", "setuptools>=77", "wheel", "ninja")
    install(f"torch=={version}" if version else "torch", wheel)
    check("cpu")
    if shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists():
        build()  # kernels that nvcc cannot compile are left out
        check("cpu", "cuda")
    build(LPIPS_FAST_NO_CUDA="1")
    check("cpu")
    build(LPIPS_FAST_NO_CUDA="1", PATH=str(folder / "bin"), CC="", CXX="")
    check("reference")


if __name__ == "__main__":
    main()
