"""The steps of the demo."""

from __future__ import annotations

import time
from importlib import resources
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm import tqdm

from lpips_fast import images
from lpips_fast.bapps.distortions import DISTORTIONS
from lpips_fast.demo.speed import PAIRS, SIZE, Comparison, compare
from lpips_fast.head import backends
from lpips_fast.lpips import LPIPS
from lpips_fast.trunk.nets import ALIASES
from lpips_fast.weights.published import read_trunk_weights

SAMPLES = ("landscape", "marble", "spheres")


class Optimised(NamedTuple):
    target: np.ndarray
    start: np.ndarray
    result: np.ndarray
    losses: list[float]


def main(net: str = "squeeze", steps: int = 60, output: str | PathLike[str] = "demo.png") -> None:
    """Prints distances, optimises an image, compares with plain torch, and writes one picture.

    Args:
        net: the trunk, 'alex', 'vgg' or 'squeeze' (whose weights are the smallest download, 5 MB).
        steps: of the optimisation.
        output: the picture's path; its suffix says the format.
    """
    started = time.perf_counter()
    torch.manual_seed(0)
    print("The head's backends:")
    for name, reason in backends.backends().items():
        print(f"  {name:10} {'ready' if reason is None else 'not here: ' + reason}")
    module, calibrated = load(net)
    samples = {name: load_sample(name) for name in SAMPLES}
    print_distances(module, samples, calibrated)
    maps = distance_maps(module, samples["spheres"])
    optimised = optimise(module, samples["landscape"], steps)
    print(f"Optimised: LPIPS {optimised.losses[0]:.4f} -> {optimised.losses[-1]:.4f} in {steps} steps.")
    backend, comparisons = compare(rounds=3)
    print_comparisons(backend, comparisons)

    from lpips_fast.demo.picture import draw  # here, for matplotlib is slow to import

    draw(output, net, calibrated, samples["spheres"], maps, optimised, comparisons)
    print(f"\nWrote {output} after {time.perf_counter() - started:.0f} s.")


def load(net: str) -> tuple[LPIPS, bool]:
    """LPIPS and whether it is calibrated: with a random trunk where there is no way to the trained one."""
    try:
        state = read_trunk_weights(ALIASES[net], None, progress=True)
    except RuntimeError as error:
        print(f"\n{error}\n\nGoing on with a RANDOM trunk: the distances below are uncalibrated.")
        return LPIPS(net=net, pnet_rand=True), False
    return LPIPS(net=net, trunk_weights=state), True


def load_sample(name: str) -> np.ndarray:
    """A sample image, uint8 [256, 256, 3]."""
    with resources.as_file(resources.files(__package__) / "images" / f"{name}.png") as path:
        return images.load_image(path)


def print_distances(module: LPIPS, samples: dict[str, np.ndarray], calibrated: bool) -> None:
    note = "" if calibrated else ", UNCALIBRATED: random trunk"
    print(f"\nLPIPS ({module.pnet_type}{note}) of an image and its distorted version; the lower, the more alike:")
    print(f"  {'':10}" + "".join(f"{name:>14}" for name in DISTORTIONS))
    for name, sample in samples.items():
        in0 = images.im2tensor(sample)
        in1 = torch.cat([images.im2tensor(distort(sample)) for distort in DISTORTIONS.values()])
        with torch.no_grad():
            values = module(in0, in1).flatten().tolist()
        print(f"  {name:10}" + "".join(f"{value:14.4f}" for value in values))
    print()


def distance_maps(module: LPIPS, sample: np.ndarray) -> dict[str, tuple[np.ndarray, float, Tensor]]:
    """For each distortion its image, its LPIPS and the map of where the distance comes from, [H, W]."""
    module.spatial = True
    found = {}
    for name, distort in DISTORTIONS.items():
        distorted = distort(sample)
        with torch.no_grad():
            distance_map = module(images.im2tensor(sample), images.im2tensor(distorted))[0, 0]
        found[name] = (distorted, distance_map.mean().item(), distance_map)
    module.spatial = False
    return found


def optimise(module: LPIPS, target: np.ndarray, steps: int) -> Optimised:
    """Brings a blurred image back to the target by Adam on its pixels, LPIPS the only loss."""
    start = np.asarray(Image.fromarray(target).filter(ImageFilter.GaussianBlur(5)))
    in1 = images.im2tensor(target)
    pixels = images.im2tensor(start).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=0.02)
    features = module.features(in1)
    losses = []
    with tqdm(range(steps), desc="optimising an image against LPIPS", unit="step") as bar:
        for _ in bar:
            loss = module(pixels, features).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(-1, 1)
            losses.append(loss.item())
            bar.set_postfix(LPIPS=f"{losses[-1]:.4f}")
    return Optimised(target, start, images.tensor2im(pixels), losses)


def print_comparisons(backend: str, comparisons: list[Comparison]) -> None:
    print(
        f"\nAgainst plain torch, float32 on the CPU, {torch.get_num_threads()} thread(s), VGG16, {PAIRS} "
        f"pair{'s' * (PAIRS > 1)} of {SIZE} x {SIZE} (head: {backend}):"
    )
    print(f"  {'':27}{'lpips_fast':>12}{'plain torch':>13}{'speed':>8}{'difference: value':>20}{'gradient':>10}")
    for c in comparisons:
        gradient = "" if c.gradient_difference is None else f"{c.gradient_difference:.0e}"
        print(
            f"  {c.what:27}{1e3 * c.seconds:9.1f} ms{1e3 * c.plain_seconds:10.1f} ms{c.ratio:6.1f} x"
            f"{c.difference:20.0e}{gradient:>10}"
        )
    print("  VGG's trunk is random here. Where a ReLU is within rounding of 0 it may fall either way in float32,")
    print("  and a gradient jumps: that is the difference between gradients, in plain torch as well.")
