"""The error of each precision of the trunk, on real images: value, ranking and gradient, against float64.

    python -m benchmarks.precision [--json precision.jsonl] [IMAGE ...]
    python -m benchmarks.precision --table precision.jsonl

Two corners of each image are compared with their distortions: blur, noise, a shift, JPEG. By default the images are the
package's own. The weights are ImageNet's if they are at hand; otherwise the trunk is random, and the row says so.
`ranking` is Kendall's tau between the order of all pairs and their order in float64: 1 is the same order. The relative
errors have a median, a 90% quantile and a maximum over the pairs; a gradient's is the norm of the difference. float32
is measured for `lpips`, too, if it is installed.

Most of a gradient's error in float32 comes from single ReLUs: an output near 0 falls on the other side, and one of
thousands of paths of the gradient opens or closes. Many pairs have none, some have one or two, so that the median over
a few pairs depends on chance. `expected_flips` is the mean number of such outputs of a distorted image: the sum over
layers of the density of outputs near 0 times their mean error. Chance has little effect on it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import lpips_fast
from lpips_fast.bapps.distortions import DISTORTIONS
from lpips_fast.bench.records import Run, append

IMAGES = sorted((Path(lpips_fast.__file__).parent / "demo" / "images").glob("*.png"))
NETS = ("alex", "squeeze", "vgg")
NEAR = 1e-2  # of the root mean square of a layer's outputs: an output is near 0
QUANTILES = {"median": 0.5, "q90": 0.9, "max": 1.0}


def pairs_of(image, size):
    """(reference [1, 3, size, size], its distortions [4, 3, size, size]) of two corners of an image, uint8."""
    for corner in (image[:size, :size], image[-size:, -size:]):
        distorted = [lpips_fast.im2tensor(np.array(distort(corner))) for distort in DISTORTIONS.values()]
        yield lpips_fast.im2tensor(corner), torch.cat(distorted)


def kendall(a, b):
    upper = torch.triu_indices(len(a), len(a), offset=1)
    signs = [torch.sign(x[upper[0]] - x[upper[1]]) for x in (a, b)]
    return (signs[0] * signs[1]).mean().item()


def values_and_gradients(fn, pairs, dtype, device):
    values, grads = [], []
    for reference, others in pairs:
        for other in others:
            x = other[None].to(device, dtype).requires_grad_()
            value = fn(x, reference.to(device, dtype)).flatten()
            values.append(value.detach().double().cpu())
            grads.append(torch.autograd.grad(value.sum(), x)[0].double().cpu().flatten(1))
    return torch.cat(values), torch.cat(grads)


def relu_outputs(fn, image):
    """The outputs of all ReLUs of a trunk."""
    with torch.no_grad():
        scaling = fn.scaling_layer
        if isinstance(fn, lpips_fast.LPIPS):
            plan = fn.net.plan
            fn.net.plan = tuple(step._replace(tap=True) for step in plan)
            try:
                return fn.net(image, affine=(scaling.shift, scaling.scale))
            finally:
                fn.net.plan = plan
        outputs = []
        relus = [module for module in fn.net.modules() if isinstance(module, torch.nn.ReLU)]
        hooks = [relu.register_forward_hook(lambda _module, _x, y: outputs.append(y)) for relu in relus]
        fn.net(scaling(image))
        for hook in hooks:
            hook.remove()
        return outputs


def expected_flips(fn, exact, pairs, device):
    flips, images = 0.0, [image[None].to(device) for _, others in pairs for image in others]
    for image in images:
        for y, expected in zip(relu_outputs(fn, image), relu_outputs(exact, image.double()), strict=True):
            near = NEAR * expected.square().mean().sqrt()
            density = ((expected > 0) & (expected < near)).sum() / near
            # The error of more outputs than those, because they are few.
            small = (expected > 0) & (expected < 10 * near)
            if small.any():
                flips += (density * (y.double() - expected)[small].abs().mean()).item()
    return flips / len(images)


def quantiles(errors):
    return {name: errors.quantile(q).item() for name, q in QUANTILES.items()}


def measure(net, pairs, device):
    """Yields a record for each precision and implementation."""
    try:
        exact, weights = lpips_fast.LPIPS(net=net, verbose=False), "ImageNet"
    except RuntimeError:
        torch.manual_seed(0)
        exact, weights = lpips_fast.LPIPS(net=net, pnet_rand=True), "random"
    state = exact.state_dict()
    exact = exact.double().to(device)
    expected, expected_grads = values_and_gradients(exact, pairs, torch.float64, device)

    def ours(precision, cpu_conv):
        options = {"precision": precision, "cpu_conv": cpu_conv}
        return lpips_fast.LPIPS(net=net, pnet_rand=True, verbose=False, **options)

    makers = {("lpips_fast", p, "direct"): ours for p in ("float32", "tf32", "bfloat16", "float16")}
    if device == "cpu":
        makers["lpips_fast", "float32", "winograd"] = ours
    if importlib.util.find_spec("lpips"):
        import lpips

        makers["lpips", "float32", None] = lambda *_: lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    for (package, precision, cpu_conv), make in makers.items():
        fn = make(precision, cpu_conv)
        fn.load_state_dict(state)
        fn = fn.to(device)
        found, grads = values_and_gradients(fn, pairs, torch.float32, device)
        record = {
            "net": net,
            "weights": weights,
            "package": package,
            "precision": precision,
            "cpu_conv": cpu_conv if device == "cpu" else None,
            "pairs": len(expected),
            "value_relative_error": quantiles(((found - expected) / expected).abs()),
            "ranking_kendall_tau": kendall(found, expected),
            "gradient_relative_error": quantiles((grads - expected_grads).norm(dim=1) / expected_grads.norm(dim=1)),
            "gradient_cosine": F.cosine_similarity(grads, expected_grads, dim=1).min().item(),
        }
        if precision == "float32":
            like = exact
            if package == "lpips":
                like = make().double().to(device)
                like.load_state_dict(state)
            record["expected_flips"] = expected_flips(fn, like, pairs, device)
        yield record


NAMES = {
    ("lpips", "float32", None): "float32, `lpips`",
    ("lpips_fast", "float32", "direct"): "float32, direct",
    ("lpips_fast", "float32", "winograd"): "float32, Winograd",
    ("lpips_fast", "bfloat16", "direct"): "bfloat16",
    ("lpips_fast", "float16", "direct"): "float16",
}


def short(error):
    return f"{error:.1e}".replace("e-0", "e-")


def print_table(path):
    """Two tables of a CPU's last records: the largest errors of each precision, and gradients and values in float32."""
    last = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        last[record["net"], record["package"], record["precision"], record["cpu_conv"]] = record
    nets = [net for net in NETS if any(key[0] == net for key in last)]
    print("| | " + " | ".join(f"{net}: value | ranking | gradient" for net in nets) + " |")
    print("|---" * (3 * len(nets) + 1) + "|")
    names = {key: name for key, name in NAMES.items() if all((net, *key) in last for net in nets)}
    for key, name in names.items():
        rows = [last[(net, *key)] for net in nets]
        cells = [
            f"{short(r['value_relative_error']['max'])} | {r['ranking_kendall_tau']:.4f} | {r['gradient_cosine']:.6f}"
            for r in rows
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| | gradient: median | 90% | largest | value: median | 90% | largest | expected flips |")
    print("|---" * 8 + "|")
    for net in nets:
        for key, name in names.items():
            if key[1] == "float32":
                r = last[(net, *key)]
                errors = [r[what][q] for what in ("gradient_relative_error", "value_relative_error") for q in QUANTILES]
                cells = " | ".join(map(short, errors))
                print(f"| {net}, {name.split(', ')[1]} | {cells} | {r['expected_flips']:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, default=IMAGES)
    parser.add_argument("--net", action="append", choices=NETS)
    parser.add_argument("--size", type=int, default=192, help="height and width of the corners")
    parser.add_argument("--json", type=Path, help="file to append records to, a line each")
    parser.add_argument("--table", type=Path, help="print the tables of a file of records, and measure nothing")
    args = parser.parse_args()
    if args.table:
        print_table(args.table)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = Run(torch.device(device))
    pairs = [pair for path in args.images for pair in pairs_of(lpips_fast.load_image(path), args.size)]
    for net in args.net or NETS:
        for record in measure(net, pairs, device):
            value, gradient = (record[f"{what}_relative_error"] for what in ("value", "gradient"))
            print(
                f"{net:8s} {record['weights']:9s} {record['package']:11s} {record['precision']:9s} "
                f"{record['cpu_conv'] or '':9s} value {value['median']:.1e} {value['max']:.1e}  "
                f"ranking {record['ranking_kendall_tau']:.4f}  gradient {gradient['median']:.1e} {gradient['max']:.1e}"
                f"  cosine {record['gradient_cosine']:.7f}  flips {record.get('expected_flips', float('nan')):.2f}",
                flush=True,
            )
            if args.json:
                append(args.json, {**record, "size": args.size, **run.context})


if __name__ == "__main__":
    main()
