"""The error of each precision of the trunk, on real images: value, ranking and gradient, against float64.

    python -m benchmarks.precision [--json precision.jsonl] [IMAGE ...]

Images are distorted by noise and blur of several strengths. By default they are the package's own images. The weights
are ImageNet's if they are at hand; otherwise the trunk is random, and the row says so. `value` is the largest relative
error. `ranking` is Kendall's tau between the order of all pairs and their order in float64: 1 is the same order.
`gradient` is the smallest cosine with the gradient in float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import lpips_fast
from lpips_fast.bench.records import Run, append

IMAGES = sorted((Path(lpips_fast.__file__).parent / "demo" / "images").glob("*.png"))


def distorted(image):
    gen = torch.Generator().manual_seed(0)
    out = [image + s * torch.randn(image.shape, generator=gen) for s in (0.01, 0.03, 0.1, 0.3)]
    for k in (3, 5, 9, 17):
        out.append(F.avg_pool2d(F.pad(image, (k // 2,) * 4, mode="reflect"), k, stride=1))
    return torch.cat(out).clamp(-1, 1)


def kendall(a, b):
    upper = torch.triu_indices(len(a), len(a), offset=1)
    signs = [torch.sign(x[upper[0]] - x[upper[1]]) for x in (a, b)]
    return (signs[0] * signs[1]).mean().item()


def values_and_gradients(fn, pairs, dtype, device):
    values, grads = [], []
    for reference, others in pairs:
        x = others.to(device, dtype).requires_grad_()
        value = fn(x, reference.to(device, dtype)).flatten()
        values.append(value.detach().double().cpu())
        grads.append(torch.autograd.grad(value.sum(), x)[0].double().cpu().flatten(1))
    return torch.cat(values), torch.cat(grads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, default=IMAGES)
    parser.add_argument("--net", action="append", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--size", type=int, default=128, help="images are resized to it")
    parser.add_argument("--json", type=Path, help="file to append records to, a line each")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = Run(torch.device(device))
    pairs = []
    for path in args.images:
        image = lpips_fast.im2tensor(lpips_fast.load_image(path))
        image = F.interpolate(image, size=(args.size,) * 2, mode="bilinear", antialias=True)
        pairs.append((image, distorted(image)))
    for net in args.net or ("alex", "squeeze", "vgg"):
        try:
            exact, weights = lpips_fast.LPIPS(net=net, verbose=False), "ImageNet"
        except RuntimeError:
            torch.manual_seed(0)
            exact, weights = lpips_fast.LPIPS(net=net, pnet_rand=True), "random"
        state = exact.state_dict()
        expected, expected_grads = values_and_gradients(exact.double().to(device), pairs, torch.float64, device)
        for precision in ("float32", "tf32", "bfloat16", "float16"):
            for cpu_conv in ("direct", "winograd") if precision == "float32" and device == "cpu" else ("direct",):
                fn = lpips_fast.LPIPS(
                    net=net, pnet_rand=True, precision=precision, cpu_conv=cpu_conv, grad_in_forward=True
                )
                fn.load_state_dict(state)
                found, grads = values_and_gradients(fn.to(device), pairs, torch.float32, device)
                record = {
                    "net": net,
                    "weights": weights,
                    "precision": precision,
                    "cpu_conv": cpu_conv if device == "cpu" else None,
                    "size": args.size,
                    "pairs": len(expected),
                    "value_relative_error": ((found - expected) / expected).abs().max().item(),
                    "ranking_kendall_tau": kendall(found, expected),
                    "gradient_cosine": F.cosine_similarity(grads, expected_grads, dim=1).min().item(),
                }
                print(
                    f"{net:8s} {weights:9s} {precision:9s} {cpu_conv:9s} value {record['value_relative_error']:.1e}  "
                    f"ranking {record['ranking_kendall_tau']:.4f}  gradient {record['gradient_cosine']:.7f}",
                    flush=True,
                )
                if args.json:
                    append(args.json, {**record, **run.context})


if __name__ == "__main__":
    main()
