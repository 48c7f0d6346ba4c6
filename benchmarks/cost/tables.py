"""Tables of what compiled kernels cost, and of the time that follows from it on a GPU.

All of it is computed, except for times that are called measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.cost import cuda, records
from benchmarks.cost.devices import DEVICES, ISSUED, WARP, Device
from benchmarks.cost.records import Record
from lpips_fast.bench.cases import Case, trunk_layers
from lpips_fast.bench.tables import case_title, table

TYPES = ("float32", "bfloat16")
LAYOUTS = {"nchw": "torch.contiguous_format", "channels_last": "torch.channels_last"}
# By mode of a measurement: the kernel, what it is asked for, and its passes over the features of one image.
MODES = {"forward": (cuda.FORWARD, "mean", 2), "backward": (cuda.BACKWARD, "first gradient", 3)}


class Launch(NamedTuple):
    """The work of a launch, or of one layer in it."""

    name: str
    bytes: float
    warp_instructions: float
    blocks: int
    resident: int  # blocks on a multiprocessor at a time

    def seconds(self, device: Device) -> float:
        return device.seconds(self.bytes, self.warp_instructions, self.blocks, self.resident)


def target(device: Device, found: Iterable[Record]) -> str:
    """The newest target that is not newer than the device."""
    targets = {int(x["target"].split()[1]) for x in found if x["target"].startswith("cuda ")}
    return f"cuda {max(x for x in targets if x <= device.capability)}"


def chosen(device: Device, code: Iterable[Record]) -> tuple[Record, int]:
    """The code with the largest tile of which two blocks fit on a multiprocessor, or else with the smallest tile; and
    how many blocks fit."""
    for x in sorted(code, key=lambda x: -x["packs"]):
        resident = device.resident(x["registers"], x["shared"], cuda.THREADS)
        if resident > 1:
            break
    return x, resident


def of_cuda(device: Device, case: Case, mode: str, dtype: str, layout: str) -> list[Launch]:
    """The head's layers, which one launch covers."""
    found = records.read("cuda")
    kernel, asked, passes = MODES[mode]
    names = target(device, found), kernel, dtype
    code, resident = chosen(device, [x for x in found if (x["target"], x["kernel"], x["dtype"]) == names])
    layers = []
    for c, h, w in trunk_layers(case.net, case.size)[1]:
        plan = cuda.plan(case.pairs, c, h * w, layout, dtype, code["packs"])
        executed = code["ways"][f"{asked}, {plan.path}"]["executed"][str(plan.lanes)]
        n_bytes = passes * cuda.ITEMSIZE[dtype] * case.pairs * c * h * w
        name = f"{c} x {h} x {w}, {plan.path}, {plan.lanes} lanes"
        layers.append(Launch(name, n_bytes, plan.tiles * cuda.WARPS * executed, plan.tiles, resident))
    return layers


def whole(layers: Sequence[Launch]) -> Launch:
    sums = (sum(x[i] for x in layers) for i in (1, 2, 3))
    return Launch("all", *sums, layers[0].resident)


def of_triton(device: Device, case: Case, dtype: str, layout: str) -> list[Launch]:
    """The head's layers forwards, a launch each.

    A layer has the code of the recorded variant with the next number of channels. All have tiles of one size.
    """
    recorded = records.read("triton")
    variants = {}
    for x in recorded:
        kind, channels, size, *types = x["variant"].split()
        if x["target"] == target(device, recorded) and [kind, *types] == ["fwd", LAYOUTS[layout], f"torch.{dtype}"]:
            variants[int(channels)] = x, 2 * int(channels) * int(size) ** 2 // x["programs"]
    layers = []
    for c, h, w in trunk_layers(case.net, case.size)[1]:
        code, of_tile = variants[min((k for k in variants if k >= c), default=max(variants))]
        n_bytes = 2 * cuda.ITEMSIZE[dtype] * case.pairs * c * h * w
        programs = case.pairs * -(-c * h * w // of_tile)
        layers.append(_programs(device, f"{c} x {h} x {w}", code, n_bytes, programs))
    return layers


def _programs(device: Device, name: str, code: Record, n_bytes: float, programs: int) -> Launch:
    resident = device.resident(code["registers"], code["shared"], WARP * code["warps"])
    return Launch(name, n_bytes, programs * code["warps"] * code["executed"], programs, resident)


def code_of_cuda() -> str:
    """What nvcc made of the head's main kernels, with the tiles that some GPU of devices.py takes."""
    code = [x for x in records.read("cuda") if x["kernel"] in cuda.MODES and x["dtype"] in TYPES]

    def is_taken(x: Record) -> bool:
        sizes = [y for y in code if all(x[name] == y[name] for name in ("target", "kernel", "dtype"))]
        devices = (device for device in DEVICES.values() if target(device, code) == x["target"])
        return any(chosen(device, sizes)[0] is x for device in devices)

    found = list(filter(is_taken, code))
    rows = []
    for x in found:
        asked = cuda.MODES[x["kernel"]][0]
        ways = {path: x["ways"].get(f"{asked}, {path}") for path in (cuda.PLANAR, cuda.CHANNELS_LAST_2)}
        of_tile = [f"{way['executed']['16'] / x['elements']:.1f}" for way in ways.values()]
        passes = " + ".join(f"{n:.1f}" for n in ways[cuda.PLANAR]["passes"])
        figures = [str(x[key]) for key in ("packs", "registers", "spills", "shared", "instructions")]
        rows.append([x["kernel"], x["dtype"], x["target"].replace("cuda ", "sm_"), *figures, passes, *of_tile])
    head = ["kernel", "type", "code", "packs", "registers", "spills", "shared", "instructions"]
    head += ["passes", "NCHW", "channels-last"]
    return f"**The head's CUDA kernels, compiled by {found[0]['compiler']}**\n\n{table(head, rows)}"


def code_of_triton(device: Device) -> str:
    """What Triton made of its kernels, and what limits them on a device."""
    recorded = records.read("triton")
    balance = ISSUED * device.clock * device.multiprocessors * WARP / device.bandwidth
    rows = []
    for x in recorded:
        if x["target"] != target(device, recorded):
            continue
        launch = _programs(device, "", x, x["bytes"], x["programs"])
        of_byte = WARP * launch.warp_instructions / x["bytes"]
        figures = (str(x[key]) for key in ("registers", "spills", "shared", "instructions", "executed"))
        reached = min(1.0, balance / of_byte)
        rows.append([_variant(x["variant"]), *figures, str(launch.resident), f"{of_byte:.1f}", f"{reached:.0%}"])
    head = ["kernel", "registers", "spills", "shared", "instructions", "executed"]
    head += ["programs at a time", "instructions a byte", "share of the bandwidth, at most"]
    compiler = f"{recorded[0]['compiler']} for {target(device, recorded)}"
    title = f"**Triton's kernels, compiled by {compiler}, on the {device.name}, computed**"
    return f"{title}\n\n{table(head, rows)}"


def _variant(text: str) -> str:
    names = {"torch.contiguous_format": "NCHW", "torch.channels_last": "channels-last"}
    for old, new in names.items():
        text = text.replace(old, new)
    return text.replace("torch.", "")


def layers(device: Device, case: Case) -> str:
    """The head's CUDA kernels, layer by layer."""
    rows = []
    for mode, dtype, layout in _cases():
        of = of_cuda(device, case, mode, dtype, layout)
        for x in (*of, whole(of)):
            rows.append([mode, dtype, layout.replace("_", "-"), x.name, f"{x.bytes / 1e6:.0f}", *_limits(device, x)])
    head = ["mode", "type", "layout", "layer", "MB", "memory, us", "issue, us"]
    return f"**The head's CUDA kernels on the {device.name}, {case_title(*case)}, computed**\n\n{table(head, rows)}"


def _cases() -> Iterator[tuple[str, str, str]]:
    return ((mode, dtype, layout) for mode in MODES for dtype in TYPES for layout in LAYOUTS)


def _limits(device: Device, x: Launch) -> list[str]:
    seconds = device.memory_seconds(x.bytes), device.issue_seconds(x.warp_instructions)
    return [f"{1e6 * s:.0f}" for s in seconds]


def head(device: Device, case: Case, measured: Path | None) -> str:
    """The head as a whole, computed and measured."""
    times = {}
    for line in measured.read_text().splitlines() if measured else ():
        x = json.loads(line)
        if "median_s" in x and (x["net"], x["pairs"], x["size"]) == case:
            times[x["mode"], x["precision"], x["layout"], x["provider"]] = x["median_s"]
    rows = []
    for mode, dtype, layout in _cases():
        of = {"cuda": [whole(of_cuda(device, case, mode, dtype, layout))]}
        if mode == "forward":
            of["triton"] = of_triton(device, case, dtype, layout)
        for backend, launches in of.items():
            all_ = whole(launches)
            seconds, time = sum(x.seconds(device) for x in launches), times.get((mode, dtype, layout, backend))
            row = [mode, dtype, layout.replace("_", "-"), backend, str(all_.resident), *_limits(device, all_)]
            row.append(f"{1e6 * seconds:.0f}")
            rows.append([*row, *(["", ""] if time is None else [f"{1e6 * time:.0f}", f"{time / seconds:.2f}"])])
    head = ["mode", "type", "layout", "backend", "blocks at a time", "memory, us", "issue, us", "computed, us"]
    head += ["measured, us", "measured / computed"]
    return f"**The head on the {device.name}, {case_title(*case)}**\n\n{table(head, rows)}"


def devices(case: Case) -> str:
    """The head's CUDA kernels on all devices."""
    rows = []
    for device in DEVICES.values():
        found = records.read("cuda")
        row = [device.name, target(device, found).replace("cuda ", "sm_")]
        for mode in MODES:
            for dtype in TYPES:
                x = whole(of_cuda(device, case, mode, dtype, "channels_last"))
                memory, issue = device.memory_seconds(x.bytes), device.issue_seconds(x.warp_instructions)
                row.append(f"{1e3 * x.seconds(device):.2f} ({issue / memory:.0%})")
        rows.append([*row, str(x.resident)])
    head = ["GPU", "code", *(f"{mode}, {dtype}, ms" for mode in MODES for dtype in TYPES), "blocks at a time"]
    title = f"**The head's CUDA kernels, {case_title(*case)}, channels-last, computed**"
    return f"{title}\n\n{table(head, rows)}"
