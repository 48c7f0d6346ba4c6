"""A small data set laid out as BAPPS, with a judge whose taste is known: for tests, and to try the training.

The judge is an LPIPS with distances d0 and d1 for a triplet. A person finds p1 nearer with probability

    P(p1) = d0^k / (d0^k + d1^k)

(the choice model of Bradley and Terry, Biometrika 1952, for strengths d^-k). A person finds two images the same with
P(same) = t^k / (t^k + d^k), where t is the median distance. The data set has the share among a few such people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from lpips_fast._files import making_folder
from lpips_fast.bapps.datasets import PATCH, JNDDataset, TwoAFCDataset, unreadable
from lpips_fast.bapps.distortions import blurred, compressed, noisy, recoloured, shifted
from lpips_fast.images import im2tensor, image_size, load_image, resize_image
from lpips_fast.lpips import LPIPS
from lpips_fast.weights.files import save_state_dict
from lpips_fast.weights.published import linear_state_dict

SUBSET = "synthetic"
PEOPLE = 5  # how many judge each sample
_SHARPNESS = 6.0  # k: with d0 = 2 d1, 98% prefer p1
_BATCH = 32


def synthesize(
    root: str | PathLike[str],
    judge: LPIPS,
    *,
    triplets: int = 1000,
    images: Sequence[str | PathLike[str]] | None = None,
    seed: int = 0,
    advance: Callable[[int], object] = lambda samples: None,
) -> None:
    """Writes `triplets` of 2afc/train/synthetic, a quarter as many of 2afc/val and jnd/val, and judge.safetensors.

    References are patches of the given images, or are drawn. The others are random distortions of them: blur, noise,
    JPEG, shift or colour. `root` appears when all of it is written. The same arguments give the same files.

    Args:
        root: a folder that does not exist yet.
        judge: its distances decide, and its linear weights go into judge.safetensors.
        triplets: the number of training triplets, at least 4.
        images: files, at least 64 pixels wide and high; None draws the images.
        seed: the seed of the images, distortions and votes.
        advance: called after each batch with its number of samples.

    Raises:
        FileExistsError: root exists already.
        ValueError: there are too few triplets, or an image is too small.
        SampleError: an image cannot be read.
        OSError: root cannot be written.
    """
    if triplets < 4:
        raise ValueError(f"triplets must be at least 4, got {triplets}")
    for path in images or ():
        with unreadable():
            width, height = image_size(path)
        if min(width, height) < PATCH:
            raise ValueError(f"{path} must be at least {PATCH} x {PATCH} pixels, it is {width} x {height}")
    kinds: list[tuple[type[TwoAFCDataset | JNDDataset], str, int]] = [
        (TwoAFCDataset, "train", triplets),
        (TwoAFCDataset, "val", triplets // 4),
        (JNDDataset, "val", triplets // 4),
    ]
    with making_folder(Path(root)) as part:
        for number, (kind, split, n) in enumerate(kinds):
            rng = np.random.default_rng((seed, number))
            for samples in _write(part / kind.kind / split / SUBSET, kind, n, judge, images, rng):
                advance(samples)
        weights = linear_state_dict(judge.linear_weights() or ())
        save_state_dict(part / "judge.safetensors", weights)


def give_taste(fn: LPIPS, seed: int = 0) -> None:
    """Gives LPIPS random linear weights of a marked taste: some layers and channels count far more than others."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for weight in fn.linear_weights() or ():
            layer, channels = rng.lognormal(sigma=3), rng.lognormal(sigma=3, size=weight.shape)
            weight.copy_(torch.from_numpy(layer * channels / weight.numel()))


def _write(
    folder: Path,
    kind: type[TwoAFCDataset | JNDDataset],
    n: int,
    judge: LPIPS,
    images: Sequence[str | PathLike[str]] | None,
    rng: np.random.Generator,
) -> Iterator[int]:
    """Writes n samples; yields the size of each batch whose images have been written."""
    for name in (*kind.images, kind.judgement):
        (folder / name).mkdir(parents=True)
    strength = 1.0 if kind is TwoAFCDataset else 0.3
    distances = []
    for start in range(0, n, _BATCH):
        batch = []
        for i in range(start, min(start + _BATCH, n)):
            patch = _drawn(rng) if images is None else _cropped(_any(images, rng), rng)
            batch.append([patch, *(_distorted(patch, rng, strength) for _ in kind.images[1:])])
            for part, image in zip(kind.images, batch[-1], strict=True):
                Image.fromarray(image).save(folder / part / f"{i:06}.png")
        distances.append(_distances(judge, batch))
        yield len(batch)
    d = np.concatenate(distances).T
    this, other = d if kind is TwoAFCDataset else (np.median(d), d[0])
    chance = 1 / (1 + (other / np.maximum(this, 1e-12)) ** _SHARPNESS)
    for i, votes in enumerate(rng.binomial(PEOPLE, chance)):
        np.save(folder / kind.judgement / f"{i:06}.npy", np.array([votes / PEOPLE]))


@torch.inference_mode()
def _distances(judge: LPIPS, batch: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """The judge's distances from the first image of each sample to its others, [samples, others]."""
    device = judge.scaling_layer.shift.device
    original, *others = (torch.cat([im2tensor(image) for image in images]).to(device) for images in zip(*batch))
    features = judge.features(original)
    return torch.stack([judge(other, features).flatten() for other in others], dim=1).double().cpu().numpy()


def _any(images: Sequence[str | PathLike[str]], rng: np.random.Generator) -> np.ndarray:
    with unreadable():
        return load_image(images[int(rng.integers(len(images)))])


def _cropped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patch from a square at a random place and of a random size."""
    side = int(rng.integers(PATCH, min(image.shape[:2]), endpoint=True))
    y, x = (int(rng.integers(0, length - side, endpoint=True)) for length in image.shape[:2])
    return resize_image(image[y : y + side, x : x + side], PATCH, PATCH)


def _drawn(rng: np.random.Generator) -> np.ndarray:
    """A patch of coloured fractal noise, similar to natural textures, with a few polygons for sharp edges."""
    frequency = np.hypot(np.fft.fftfreq(PATCH)[:, None], np.fft.rfftfreq(PATCH)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.normal(size=(3, PATCH, PATCH)))
    fields = np.fft.irfft2(noise / frequency ** rng.uniform(0.7, 2.2), s=(PATCH, PATCH))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    colours = np.tensordot(rng.normal(0, 25, (3, 3)), fields, axes=1) + rng.uniform(60, 200, (3, 1, 1))
    picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(0, 4)):
        corners = rng.normal(rng.uniform(0, PATCH, 2), 15, (int(rng.integers(3, 6)), 2))
        draw.polygon([tuple(corner) for corner in corners.tolist()], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(picture)


def _distorted(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The image with one or two distortions of random kind and amount. `strength` scales the amounts."""
    for kind in rng.choice(5, size=rng.integers(1, 3), replace=False):
        amount = strength * rng.uniform(0.2, 1.0)
        if kind == 0:
            image = blurred(image, 3 * amount)
        elif kind == 1:
            image = noisy(image, 50 * amount, seed=int(rng.integers(2**32)))
        elif kind == 2:
            image = compressed(image, int(5 + 60 * (1 - amount)))
        elif kind == 3:
            image = shifted(image, round(1 + 5 * amount))
        else:
            red, green, blue = (60 * amount * rng.uniform(-1, 1, 3)).tolist()
            image = recoloured(image, (red, green, blue))
    return image
