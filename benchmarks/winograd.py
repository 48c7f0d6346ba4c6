"""The trunk's 3x3 convolutions on the CPU, layer by layer: torch's direct convolution against Winograd's.

    python benchmarks/winograd.py --net vgg --size 256 --images 8 --threads 2 [--json winograd.jsonl]

Both run channels-last with bias and ReLU; pools are timed with the layer before them. Rows `dx` are the gradient to
the layer's input. GFLOP/s counts direct convolution's operations for both, so Winograd's may exceed the processor's
peak. The errors are root mean squares against float64, relative; nothing is timed where Winograd's is too large.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch.nn import functional as F

import lpips_fast
from lpips_fast import winograd

# net: (name, cin, cout, the feature map's size from the image's, what follows is a 2x2 pool)
LAYERS = {
    "vgg": [
        ("conv1_1", 3, 64, lambda s: s, False),
        ("conv1_2", 64, 64, lambda s: s, True),
        ("conv2_1", 64, 128, lambda s: s // 2, False),
        ("conv2_2", 128, 128, lambda s: s // 2, True),
        ("conv3_1", 128, 256, lambda s: s // 4, False),
        ("conv3_2", 256, 256, lambda s: s // 4, False),
        ("conv3_3", 256, 256, lambda s: s // 4, True),
        ("conv4_1", 256, 512, lambda s: s // 8, False),
        ("conv4_2", 512, 512, lambda s: s // 8, False),
        ("conv4_3", 512, 512, lambda s: s // 8, True),
        ("conv5_1", 512, 512, lambda s: s // 16, False),
        ("conv5_2", 512, 512, lambda s: s // 16, False),
        ("conv5_3", 512, 512, lambda s: s // 16, False),
    ],
    "alex": [
        ("conv3", 192, 384, lambda s: (s // 4 - 1) // 4, False),
        ("conv4", 384, 256, lambda s: (s // 4 - 1) // 4, False),
        ("conv5", 256, 256, lambda s: (s // 4 - 1) // 4, False),
    ],
    "squeeze": [
        ("fire2", 16, 64, lambda s: s // 4 - 1, False),
        ("fire4", 32, 128, lambda s: s // 8 - 1, False),
        ("fire6", 48, 192, lambda s: s // 16 - 1, False),
        ("fire8", 64, 256, lambda s: s // 16 - 1, False),
    ],
}
LARGEST_ERROR = 5e-6


def relative_error(actual, expected):
    return ((actual - expected).double().norm() / expected.double().norm()).item()


def forward_calls(x, weight, bias, pool):
    direct_weight = weight.to(memory_format=torch.channels_last)

    def direct():
        y = F.conv2d(x, direct_weight, bias, padding=1).relu_()
        return [y, F.max_pool2d(y, 2)] if pool else [y]

    if x.shape[1] <= 4:
        zeros, ones = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        filters, padded = winograd.first_filters(weight, bias)
        image = x.contiguous()
        return direct, lambda: torch.ops.lpips_fast.conv3x3_first_cpu(
            image, zeros, ones, filters, padded, weight.shape[0], False
        )
    filters = winograd.winograd_filters(weight)
    return direct, lambda: torch.ops.lpips_fast.conv3x3_fwd_cpu(x, filters, bias, pool, False)


def backward_calls(x, weight, d_y):
    filters = winograd.winograd_filters(weight, turned=True)
    turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    channels = weight.shape[1]
    return (
        lambda: [F.conv2d(d_y, turned, padding=1).mul_(x > 0)],
        lambda: [torch.ops.lpips_fast.conv3x3_bwd_cpu(d_y, filters, channels, None, x)],
    )


def measure(calls, repeats, clock):
    """Milliseconds of each call, interleaved: medians and 20/80 quantiles."""
    seconds = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, into in zip(calls, seconds, strict=True):
            start = clock()
            call()
            if repeat:
                into.append(clock() - start)
    quantiles = [statistics.quantiles(s, n=5, method="inclusive") for s in seconds]
    return [(1e3 * statistics.median(s), 1e3 * q[0], 1e3 * q[-1]) for s, q in zip(seconds, quantiles, strict=True)]


def cases(net, size, images, backward):
    generator = torch.Generator().manual_seed(0)
    for name, cin, cout, map_size, pool in LAYERS[net]:
        side = map_size(size)
        if side < 1:
            continue
        x = torch.randn(images, cin, side, side, generator=generator)
        x = (x if cin <= 4 else x.relu()).to(memory_format=torch.channels_last)
        weight = torch.randn(cout, cin, 3, 3, generator=generator) * (2 / (9 * cin)) ** 0.5
        bias = torch.randn(cout, generator=generator) * 0.1
        gflop = 2e-9 * images * side * side * 9 * cin * cout
        expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
        yield name, (images, cin, cout, side), gflop, forward_calls(x, weight, bias, pool and side > 1), expected
        if backward:
            d_y = torch.randn(images, cout, side, side, generator=generator).to(memory_format=torch.channels_last)
            turned = weight.flip(2, 3).transpose(0, 1)
            expected = F.conv2d(d_y.double(), turned.double(), padding=1).mul_(x > 0)
            yield f"{name} dx", (images, cin, cout, side), gflop, backward_calls(x, weight, d_y), expected


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=LAYERS, default="vgg")
    parser.add_argument("--size", type=int, default=256, help="side of the square images")
    parser.add_argument("--images", type=int, default=8, help="two for each pair")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--backward", action="store_true", help="time the gradients to the inputs, too")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for busy machines; with one thread")
    parser.add_argument("--json", help="file to add the records to, one a line")
    args = parser.parse_args()
    if not winograd.available():
        raise SystemExit(f"the compiled library is not there: {lpips_fast.backends()['cpu']}")
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter

    columns = (
        ("direct ms", 11),
        ("GFLOP/s", 9),
        ("error", 9),
        ("winograd ms", 13),
        ("GFLOP/s", 9),
        ("error", 9),
        ("ratio", 7),
    )
    print(f"{'layer':12}" + "".join(f"{title:>{width}}" for title, width in columns))
    totals = [0.0, 0.0]
    with torch.inference_mode():
        for name, shape, gflop, calls, expected in cases(args.net, args.size, args.images, args.backward):
            errors = [relative_error(call()[0], expected) for call in calls]
            if not errors[1] < LARGEST_ERROR:
                raise SystemExit(f"{name}: Winograd's relative error is {errors[1]:.1e}")
            times = measure(calls, args.repeats, clock)
            (direct, *_), (fast, *_) = times
            totals = [totals[0] + direct, totals[1] + fast]
            pays = "" if winograd.winograd_pays(*shape, shape[-1]) or shape[1] <= 4 else "  (direct by rule)"
            print(
                f"{name:12}{direct:11.2f}{gflop / direct * 1e3:9.0f}{errors[0]:9.1e}"
                f"{fast:13.2f}{gflop / fast * 1e3:9.0f}{errors[1]:9.1e}{direct / fast:7.2f}{pays}",
                flush=True,
            )
            if args.json:
                with open(args.json, "a") as file:
                    for mode, (median, q20, q80), error in zip(("direct", "winograd"), times, errors, strict=True):
                        record = {
                            "bench": "winograd", "net": args.net, "layer": name, "shape": shape, "dtype": "float32",
                            "layout": "channels_last", "mode": mode, "device": "cpu", "threads": args.threads,
                            "clock": "cpu" if args.cpu_time else "wall",
                            "ms": median, "ms_q20": q20, "ms_q80": q80, "error": error,
                            "torch": torch.__version__, "lpips_fast": lpips_fast.__version__,
                        }  # fmt: skip
                        print(json.dumps(record), file=file)
    print(f"{'all':12}{totals[0]:11.2f}{'':18}{totals[1]:13.2f}{'':18}{totals[0] / totals[1]:7.2f}")


if __name__ == "__main__":
    main()
