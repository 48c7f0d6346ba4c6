"""The demo as a program: it runs the steps, prints what they give and writes the picture."""

from __future__ import annotations

import time
from os import PathLike

import numpy as np
import torch

from lpips_fast import images
from lpips_fast.bapps.distortions import DISTORTIONS
from lpips_fast.demo.speed import Comparison, compare
from lpips_fast.demo.steps import SAMPLES, distance_maps, distances, load, load_sample, optimise
from lpips_fast.head import backends
from lpips_fast.lpips import LPIPS
from lpips_fast.trunk.nets import ALIASES


def main(net: str = "alex", steps: int = 60, output: str | PathLike[str] = "demo.png", small: bool = False) -> None:
    """Prints distances, optimises an image, compares with plain torch, and writes one picture.

    Args:
        net: the trunk, 'alex', 'vgg' or 'squeeze'. The speed is VGG16's in any case.
        steps: of the optimisation.
        output: the picture's path; its suffix says the format.
        small: whether to stop after the distances and draw them alone, 900 pixels wide.
    """
    started = time.perf_counter()
    torch.manual_seed(0)
    print("The head's backends:")
    for name, reason in backends.backends().items():
        print(f"  {name:10} {'ready' if reason is None else 'not here: ' + reason}")
    module, calibrated = load(net)
    samples = {name: load_sample(name) for name in SAMPLES}
    _print_distances(module, samples, calibrated)
    distorted = distance_maps(module, samples["spheres"])

    from lpips_fast.demo import picture  # not earlier: matplotlib is slow to import

    if small:
        picture.draw_distances(output, net, calibrated, samples["spheres"], distorted)
    else:
        optimised = optimise(module, samples["landscape"], steps)
        print(f"Optimised: LPIPS {optimised.losses[0]:.4f} -> {optimised.losses[-1]:.4f} in {steps} steps.")
        vgg, trained = module, calibrated
        if ALIASES[net] != "vgg":  # the index is not asked again if it has just failed
            vgg, trained = load("vgg", "package-index") if calibrated else (LPIPS(net="vgg", pnet_rand=True), False)
        in0, in1 = images.im2tensor(samples["spheres"]), images.im2tensor(distorted[0].image)
        backend, comparisons = compare(vgg, in0, in1, rounds=3)
        _print_comparisons(backend, comparisons, trained)
        picture.draw(output, net, calibrated, samples["spheres"], distorted, optimised, comparisons)
    print(f"\nWrote {output} after {time.perf_counter() - started:.0f} s.")


def _print_distances(module: LPIPS, samples: dict[str, np.ndarray], calibrated: bool) -> None:
    note = "" if calibrated else ", UNCALIBRATED: random trunk"
    print(f"\nLPIPS ({module.pnet_type}{note}) of an image and its distorted version; the lower, the more alike:")
    print(f"  {'':10}" + "".join(f"{name:>14}" for name in DISTORTIONS))
    for name, sample in samples.items():
        print(f"  {name:10}" + "".join(f"{value:14.4f}" for value in distances(module, sample)))
    print()


def _print_comparisons(backend: str, comparisons: list[Comparison], trained: bool) -> None:
    print(
        f"\nAgainst plain torch, float32 on the CPU, {torch.get_num_threads()} thread(s), VGG16 with "
        f"{'ImageNet' if trained else 'RANDOM'} weights, a pair of 256 x 256 (head: {backend}):"
    )
    print(f"  {'':27}{'lpips_fast':>12}{'plain torch':>13}{'speed':>8}{'difference: value':>20}{'gradient':>10}")
    for c in comparisons:
        gradient = "" if c.gradient_difference is None else f"{c.gradient_difference:.0e}"
        print(
            f"  {c.what:27}{1e3 * c.seconds:9.1f} ms{1e3 * c.plain_seconds:10.1f} ms{c.ratio:6.1f} x"
            f"{c.difference:20.0e}{gradient:>10}"
        )
    print("  Where a ReLU's input is within rounding of 0, float32 decides either way, and the gradient jumps: that is")
    print("  the difference between the gradients. Plain torch has it, too.")
