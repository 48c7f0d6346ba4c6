"""Builds lpips_fast/_C.abi3.so: the operators of the `cpu` backend and, where there is nvcc, of the `cuda` backend.

The library uses LibTorch's stable ABI and no Python, so one build serves every Python and every torch from 2.11 on,
with or without CUDA. It is optional: without a compiler the package still installs, and runs in plain torch. These
environment variables change the build:

    LPIPS_FAST_NO_BUILD=1    build nothing; an editable installation uses the library that is in lpips_fast/, if any
    LPIPS_FAST_NO_CUDA=1     leave out CUDA even if there is nvcc
    LPIPS_FAST_CUDA_ARCHS    architectures; default: '80;90;100+PTX;120', without those that nvcc does not know. 80 also
                             serves 8.6 and 8.9 (RTX 30 and 40), 120 is RTX 50; other GPUs' drivers compile the PTX
    LPIPS_FAST_SANITIZE=1    add AddressSanitizer and UndefinedBehaviorSanitizer, as tools/sanitize.py does: the first
                             error ends the process
    CUDA_HOME                the CUDA toolkit, if `nvcc` on the path does not lead to it

This one takes effect when the library runs (csrc/common/isa.h):

    LPIPS_FAST_CPU_ISA       the instruction set of the CPU kernels, 'portable', 'avx2' or 'avx512'; default: the best
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = (2 << 56) | (11 << 48)


def cuda_toolkit() -> Path | None:
    """The toolkit's folder, or None if no CUDA code is built.

    `nvcc` can be a script or a link, whose folder says nothing. So this function asks nvcc itself.
    """
    if os.environ.get("LPIPS_FAST_NO_CUDA", "0") not in ("", "0"):
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None and Path("/usr/local/cuda/bin/nvcc").exists():
        nvcc = "/usr/local/cuda/bin/nvcc"
    if nvcc is None:
        return None
    try:
        dry_run = subprocess.run([nvcc, "-E", "-x", "cu", "-dryrun", os.devnull], capture_output=True, text=True)
    except OSError:
        return None
    top = re.search(r"^#\$ TOP=(.*)$", dry_run.stderr, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else None


def cuda_arch_flags(toolkit: Path) -> list[str]:
    """-gencode flags for LPIPS_FAST_CUDA_ARCHS, or for the default architectures that this nvcc knows."""
    wanted = os.environ.get("LPIPS_FAST_CUDA_ARCHS")
    if wanted:
        archs = [arch.strip().replace(".", "") for arch in re.split(r"[;,\s]+", wanted.strip())]
    else:
        listed = subprocess.run([toolkit / "bin" / "nvcc", "--list-gpu-code"], capture_output=True, text=True).stdout
        archs = [arch for arch in ("80", "90", "100") if f"sm_{arch}" in listed.split()]
        archs[-1] += "+PTX"  # not of 120, which 10.3 and 11.0 could not use
        if "sm_120" in listed.split():
            archs.append("120")
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def native_build() -> dict:
    """The arguments of setup() that build the library. If torch is missing there are none, and a warning is printed."""
    if os.environ.get("LPIPS_FAST_NO_BUILD", "0") not in ("", "0"):
        return {}
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        return without_library(f"torch cannot be imported ({error}); install with --no-build-isolation")

    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    cuda_sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cu"))
    toolkit = cuda_toolkit() if cuda_sources else None
    # Plain IEEE arithmetic, except that errno and the exception flags are not kept. Nobody reads them, and without them
    # the compiler can vectorise loops with a square root or with a division in a branch.
    define = f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION:#018x}"
    cxx = [define, "-O3", "-g0", "-Wall", "-Wno-psabi", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
    nvcc = [define, "-O3", "-lineinfo", "--threads=0", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"]
    # torch's own build forbids the conversions of 16-bit types; these flags allow them.
    nvcc += ["-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"]
    sanitizers = []
    if os.environ.get("LPIPS_FAST_SANITIZE", "0") not in ("", "0"):
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
        cxx += [*sanitizers, "-O1", "-g", "-fno-omit-frame-pointer"]
    link = list(sanitizers)
    library_dirs, cuda_libraries, include_dirs = [], [], [str(ROOT / "csrc")]
    if toolkit is not None:
        cpp_extension.CUDA_HOME = str(toolkit)  # torch's own guess is None for a CPU build of torch
        # torch refuses an nvcc whose major version differs from that of torch's CUDA. The two never meet here: the ABI
        # is stable, and the library links its own CUDA runtime statically.
        cpp_extension._check_cuda_version = lambda *_: None
        sources += cuda_sources
        nvcc += cuda_arch_flags(toolkit)
        include_dirs.append(str(toolkit / "include"))
        library_dirs += [str(path) for path in (toolkit / "lib64", toolkit / "lib") if path.is_dir()]
        cuda_libraries += ["cudart_static", "dl", "rt", "pthread"]
        # Before torch 2.13 the function for the current stream is in libtorch_cuda, which this library finds only
        # through libtorch. The linker would leave libtorch out. (Every build of torch has it, unlike libtorch_cuda.)
        link += ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]

    library = cpp_extension.CppExtension(
        "lpips_fast._C",
        sources,
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        libraries=list(cuda_libraries),
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
        py_limited_api=True,
        optional=True,
    )

    class BuildLibrary(cpp_extension.BuildExtension):
        """Builds with CUDA, else without CUDA, else nothing: no installation fails because of the library."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # no failure of a compiler may stop the installation
                if not any(source.endswith(".cu") for source in library.sources):
                    without_library(str(error))
                    Path(self.get_ext_fullpath(library.name)).unlink(missing_ok=True)  # an earlier build's
                    return
                print(f"\n*** lpips_fast: building with nvcc failed, trying without: {error}\n", flush=True)
                library.sources = [source for source in library.sources if not source.endswith(".cu")]
                library.libraries = [name for name in library.libraries if name not in cuda_libraries]
                self.build_extensions()

    return {
        "ext_modules": [library],
        "cmdclass": {"build_ext": BuildLibrary.with_options(use_ninja=True)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def without_library(reason: str) -> dict:
    print(
        "\n*** lpips_fast: the compiled library is NOT built; the head will run in plain torch, several times slower.\n"
        f"*** Reason: {reason}\n",
        flush=True,
    )
    return {}


setup(
    packages=[*find_namespace_packages(include=["lpips_fast*"], exclude=["*__pycache__*"]), "lpips_fast.kernels"],
    package_dir={"lpips_fast.kernels": "kernels"},
    **native_build(),
)
