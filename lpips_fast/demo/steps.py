"""What the demo shows of LPIPS: distances of distorted images, their maps, and an image optimised against LPIPS."""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm import tqdm

from lpips_fast import images
from lpips_fast.bapps.distortions import DISTORTIONS
from lpips_fast.lpips import LPIPS
from lpips_fast.trunk.nets import ALIASES
from lpips_fast.weights.trunk_files import provide

SAMPLES = ("landscape", "marble", "spheres")


class Distorted(NamedTuple):
    """A distorted image and how far it is from its reference."""

    name: str  # of the distortion
    image: np.ndarray  # uint8 [H, W, 3]
    distance: float  # LPIPS
    distance_map: Tensor  # [H, W], each layer's map enlarged: its mean is near the distance
    psnr: float  # dB


class Optimised(NamedTuple):
    target: np.ndarray
    start: np.ndarray
    result: np.ndarray
    losses: list[float]  # at the start and after each step


def load(net: str, source: str = "auto") -> tuple[LPIPS, bool]:
    """LPIPS and whether it is calibrated: the trunk is random if its weights cannot be had from the source."""
    try:
        path = provide(ALIASES[net], source)
    except RuntimeError as error:
        print(f"\n{error}\n\nGoing on with a RANDOM trunk of {net}: its distances are uncalibrated.")
        return LPIPS(net=net, pnet_rand=True), False
    print(f"ImageNet's weights of {net}, so distances are calibrated: {path}")
    return LPIPS(net=net), True


def load_sample(name: str) -> np.ndarray:
    """A sample image, uint8 [256, 256, 3]."""
    with resources.as_file(resources.files(__package__) / "images" / f"{name}.png") as path:
        return images.load_image(path)


def distances(module: LPIPS, sample: np.ndarray) -> list[float]:
    """LPIPS of the sample and each of its distorted versions, in the order of DISTORTIONS."""
    distorted = torch.cat([images.im2tensor(distort(sample)) for distort in DISTORTIONS.values()])
    with torch.no_grad():
        return module(images.im2tensor(sample), distorted).flatten().tolist()


def distance_maps(module: LPIPS, sample: np.ndarray) -> list[Distorted]:
    """The distorted versions of the sample with the maps of their distances, nearest first."""
    found = []
    for (name, distort), distance in zip(DISTORTIONS.items(), distances(module, sample), strict=True):
        image = distort(sample)
        module.spatial = True
        with torch.no_grad():
            distance_map = module(images.im2tensor(sample), images.im2tensor(image))[0, 0]
        module.spatial = False
        found.append(Distorted(name, image, distance, distance_map, _psnr(sample, image)))
    return sorted(found, key=lambda distorted: distorted.distance)


def _psnr(image0: np.ndarray, image1: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((image0.astype(float) - image1) ** 2)))


def optimise(module: LPIPS, target: np.ndarray, steps: int) -> Optimised:
    """Brings a blurred image back to the target by Adam on its pixels; LPIPS is the only loss."""
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
    with torch.no_grad():
        losses.append(module(pixels, features).item())
    return Optimised(target, start, images.tensor2im(pixels), losses)
