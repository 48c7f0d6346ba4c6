"""Where a GPU's time goes in a metric or a training step: the profile of each kernel, and the time it should take.

    python -m benchmarks.kernels --case vgg:32:256 [--precision tf32 bfloat16] [--mode forward step]
                                 [--provider NAME ...] [--json kernels.jsonl]
    python -m benchmarks.kernels --table kernels.jsonl
    python -m benchmarks.kernels --floors --case vgg:32:256 [--measured kernels.jsonl]

The first form needs an NVIDIA GPU. It checks a provider of lpips_fast/bench/providers.py against float64, times it and
profiles it. `busy` is the time in which the device runs at least one kernel. `gap` is the rest of the time of a call. A
kernel of this package has the name of its operator. Kernels of cuDNN and cuBLAS are grouped as convolutions, gradients
of convolutions and changes of layout, with their own names below. The bandwidth of a copy and the rate of a matrix
product come from ceilings.jsonl beside the file of records if that has the same device; else they are measured first.

The second form prints, from such records, how long the calls of each provider take as a whole.

The third form works anywhere. It runs this package's GPU path, and lpips 0.1.4 if it is installed, on tensors without
values, and counts what each operator reads, writes and computes. Each input of an operator counts as read once and each
output as written once. `floor` is the larger of the time for the bytes and the time for the operations, at the rates of
a machine. `expected` is the same at the share of these rates that good kernels reach. The rates are assumed for an
H100. With --measured FILE they come from ceilings.jsonl beside FILE, and the times in FILE are added.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lpips_fast.bench import ceilings, end_to_end, providers, records
from lpips_fast.bench.cases import Case, images, random_lpips
from lpips_fast.bench.ceilings import DTYPES, Ceilings
from lpips_fast.bench.providers import BASELINE, PROVIDERS
from lpips_fast.bench.tables import case_title, context, table
from lpips_fast.bench.timing import Clock, described, interleaved, release_memory
from lpips_fast.head import autograd
from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.lpips import LPIPS
from lpips_fast.trunk.execute import layers_of, run, run_backward

PRECISIONS = ("tf32", "bfloat16")
H100 = Ceilings(3.0e12, {"tf32": 395e12, "bfloat16": 790e12})  # assumed; TF32's is half of bfloat16's
# The shares of the rates of a copy and of a matrix product that good kernels reach.
COPY_SHARE, PRODUCT_SHARE = 0.85, 0.7
CALLS = 5  # how many are profiled
ROUNDS = 9  # how many are timed
DEFAULT = (
    "ours",
    "ours, bfloat16",
    "ours, gradient in forward, chunks",
    "ours, bfloat16, gradient in forward, chunks",
    BASELINE,
    "lpips 0.1.4, bfloat16 autocast, channels-last, torch.compile",
)
CONVOLUTION, GRADIENT = "convolution", "convolution's gradient"


# ---- What operators read, write and compute


class Pass(NamedTuple):
    """The work of one call of an operator."""

    name: str
    detail: str  # the size of its largest tensor
    bytes: int
    flops: int = 0

    def seconds(self, precision: str, limits: Ceilings, copy_share: float = 1, product_share: float = 1) -> float:
        assert limits.bytes_per_s is not None
        of_bytes = self.bytes / (copy_share * limits.bytes_per_s)
        return max(of_bytes, self.flops / (product_share * limits.flops_per_s[precision]))


class Traffic(TorchDispatchMode):
    """Collects a Pass for each call of an operator.

    torch's convolution on a GPU takes extra passes: to add the bias, and to change tensors from NCHW to cuDNN's layout
    and back.

    Args:
        convolution: the name for the pass of a convolution. A gradient by turned filters is a convolution like any
            other, so the caller must say that it traces a backward.
    """

    def __init__(self, convolution: str = CONVOLUTION) -> None:
        super().__init__()
        self.convolution = convolution
        self.passes: list[Pass] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.startswith("aten::convolution"):  # on the device meta, always NCHW
            result = tree_map(functools.partial(_in_layout_of, args[0]), result)
        name = re.sub("_(triton|cuda)$", "", func._schema.name.split("::")[1])
        if func.is_view or name.startswith(("empty", "new_empty", "detach", "alias")):
            return result
        read, written = _tensors((args, kwargs)), _tensors(result)
        if name == "first_conv_relu":
            self._convolution(name, args[0][0], args[3], result[0], (*read, *written))
            return result
        if name == "conv_relu_cudnn":
            self._convolution(self.convolution, args[0], args[1], result, (*read, *written))
            self._layout(args[0], result)
            return result
        if func.namespace == "lpips_fast":
            # An argument (a!) is read and written in place; (b!) and (c!) are outputs, counted once among `read`.
            arguments = zip(args, func._schema.arguments)
            written += [x for x, of in arguments if of.is_write and "a" in of.alias_info.before_set]
        elif name == "convolution":
            x, weight, bias, transposed = *args[:3], args[6]
            name = GRADIENT if transposed else self.convolution
            self._convolution(name, x, weight, result, (x, weight, result), transposed)
            if bias is not None:
                self.passes.append(Pass("bias", _size(result), 2 * _bytes(result)))
            self._layout(x, result)
            return result
        elif name == "convolution_backward":
            self._convolution_backward(args[0], args[1], args[2], result)
            return result
        elif name == "max_pool2d_with_indices_backward":
            read = [args[0], args[-1]]  # it takes only the shape of the pool's input
        largest = max((*read, *written), key=Tensor.numel, default=None)
        detail = _size(largest) + (", pool" if name == "bias_relu" and args[3] is not None else "")
        self.passes.append(Pass(name, detail, sum(map(_bytes, (*read, *written)))))
        return result

    def _convolution(
        self, name: str, x: Tensor, weight: Tensor, y: Tensor, moved: Iterable[Tensor], transposed: bool = False
    ) -> None:
        flops = 2 * (x if transposed else y).numel() * weight[0].numel()
        self.passes.append(Pass(name, f"{_channels(x)} to {_size(y)}", sum(map(_bytes, moved)), flops))

    def _convolution_backward(self, d_y: Tensor, x: Tensor, weight: Tensor, result: Sequence[Tensor | None]) -> None:
        for d, read in zip(result[:2], (weight, x)):
            if d is not None:
                n_bytes, flops = sum(map(_bytes, (d_y, read, d))), 2 * d_y.numel() * weight[0].numel()
                self.passes.append(Pass(GRADIENT, f"{d_y.shape[1]} to {_size(x)}", n_bytes, flops))
        if result[0] is not None:
            self._layout(d_y, result[0])

    def _layout(self, *tensors: Tensor) -> None:
        """Adds a change of layout. The head's convolutions of lpips, with one channel as output, need none."""
        x = tensors[0]
        if _is_channels_last(x):
            if not x.is_contiguous(memory_format=torch.channels_last):  # a part of another tensor's channels
                self.passes.append(Pass("copy", _size(x), 2 * _bytes(x)))
        elif min(x.shape[1] for x in tensors) > 1:
            self.passes.append(Pass("layout", _size(tensors[-1]), 2 * sum(map(_bytes, tensors))))


def _channels(x: Tensor) -> int:
    """The number of channels; 3 for an image, which the GPU path pads to up to 8."""
    return 3 if 1 < x.shape[1] <= 8 else x.shape[1]


def _size(x: Tensor | None) -> str:
    if x is None or x.dim() == 0:
        return ""
    return " x ".join(map(str, (_channels(x), *x.shape[2:]) if x.dim() == 4 else x.shape))


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _in_layout_of(x: Tensor, y: Any) -> Any:
    layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    return y.contiguous(memory_format=layout) if isinstance(y, Tensor) and y.dim() == 4 else y


def _bytes(x: Tensor) -> int:
    """The bytes of memory that are touched: an expanded dimension counts once."""
    return x.element_size() * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or n == 0)


def traffic_of_ours(case: Case, mode: str, precision: str, in_forward: bool = False) -> list[Pass]:
    """The passes of the GPU path, in order.

    Args:
        mode: 'forward', or 'step', with the gradient to the first images.
        in_forward: whether the head's gradient is merged into the way back through the taps, as with grad_in_forward.
    """
    dtype, meta = DTYPES[precision], torch.device("meta")
    with torch.no_grad():
        model = LPIPS(net=case.net, pnet_rand=True).to(meta)
        x0, x1 = (torch.empty(case.pairs, 3, case.size, case.size, device=meta) for _ in range(2))
        trunk = model.net
        setting = trunk.setting(meta)._replace(dtype=dtype, layout=torch.channels_last, layers="gpu", cudnn_relu=True)
        tensors, affine = trunk.tensors(setting, gradient=True), (model.scaling_layer.shift, model.scaling_layer.scale)
        weights = [weight.detach().flatten() for weight in model.lins.parameters()]
        with Traffic() as traffic:
            if mode == "forward":
                taps = [t.split(case.pairs) for t in run(setting, (x0, x1), affine, tensors)[0]]
                inputs = HeadInput([t for t, _ in taps], [t for _, t in taps], weights, Norm())
                autograd.head("triton", inputs)
                return traffic.passes
            taps0, signs = run(setting, (x0,), affine, tensors, keep=True)
            taps1, _ = run(setting, (x1,), affine, tensors)
            inputs = HeadInput(taps0, taps1, weights, Norm())
            value = autograd.head("triton", inputs)
            if in_forward:
                d_taps: Any = layers_of(setting).head_gradients("triton", inputs, [value], mean=True, need1=False)
            else:
                needs = {"need0": True, "need1": False, "need_weights": False}
                d_taps = autograd.head_backward("triton", inputs, [value], mean=True, **needs)
        with Traffic(convolution=GRADIENT) as backward:
            run_backward(setting, x0.shape[1:], affine, tensors, taps0, signs, d_taps)
    return traffic.passes + backward.passes


def traffic_of_lpips(case: Case, mode: str) -> list[Pass]:
    """The passes of lpips 0.1.4 in float32 and NCHW; none if it is not installed."""
    if importlib.util.find_spec("lpips") is None:
        return []
    x0, x1 = (torch.empty(case.pairs, 3, case.size, case.size, device="meta") for _ in range(2))
    distance: Any = providers.lpips_eager(random_lpips(case.net), (x0, x1))
    with Traffic() as traffic:
        end_to_end.CALLS[mode](distance, x0, x1)
    return traffic.passes


# ---- The tables of floors

_COLUMNS = ("MB", "floor, us", "expected, us", "measured, us")
Times = Mapping[str, Mapping[tuple[str, str], float]]  # by precision, name and detail; the detail "all" is their sum


def floors(case: Case, mode: str, limits: Ceilings = H100, measured: Sequence[Mapping[str, Any]] = ()) -> str:
    """Tables of the time that each pass of ours, and of lpips, should take."""
    title = case_title(*case)
    ours = {precision: traffic_of_ours(case, mode, precision) for precision in PRECISIONS}
    times = {precision: _measured_us(measured, case, mode, precision, ours[precision]) for precision in PRECISIONS}
    rows = [*_rows(ours, times, limits), _row("**all**", "", ours, times, limits)]
    if mode == "step":
        merged = {precision: traffic_of_ours(case, mode, precision, True) for precision in PRECISIONS}
        new = {key: [p for p in of if p.name == "head_tap_bwd"] for key, of in merged.items()}
        rows += [*_rows(new, {}, limits), _row("**all, with head_tap_bwd instead**", "", merged, {}, limits)]
    head = ["pass", "calls", "GFLOP", *(f"{column}, {precision}" for precision in PRECISIONS for column in _COLUMNS)]
    text = f"**Ours, {mode}, {title}**\n\n{table(head, rows)}"
    lpips = {"tf32": traffic_of_lpips(case, mode)}
    if lpips["tf32"]:
        names = dict.fromkeys(p.name for p in lpips["tf32"])
        rows = [_row(name, "", {"tf32": [p for p in lpips["tf32"] if p.name == name]}, {}, limits) for name in names]
        rows.append(_row("**all**", "", lpips, {}, limits))
        text += f"\n\n**{BASELINE}, {mode}, {title}**\n\n{table(head[: 3 + len(_COLUMNS)], rows)}"
        text += f"\n\n**Whole, {mode}, {title}**\n\n{_whole(ours, lpips['tf32'], limits)}"
    return text


def _whole(ours: Mapping[str, Sequence[Pass]], lpips: Sequence[Pass], limits: Ceilings) -> str:
    """The expected time of ours and of lpips in TF32: as lpips is, and without its changes of layout."""
    rows = []
    of_lpips, without = (_expected(of, "tf32", limits) for of in (lpips, [p for p in lpips if p.name != "layout"]))
    for precision, of in ours.items():
        seconds = _expected(of, precision, limits)
        at_rate = sum(p.flops for p in of) / limits.flops_per_s[precision]
        ms, ratios = f"{1e3 * seconds:.1f}", (f"{other / seconds:.2f}" for other in (of_lpips, without))
        rows.append([precision, f"{1e3 * of_lpips:.1f}", ms, *ratios, f"{at_rate / seconds:.0%}"])
    head = ["precision of ours", f"{BASELINE}, ms", "ours, ms", "ratio", "ratio without layout", "share of a product"]
    return table(head, rows)


def _expected(passes: Iterable[Pass], precision: str, limits: Ceilings) -> float:
    return sum(p.seconds(precision, limits, COPY_SHARE, PRODUCT_SHARE) for p in passes)


def _rows(passes: Mapping[str, Sequence[Pass]], times: Times, limits: Ceilings) -> list[list[str]]:
    """A row for each name and detail, and for the sum over the details of a name that has several."""
    details: dict[str, dict[str, None]] = {}
    for p in next(iter(passes.values())):
        details.setdefault(p.name, {})[p.detail] = None
    rows = []
    for name, of_name in details.items():
        of = {precision: [p for p in of if p.name == name] for precision, of in passes.items()}
        if len(of_name) > 1:
            for detail in of_name:
                of_detail = {precision: [p for p in named if p.detail == detail] for precision, named in of.items()}
                rows.append(_row(name, detail, of_detail, times, limits))
        rows.append(_row(name, "all" if len(of_name) > 1 else "", of, times, limits))
    return rows


def _row(name: str, detail: str, passes: Mapping[str, Sequence[Pass]], times: Times, limits: Ceilings) -> list[str]:
    first = next(iter(passes.values()))
    flops = sum(p.flops for p in first)
    row = [f"{name}, {detail}" if detail else name, str(len(first)), f"{flops / 1e9:.0f}" if flops else ""]
    for precision, of in passes.items():
        floor, expected = (
            1e6 * seconds
            for seconds in (sum(p.seconds(precision, limits) for p in of), _expected(of, precision, limits))
        )
        measured = times.get(precision, {}).get((name.strip("*"), detail or "all"))
        row += [f"{sum(p.bytes for p in of) / 1e6:.0f}", f"{floor:.0f}", f"{expected:.0f}"]
        row.append("" if measured is None else f"{measured:.0f}")
    return row


def _measured_us(
    measured: Sequence[Mapping[str, Any]], case: Case, mode: str, precision: str, passes: Sequence[Pass]
) -> dict[tuple[str, str], float]:
    """The device time of our kernels in the last records: by name, and by detail if the calls match the passes."""
    found: dict[tuple[str, str], float] = {}
    provider = "ours" if precision == "tf32" else f"ours, {precision}"
    names = {**case._asdict(), "mode": mode, "provider": provider, "precision": precision}
    for record in measured:
        if "error" in record or any(record[key] != value for key, value in names.items()):
            continue
        found[record["kernel"], "all"] = record["device_us"]
        details = [p.detail for p in passes if p.name == record["kernel"]]
        if len(details) == len(record.get("each_us", ())):
            for detail in details:
                found.pop((record["kernel"], detail), None)
            for detail, us in zip(details, record["each_us"]):
                found[record["kernel"], detail] = found.get((record["kernel"], detail), 0) + us
    return found


def read(path: Path) -> list[records.Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def totals(measured: Sequence[records.Record]) -> str:
    """A table for each case: launches, device time and whole time of a call of each provider."""
    texts = []
    for case in dict.fromkeys(Case(r["net"], r["pairs"], r["size"]) for r in measured):
        of_case = [r for r in measured if r["kernel"] == "all" and (r["net"], r["pairs"], r["size"]) == case]
        texts.append(f"**{case_title(*case)}**, {context(of_case)}")
        baseline = {(r["mode"], r["commit"]): r["wall_us"] for r in of_case if r["provider"] == BASELINE}
        rows = []
        for r in of_case:
            wall = f"{r['wall_us'] / 1e3:.2f}"
            if "q20_s" in r:
                wall += f" ({1e3 * r['q20_s']:.2f} to {1e3 * r['q80_s']:.2f})"
            other = baseline.get((r["mode"], r["commit"]))
            ratio = "" if other is None else f"{other / r['wall_us']:.2f}"
            row = [
                r["provider"],
                r["precision"],
                r["mode"],
                f"{r['calls']:.0f}",
                f"{r['device_us'] / 1e3:.2f}",
                wall,
                ratio,
            ]
            rows.append([*row, "" if r.get("peak_bytes") is None else f"{r['peak_bytes'] / 2**20:.0f}"])
        head = ["provider", "precision", "mode", "launches", "device, ms", "whole, ms (20% to 80%)", f"x {BASELINE}"]
        texts.append(table([*head, "peak, MiB"], rows))
    return "\n\n".join(texts)


# ---- The profile


class Kernel(NamedTuple):
    """One run of a kernel on the device."""

    name: str
    start_us: float
    end_us: float


_OWN = re.compile(r"lpips_fast::(?:\(anonymous namespace\)::)?(\w+?)_kernel|^_([a-z]\w*?)_kernel")
_LAYOUT = re.compile(r"n(?:chw|hwc)To\w*n(?:chw|hwc)|convertTensor|AddPadding|tensorTransform", re.IGNORECASE)
_LIBRARY = re.compile(
    r"cudnn|cutlass|xmma|conv(?!ert)|implicit|gem[mv]|winograd|nvjet|fprop|dgrad|wgrad", re.IGNORECASE
)
_PREPARES = re.compile(r"init_device_workspace")  # no convolution: so each layer's convolution is one kernel
_BACKWARD = re.compile(r"dgrad|wgrad|bprop|bwd|backward", re.IGNORECASE)
# torch's elementwise kernels differ in the function among the arguments of their template.
_FUNCTION = re.compile(r"\b(?!gpu_kernel_impl)(?:launch_)?\w*(?:[Ff]unctor|_kernel_cuda|_kernel_impl|launch_\w+)\w*")


def group(name: str) -> str:
    """The name under which a kernel is counted."""
    own = _OWN.search(name)
    if own is not None:
        return own[1] or own[2]
    if _LAYOUT.search(name):
        return "layout"
    of_library = "at::native" not in name and not name.startswith("triton_") and not _PREPARES.search(name)
    if of_library and _LIBRARY.search(name):
        return GRADIENT if _BACKWARD.search(name) else CONVOLUTION
    head, _, arguments = name.removeprefix("void ").replace("(anonymous namespace)::", "").partition("<")
    function = _FUNCTION.search(arguments)
    short = head.partition("(")[0].rpartition("::")[2].strip()
    return f"{short} {function[0]}" if function is not None else short


def groups_of(kernels: Iterable[Kernel]) -> list[str]:
    """The group of each kernel, in order.

    A gradient by turned filters runs the kernel of a convolution. Such kernels come after our kernel for the gradient
    of a tap and before our first layer of the next forward.
    """
    groups, backward = [], False
    for kernel in kernels:
        name = group(kernel.name)
        backward = name in ("tap_bwd", "head_tap_bwd") or (backward and name != "first_conv_relu")
        groups.append(GRADIENT if backward and name == CONVOLUTION else name)
    return groups


def kernels_of(events: Iterable[Any]) -> list[Kernel]:
    """The kernels, copies and fills among a profiler's events, in the order in which they started."""
    device = torch.autograd.DeviceType.CUDA
    found = [event for event in events if event.device_type == device and not event.is_user_annotation]
    kernels = [Kernel(event.name, event.time_range.start, event.time_range.end) for event in found]
    return sorted(kernels, key=lambda kernel: kernel.start_us)


def busy_us(kernels: Sequence[Kernel]) -> float:
    """The time in which at least one of the kernels, in order of their starts, runs."""
    busy, until = 0.0, -math.inf
    for kernel in kernels:
        busy += max(0.0, kernel.end_us - max(kernel.start_us, until))
        until = max(until, kernel.end_us)
    return busy


def profile(call: Callable[[], object], device: torch.device) -> list[Kernel]:
    """The kernels of CALLS calls."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize(device)
    return kernels_of(profiler.events())


def rows(
    kernels: Sequence[Kernel], calls: int, wall_s: float, passes: Sequence[Pass], precision: str, limits: Ceilings
) -> list[records.Record]:
    """A record of each group of kernels, the slowest first, and one of all kernels.

    Args:
        kernels: the kernels of all calls.
        calls: how many calls there were.
        wall_s: the seconds of a call.
        passes: the work of our kernels, from which follow the shares of the machine's rates that they reach.
    """
    groups: dict[str, list[Kernel]] = {}
    for name, kernel in zip(groups_of(kernels), kernels, strict=True):
        groups.setdefault(name, []).append(kernel)
    total_us = sum(kernel.end_us - kernel.start_us for kernel in kernels) / calls
    found = []
    for name, of in groups.items():
        times = [kernel.end_us - kernel.start_us for kernel in of]
        n, left = divmod(len(of), calls)
        device_us = sum(times) / calls
        record = {"kernel": name, "calls": len(of) / calls, "device_us": device_us, "share": device_us / total_us}
        # The mean time of each launch in a call, in order; none if the calls differ.
        record["each_us"] = [] if left else [sum(times[i::n]) / calls for i in range(n)]
        record["names"] = _by_name(of, calls)
        work = [p for p in passes if p.name == name]
        n_bytes, flops = sum(p.bytes for p in work), sum(p.flops for p in work)
        if flops and precision in limits.flops_per_s:
            record |= {"flops": flops, "share_of_product": flops / limits.flops_per_s[precision] / device_us * 1e6}
        if n_bytes and limits.bytes_per_s is not None:
            record |= {"bytes": n_bytes, "share_of_copy": n_bytes / limits.bytes_per_s / device_us * 1e6}
        found.append(record)
    found.sort(key=lambda record: -record["device_us"])
    busy = busy_us(kernels) / calls
    whole = {"kernel": "all", "calls": len(kernels) / calls, "device_us": total_us, "share": 1.0, "each_us": []}
    whole |= {"busy_us": busy, "wall_us": 1e6 * wall_s, "gap_us": max(0.0, 1e6 * wall_s - busy)}
    return [*found, whole]


def _by_name(kernels: Sequence[Kernel], calls: int) -> dict[str, float]:
    """The device time of each kernel's name in a group, for a call, the slowest first."""
    times: dict[str, float] = {}
    for kernel in kernels:
        name = kernel.name[:200]  # names of torch's kernels hold the arguments of templates
        times[name] = times.get(name, 0) + (kernel.end_us - kernel.start_us) / calls
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def markdown(found: Sequence[records.Record]) -> str:
    """The table of `rows`, with the names of the libraries' kernels below their group."""
    lines = []
    for record in found:
        copy, product = (record.get(key) for key in ("share_of_copy", "share_of_product"))
        of_copy, of_product = ("" if share is None else f"{share:.0%}" for share in (copy, product))
        us, share = f"{record['device_us']:.1f}", f"{record['share']:.1%}"
        lines.append([record["kernel"], f"{record['calls']:g}", us, share, of_copy, of_product])
        if record["kernel"] in (CONVOLUTION, GRADIENT, "layout"):
            lines += [[f"- {name[:90]}", "", f"{us:.1f}", "", "", ""] for name, us in record["names"].items()]
    text = table(["kernel", "calls", "device, us", "share", "of a copy", "of a product"], lines)
    whole = found[-1]
    return f"{text}\n\nwall {whole['wall_us']:.1f} us, busy {whole['busy_us']:.1f} us, gap {whole['gap_us']:.1f} us"


def machine_limits(path: Path | None, run: records.Run) -> Ceilings:
    """The limits in ceilings.jsonl beside the file of records, if it has this device; else they are measured."""
    beside = None if path is None else path.with_name("ceilings.jsonl")
    if beside is not None and beside.exists():
        name = run.context["device"]
        of_device = [record for record in records.read(beside) if record["device"] == name]
        found = ceilings.of_records(of_device)
        if found.bytes_per_s is not None:
            return found
    return ceilings.of_records(list(ceilings.measure(run.device, PRECISIONS, ROUNDS)))


def measure(
    case: Case, mode: str, name: str, device: torch.device, limits: Ceilings, expected: end_to_end.Oracle
) -> list[records.Record]:
    """The records of a provider.

    Raises:
        RuntimeError: the profiler saw no kernel.
        Exception: whatever the provider raises, or ArithmeticError where it is wrong.
    """
    provider = PROVIDERS[name]
    precision = provider.precision_on(device)
    sample = images(case, device)
    distance = provider.distance(random_lpips(case.net), *sample, gradient=mode == "step")
    end_to_end.check(distance, mode, sample, expected, precision)
    call = functools.partial(end_to_end.CALLS[mode], distance, *sample)
    times, failures = interleaved({name: lambda: call}, Clock(device), ROUNDS)
    if failures:
        raise RuntimeError(failures[name])
    kernels = profile(call, device)
    if not kernels:
        raise RuntimeError("torch's profiler saw no kernel: CUPTI may be missing or not permitted")
    passes: list[Pass] = []
    if name.startswith("ours") and precision in PRECISIONS:
        passes = traffic_of_ours(case, mode, precision)
        if mode == "step":
            passes += [p for p in traffic_of_ours(case, mode, precision, True) if p.name == "head_tap_bwd"]
    found = rows(kernels, CALLS, times[name].median, passes, precision, limits)
    found[-1] |= times[name].record()
    return found


def parsed(text: str) -> Case:
    try:
        return Case.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=parsed, default=Case("vgg", 32, 256), help="NET:PAIRS:SIZE")
    parser.add_argument("--mode", nargs="+", choices=end_to_end.MODES, default=end_to_end.MODES)
    parser.add_argument("--precision", nargs="+", choices=tuple(DTYPES), default=PRECISIONS)
    parser.add_argument("--provider", nargs="+", choices=tuple(PROVIDERS), default=DEFAULT, metavar="NAME")
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--floors", action="store_true", help="print what it should be; needs no GPU")
    parser.add_argument("--measured", type=Path, help="with --floors: records of this script")
    parser.add_argument("--table", type=Path, help="print what the calls of a file of records take in all")
    args = parser.parse_args(arguments)
    if args.table is not None:
        print(totals(read(args.table)))
        return 0
    if args.floors:
        limits, measured = H100, []
        if args.measured is not None:
            limits = ceilings.of_records(records.read(args.measured.with_name("ceilings.jsonl")))
            measured = read(args.measured)
        print("\n\n".join(floors(args.case, mode, limits, measured) for mode in args.mode))
        return 0
    if not torch.cuda.is_available():
        print("there is no GPU that torch can use: the profile needs one; --floors does not", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    run = records.Run(device)
    limits = machine_limits(args.json, run)
    failed = False
    for mode in args.mode:
        expected = end_to_end.oracle(args.case, images(args.case, device))
        for name in args.provider:
            provider = PROVIDERS[name]
            precision = provider.precision_on(device)
            if mode not in provider.modes or args.case.net not in provider.nets or precision not in args.precision:
                continue
            names = {**args.case._asdict(), "mode": mode, "provider": name, "precision": precision}
            print(f"\n**{name}, {precision}, {mode}, {case_title(*args.case)}**\n", flush=True)
            try:
                missing = provider.missing()
                if missing is not None:
                    raise RuntimeError(missing)
                found = measure(args.case, mode, name, device, limits, expected)
                print(markdown(found), flush=True)
            except Exception as error:  # a provider that fails must not stop the others
                failed = True
                found = [{"error": described(error)}]
                print(f"failed: {found[0]['error']}", flush=True)
            release_memory()
            if args.json is not None:
                for record in found:
                    records.append(args.json, {**names, **record, **run.context})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
