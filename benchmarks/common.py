"""What the benchmarks share: cases, providers of the head, the check before any timing, bandwidth, records."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import lpips_fast
from lpips_fast import extension, ops
from lpips_fast.reference import accumulation_dtype, head_ref

# Channels, height and width of VGG16's taps for an image of 256 x 256.
VGG_TAPS = ((64, 256, 256), (128, 128, 128), (256, 64, 64), (512, 32, 32), (512, 16, 16))
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = ("forward", "forward+backward")
EPS = 1e-10
TOLERANCE = {torch.float32: 5e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float64: 1e-10}

Head = Callable[[list[Tensor], list[Tensor], list[Tensor]], Tensor]


class HeadCase(NamedTuple):
    """Features of both images, those of the first needing a gradient in the mode forward+backward, and weights."""

    feats0: list[Tensor]
    feats1: list[Tensor]
    weights: list[Tensor]
    mode: str

    def bytes_moved(self) -> int:
        """What must cross the memory bus: both images a pass, and in the backward the gradient of one."""
        per_image = sum(f.numel() * f.element_size() for f in self.feats0)
        return per_image * (2 if self.mode == "forward" else 5)


def head_case(layout: str, mode: str, *, batch: int, dtype=torch.float32, device="cpu", seed: int = 0) -> HeadCase:
    gen = torch.Generator().manual_seed(seed)
    pairs = [
        [
            torch.randn(batch, *tap, generator=gen).relu().to(device, dtype, memory_format=LAYOUTS[layout])
            for tap in VGG_TAPS
        ]
        for _ in range(2)
    ]
    weights = [torch.rand(tap[0], generator=gen).to(device, accumulation_dtype(dtype)) for tap in VGG_TAPS]
    return HeadCase([f.requires_grad_(mode != "forward") for f in pairs[0]], pairs[1], weights, mode)


def head_providers(device: str) -> dict[str, Head]:
    """The backends of the head that run compiled on `device`, the reference, and the reference under torch.compile."""
    providers: dict[str, Head] = {}
    for backend, reason in lpips_fast.backends().items():
        if reason is None and not (backend == "triton" and device == "cpu"):
            try:
                extension.choose(backend, torch.device(device))
            except ValueError:
                continue
            providers[backend] = lambda f0, f1, w, backend=backend: ops.head(backend, f0, f1, w, EPS, False)
    compiled = torch.compile(head_ref, dynamic=False)
    providers["torch.compile"] = lambda f0, f1, w: compiled(f0, f1, w, EPS, False)
    return providers


def run_head(head: Head, case: HeadCase) -> list[Tensor]:
    """D and, in the mode forward+backward, the gradients of its sum to feats0."""
    out = head(case.feats0, case.feats1, case.weights)
    if case.mode == "forward":
        return [out]
    return [out.detach(), *torch.autograd.grad(out.sum(), case.feats0)]


def head_oracle(case: HeadCase) -> list[Tensor]:
    """`run_head` of the reference in float64."""
    in_float64 = [[t.detach().double() for t in tensors] for tensors in case[:3]]
    exact = HeadCase([f.requires_grad_(case.mode != "forward") for f in in_float64[0]], *in_float64[1:], case.mode)
    return run_head(lambda f0, f1, w: head_ref(f0, f1, w, EPS, False), exact)


def check_head(head: Head, case: HeadCase, oracle: list[Tensor]) -> float:
    """The largest error of values and of gradients, relative to the largest of each; an error where it is too large."""
    found = run_head(head, case)
    values, gradients = (
        max(
            ((f.double() - o).abs().max() / max(o.abs().max() for o in expected) for f, o in zip(part, expected)),
            default=torch.tensor(0.0),
        ).item()
        for part, expected in ((found[:1], oracle[:1]), (found[1:], oracle[1:]))
    )
    if not values <= 5e-5 or not gradients <= TOLERANCE[case.feats0[0].dtype]:
        raise AssertionError(f"wrong by {values:.1e} (values), {gradients:.1e} (gradients): nothing is timed")
    return max(values, gradients)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, taking turns, after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            elapsed = seconds_of(call, device)
            if turn:
                seconds[name].append(elapsed)
    return seconds


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """The 20 %, 50 % and 80 % quantiles."""
    q20, q50, q80 = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return q20.item(), q50.item(), q80.item()


def copy_call(device: str, n_bytes: int = 256 << 20) -> tuple[Callable[[], object], int]:
    """A copy between two buffers past any cache, and the bytes it reads and writes: the physical limit."""
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * n_bytes


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def context(device: str) -> dict[str, object]:
    """What a record must name to be read later."""
    root = Path(__file__).resolve().parent.parent
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=root, capture_output=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": git.stdout.decode().strip(),
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lpips_fast": lpips_fast.__version__,
    }


def head_cases(layout: str, mode: str, **kwargs) -> Iterator[HeadCase]:
    """Two cases in turn for ever, so that no call finds its features in cache."""
    cases = [head_case(layout, mode, seed=seed, **kwargs) for seed in range(2)]
    while True:
        yield from cases


def write_records(path: str | Path, records: list[dict[str, object]]) -> None:
    """Appends records to a file, a line of JSON each."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
