"""How kernels of a GPU are grouped and summed, and what they must move; without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import kernels
from benchmarks.kernels import CONVOLUTION, GRADIENT, Kernel, Pass
from lpips_fast.bench import cases, records
from lpips_fast.bench.cases import Case
from lpips_fast.bench.ceilings import Ceilings
from tests.support.tolerances import PRINTED_INTEGER_TOLERANCE

CASES = [Case("vgg", 2, 64), Case("alex", 3, 67), Case("squeeze", 2, 64)]
SMALL = CASES[0]
LIMITS = Ceilings(1e12, {"tf32": 1e14, "bfloat16": 2e14})
NAMES = Path(__file__).with_name("kernel_names.txt")  # from profiles of an H200, cut at 110 characters


@pytest.mark.parametrize(
    "name,group",
    (
        ("_first_conv_relu_kernel", "first_conv_relu"),
        ("_pack_signs_kernel", "pack_signs"),
        ("_head_tap_bwd_kernel", "head_tap_bwd"),
        ("void lpips_fast::(anonymous namespace)::head_fwd_kernel<float>(lpips_fast::Layers<float>)", "head_fwd"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", CONVOLUTION),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688fprop_optimized_tf32_128x64>", CONVOLUTION),
        ("sm80_xmma_dgrad_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc", GRADIENT),
        ("void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>", "layout"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
            "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<float>)",
            "vectorized_elementwise_kernel CUDAFunctor_add",
        ),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::"
            "launch_clamp_scalar(at::TensorIteratorBase&, c10::Scalar)::{lambda()#1}>",
            "vectorized_elementwise_kernel launch_clamp_scalar",
        ),
        (
            "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<"
            "at::native::CUDAFunctor_add<float> >(at::TensorIteratorBase&)::{lambda(int)#1}>",
            "elementwise_kernel CUDAFunctor_add",
        ),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIterator&)>",
            "unrolled_elementwise_kernel direct_copy_kernel_cuda",
        ),
        ("void at::native::(anonymous namespace)::max_pool_forward_nchw<float, float>(int)", "max_pool_forward_nchw"),
        ("void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false>(float)", CONVOLUTION),
        ("triton_poi_fused_convolution_relu_0", "triton_poi_fused_convolution_relu_0"),
        ("Memset (Device)", "Memset"),
    ),
)
def test_group(name, group):
    assert kernels.group(name) == group


def test_groups_of_a_devices_names():
    lines = [line.split(" | ") for line in NAMES.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 60
    assert [(name, kernels.group(name)) for _, name in lines] == [(name, group) for group, name in lines]


def test_forward_kernels_of_a_backward_are_gradients():
    """A gradient by turned filters runs the kernel of a forward."""
    names = ["_first_conv_relu_kernel", "sm90_fprop", "head_fwd", "_tap_bwd_kernel", "sm90_fprop", "nchwToNhwcKernel"]
    names += ["_head_tap_bwd_kernel", "sm90_fprop", "sm90_dgrad"]
    forward = ["first_conv_relu", CONVOLUTION, "head_fwd"]
    backward = ["tap_bwd", GRADIENT, "layout", "head_tap_bwd", GRADIENT, GRADIENT]
    calls = [Kernel(name, i, i + 1) for i, name in enumerate(names * 2)]
    assert kernels.groups_of(calls) == (forward + backward) * 2
    record = next(r for r in kernels.rows(calls, 2, 1e-3, [], "tf32", LIMITS) if r["kernel"] == GRADIENT)
    assert record["calls"] == 3
    # Without our first layer, no gradient is by turned filters.
    calls = [Kernel(name, 0, 1) for name in ("sm90_fprop", "lpips_fast::head_bwd_kernel", "sm90_dgrad") * 2]
    assert kernels.groups_of(calls) == [CONVOLUTION, "head_bwd", GRADIENT] * 2


def event(name, start, end, device="CUDA", annotation=False):
    device = getattr(torch.autograd.DeviceType, device)
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=annotation)


def test_kernels_are_the_devices_in_order():
    events = [event("b", 5, 6), event("aten::add", 0, 9, "CPU"), event("step", 0, 9, annotation=True), event("a", 1, 2)]
    assert kernels.kernels_of(events) == [Kernel("a", 1, 2), Kernel("b", 5, 6)]


def test_torchs_events_have_what_is_asked_of_them():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        torch.ones(3).add_(1)
    events = list(profiler.events())
    assert len(events) > 0
    assert kernels.kernels_of(events) == []
    assert events[0].time_range.end >= events[0].time_range.start >= 0


def test_busy_counts_overlapping_kernels_once():
    assert kernels.busy_us([Kernel("a", 0, 10), Kernel("b", 2, 5), Kernel("c", 8, 12), Kernel("d", 20, 21)]) == 13


def two_calls():
    """Two calls of a convolution, two bias_relu and a fill. Each kernel of the second call takes 2 us longer."""
    names = ["sm80_fprop", "_bias_relu_kernel", "_bias_relu_kernel", "Memset (Device)"]
    return [Kernel(name, 100 * i, 100 * i + 10 * (i % 4 + 1) + 2 * (i // 4)) for i, name in enumerate(names * 2)]


def test_rows():
    passes = [Pass("bias_relu", "", 10**7), Pass("bias_relu", "pool", 2 * 10**7), Pass(CONVOLUTION, "", 10**6, 10**8)]
    *found, whole = kernels.rows(two_calls(), 2, 1e-3, passes, "tf32", LIMITS)
    by_name = {record["kernel"]: record for record in found}
    assert [record["kernel"] for record in found] == ["bias_relu", "Memset", CONVOLUTION]
    assert by_name["bias_relu"]["calls"] == 2
    assert by_name["bias_relu"]["device_us"] == pytest.approx(52)
    assert by_name["bias_relu"]["each_us"] == pytest.approx([21, 31])
    assert by_name["bias_relu"]["share_of_copy"] == pytest.approx(3e7 / 1e12 / 52e-6)
    assert by_name[CONVOLUTION]["share_of_product"] == pytest.approx(1e8 / 1e14 / 11e-6)
    assert by_name[CONVOLUTION]["share_of_copy"] == pytest.approx(1e6 / 1e12 / 11e-6)
    assert sum(record["share"] for record in found) == pytest.approx(1)
    assert (whole["device_us"], whole["busy_us"], whole["wall_us"]) == pytest.approx((104, 104, 1000))
    assert whole["gap_us"] == pytest.approx(896)


def test_calls_that_differ_have_no_times_of_their_own():
    found = kernels.rows(two_calls()[:-2], 2, 1e-3, [], "tf32", LIMITS)
    assert next(record for record in found if record["kernel"] == "bias_relu")["each_us"] == []


def test_table_has_the_libraries_names_below_their_group():
    text = kernels.markdown(kernels.rows(two_calls(), 2, 1e-3, [], "tf32", LIMITS))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {CONVOLUTION} |"))
    assert lines[at + 1].startswith("| - sm80_fprop |")
    assert "gap 896.0 us" in lines[-1]


def total(passes, name, detail=None):
    return sum(p.bytes for p in passes if p.name == name and detail in (None, p.detail))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision,itemsize", (("tf32", 4), ("bfloat16", 2)))
def test_forward_moves_what_the_shapes_say(case, precision, itemsize):
    layers, taps = fused_layers(case.net, case.size), cases.trunk_layers(case.net, case.size)[1]
    passes = kernels.traffic_of_ours(case, "forward", precision)
    n = 2 * case.pairs
    features = n * itemsize * sum(c * h * w for c, h, w in taps)
    distances_and_weights = 4 * (case.pairs * len(taps) + sum(c for c, _, _ in taps))
    assert total(passes, "head_fwd") == features + distances_and_weights
    # The first layer reads float32 images, the shift and the scale; each convolution its bias.
    first, *others = convolutions(case.net)
    images, affine, of_first = n * 3 * case.size**2 * 4, 2 * 3 * 4, first.weight.numel() + first.out_channels
    assert total(passes, "first_conv_relu") == images + affine + itemsize * (of_first + n * layers[0].outputs)
    biases = sum(module.out_channels for module in others)
    with_pool = layers[1].name == "conv1_2"  # only VGG; after the first tap cuDNN does the ReLU
    if with_pool:
        y, biases = layers[1].outputs, biases - others[0].out_channels
        assert total(passes, "bias_relu") == itemsize * (n * (2 * y + y // 4) + others[0].out_channels)
    assert sum(p.name == "bias_relu" for p in passes) == with_pool
    assert sum(p.name == CONVOLUTION for p in passes) == len(layers) - 1
    convolved = sum(layer.bytes(n, itemsize) for layer in layers[1:])
    assert total(passes, CONVOLUTION) == convolved + itemsize * biases
    pools = sum(step.pool is not None for step in cases.random_lpips(case.net).net.plan)
    assert sum(p.name == "max_pool" for p in passes) == pools - with_pool
    assert "pack_signs" not in {p.name for p in passes}
    assert sum(p.flops for p in passes) == n * sum(layer.flops for layer in layers)


def fused_layers(net, size):
    """A Fire's two expanding convolutions are one, of 3 x 3."""
    layers = list(cases.trunk_layers(net, size)[0])
    if net != "squeeze":
        return layers
    fires = []
    for squeeze, expand3x3 in zip(layers[1::3], layers[3::3], strict=True):
        _, weights, inputs, outputs, flops = expand3x3
        fires += [squeeze, cases.Layer("expand", 2 * weights, inputs, 2 * outputs, 2 * flops)]
    return layers[:1] + fires


def convolutions(net):
    return [module for module in cases.random_lpips(net).net.modules() if isinstance(module, torch.nn.Conv2d)]


def test_step_moves_what_the_shapes_say():
    passes = kernels.traffic_of_ours(SMALL, "step", "bfloat16")
    n = SMALL.pairs
    taps = [n * c * h * w for c, h, w in cases.trunk_layers("vgg", 64)[1]]
    # The gradient of a tap: the tap, the gradient of the head, the result, and the gradient of the pool after the tap.
    assert total(passes, "tap_bwd") == 2 * (3 * sum(taps) + sum(taps[:-1]) // 4)
    # Each gradient is read and written in place, and the signs take a bit a value.
    sides = ((64, 64), (32, 128), (16, 2 * 256), (8, 2 * 512), (4, 2 * 512))
    first, *others = (n * side**2 * channels for side, channels in sides)
    values = first + sum(others)
    assert total(passes, "mask_by_signs") == 4 * values + values // 8
    # The first layer writes its signs itself, for the first images only. For other layers their outputs are read.
    with_signs, without = (p.bytes for p in passes if p.name == "first_conv_relu")
    assert with_signs - without == first // 8
    assert total(passes, "pack_signs") == 2 * sum(others) + sum(others) // 8
    layers = cases.trunk_layers("vgg", 64)[0]
    assert [p.flops for p in passes if p.name == GRADIENT][:-1] == [n * layer.flops for layer in layers[:0:-1]]
    assert sum(p.name == CONVOLUTION for p in passes) == 2 * (len(layers) - 1)
    merged = kernels.traffic_of_ours(SMALL, "step", "bfloat16", in_forward=True)
    weights_and_gradients = 4 * (sum(module.out_channels for module in tap_convolutions()) + 5 * n)
    assert total(merged, "head_tap_bwd") == 2 * (3 * sum(taps) + sum(taps[:-1]) // 4) + weights_and_gradients
    assert {"head_bwd", "tap_bwd"}.isdisjoint(p.name for p in merged)


def test_a_transposed_convolution_is_a_gradient():
    d_y, weight = torch.empty(2, 64, 5, 5, device="meta"), torch.empty(64, 4, 3, 3, device="meta")
    with kernels.Traffic() as traffic:
        F.conv_transpose2d(d_y, weight, None, 2, 1, 1)
    gradient = traffic.passes[0]
    assert (gradient.name, gradient.detail) == (GRADIENT, "64 to 3 x 10 x 10")
    assert gradient.bytes == 4 * (d_y.numel() + weight.numel() + 2 * 4 * 10**2)
    assert gradient.flops == 2 * d_y.numel() * 4 * 3**2


def tap_convolutions():
    return [
        [m for m in slice_ if isinstance(m, torch.nn.Conv2d)][-1] for slice_ in cases.random_lpips("vgg").net.slices
    ]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_laid_out_anew(case):
    """The GPU path stays in channels-last."""
    for mode in ("forward", "step"):
        names = {p.name for p in kernels.traffic_of_ours(case, mode, "tf32")}
        assert names.isdisjoint({"clone", "_to_copy", "copy_", "copy", "cat", "layout", "bias"})


def test_passes_of_lpips():
    pytest.importorskip("lpips")
    passes = kernels.traffic_of_lpips(SMALL, "forward")
    names = [p.name for p in passes]
    values = 4 * 2 * SMALL.pairs * sum(layer.outputs for layer in cases.trunk_layers("vgg", 64)[0])
    assert (names.count("bias"), names.count("relu_"), names.count("layout")) == (26, 26, 26)
    assert total(passes, "bias") == total(passes, "relu_") == 2 * values


def test_larger_of_bytes_and_flops():
    moved = Pass("a", "", 10**6, 10**6)
    assert moved.seconds("tf32", LIMITS) == pytest.approx(1e-6)
    assert moved.seconds("tf32", LIMITS, 0.5) == pytest.approx(2e-6)
    assert Pass("a", "", 10**6, 10**9).seconds("tf32", LIMITS, 0.5, 0.5) == pytest.approx(2e-5)


def test_floors_take_the_measured_times(capsys, tmp_path):
    passes = kernels.traffic_of_ours(SMALL, "forward", "tf32")
    n = sum(p.name == CONVOLUTION for p in passes)
    common = {**SMALL._asdict(), "mode": "forward", "provider": "ours", "precision": "tf32"}
    file = tmp_path / "kernels.jsonl"
    for record in (
        {"kernel": CONVOLUTION, "device_us": 777.0, "each_us": [3000.0] + [1.0] * (n - 1)},
        {"kernel": "all", "device_us": 8888.0, "each_us": []},
        {"error": "none"},
    ):
        records.append(file, {**common, **record})
    rates = {"copy": {"bytes_per_s": 1e12}, "tf32": {"flops_per_s": 1e14}, "bfloat16": {"flops_per_s": 2e14}}
    for name, rate in rates.items():
        what = {"what": "copy", "precision": None} if name == "copy" else {"what": "product", "precision": name}
        context = dict.fromkeys((*records.CONTEXT, *records.MEASURED), 1)
        records.append(tmp_path / "ceilings.jsonl", {**what, **rate, **context})
    assert kernels.main(["--floors", "--case", str(SMALL), "--mode", "forward", "--measured", str(file)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    measured = {row[0]: row[6] for row in reversed(rows) if len(row) > 6}  # ours come first
    assert measured["| convolution, 64 to 64 x 64 x 64"] == "3000"
    assert measured["| convolution, all"] == "777"
    assert measured["| **all**"] == "8888"
    assert measured["| head_fwd"].strip() == ""
    floor = {row[0]: row[4] for row in reversed(rows) if len(row) > 6}["| head_fwd"]
    expected = sum(p.bytes for p in passes if p.name == "head_fwd") / 1e12 * 1e6
    assert float(floor) == pytest.approx(expected, abs=PRINTED_INTEGER_TOLERANCE)


def test_table_of_totals(capsys, tmp_path):
    """A ratio is within one commit. Quantiles are shown if there are any."""
    file = tmp_path / "kernels.jsonl"
    common = {**SMALL._asdict(), "mode": "step", "precision": "tf32", "calls": 3.0, "device_us": 1000.0}
    common |= {"device": "a GPU", "torch": "2", "date": "2026-01-01T00:00"}
    for record in (
        {"provider": "lpips 0.1.4", "kernel": "all", "wall_us": 9000.0, "commit": "a"},
        {"provider": "ours", "kernel": "convolution", "commit": "a"},
        {"provider": "ours", "kernel": "all", "wall_us": 3000.0, "q20_s": 0.002, "q80_s": 0.004, "commit": "a"},
        {"provider": "ours", "kernel": "all", "wall_us": 2000.0, "commit": "b", "peak_bytes": 3 << 20},
    ):
        records.append(file, {**common, **record})
    assert kernels.main(["--table", str(file)]) == 0
    out = capsys.readouterr().out
    assert "| ours | tf32 | step | 3 | 1.00 | 3.00 (2.00 to 4.00) | 3.00 |  |" in out
    assert "| ours | tf32 | step | 3 | 1.00 | 2.00 |  | 3 |" in out
    assert out.count("| ours |") == 2


def test_providers_are_there():
    assert set(kernels.DEFAULT) <= set(kernels.PROVIDERS)


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("case", ("vgg", "vgg:1:8", "resnet:1:64"))
def test_wrong_case(case, capsys):
    with pytest.raises(SystemExit):
        kernels.main(["--floors", "--case", case])
    assert repr(case) in capsys.readouterr().err


def test_limits_are_those_of_the_device(tmp_path, monkeypatch):
    run = records.Run(torch.device("cpu"))
    names = {"what": "copy", "precision": None, "q20_s": 1, "median_s": 1, "q80_s": 1}
    for rate, device in ((5e12, run.context["device"]), (1e12, "another")):
        records.append(tmp_path / "ceilings.jsonl", {**names, "bytes_per_s": rate, **run.context, "device": device})
    assert kernels.machine_limits(tmp_path / "kernels.jsonl", run).bytes_per_s == 5e12
    measured = {**names, "bytes_per_s": 7e12}
    monkeypatch.setattr(kernels.ceilings, "measure", lambda *_: [measured])
    assert kernels.machine_limits(tmp_path / "elsewhere" / "kernels.jsonl", run).bytes_per_s == 7e12


def test_a_failure_keeps_no_record_back(tmp_path, monkeypatch, capsys):
    """A provider that fails has a record of its error, and the next is profiled."""

    def measure(case, mode, name, *_):
        if name == "ours":
            raise RuntimeError("as always")
        return kernels.rows(two_calls(), 2, 1e-3, [], "bfloat16", LIMITS)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(records, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(kernels, "images", lambda *_: ())
    monkeypatch.setattr(kernels.end_to_end, "oracle", lambda *_: None)
    monkeypatch.setattr(kernels, "machine_limits", lambda *_: LIMITS)
    monkeypatch.setattr(kernels, "measure", measure)
    file = tmp_path / "kernels.jsonl"
    command = ["--mode", "forward", "--json", str(file), "--provider", "ours", "ours, bfloat16", "--case", str(SMALL)]
    command += ["--precision", "float32", "tf32", "bfloat16"]
    assert kernels.main(command) == 1
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["provider"] for record in found] == ["ours"] + ["ours, bfloat16"] * 4
    assert found[0]["error"] == "RuntimeError: as always"
    assert all(record["device"] == "a GPU" and "torch" in record and "commit" in record for record in found)
    assert "failed: RuntimeError: as always" in capsys.readouterr().out
