"""The network that the options ask for, applied to uint8 images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lpips_fast._checks import some
from lpips_fast.checkpoints import Checkpoint, load_any
from lpips_fast.cli import processes
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.reading import Pair
from lpips_fast.cli.settings import Settings
from lpips_fast.diversity import Sample, sampled
from lpips_fast.lpips import LPIPS
from lpips_fast.pairwise import embed
from lpips_fast.sketch import Sketch
from lpips_fast.trunk.convolution import allows_tf32
from lpips_fast.trunk.nets import ALIASES
from lpips_fast.weights.formats import SeveralError

# Decoded images wait in memory for a full batch. They go through the network at the latest when they hold this many
# pixels, as many as 16 images of 512 x 512.
_PIXELS_AT_ONCE = 1 << 22


def make_lpips(settings: Settings, **options: Any) -> LPIPS:
    """Makes the LPIPS that the settings ask for, on its device.

    Args:
        settings: the options of the command.
        options: more arguments of `LPIPS`.

    Raises:
        UsageError: the weights or the device cannot be used.
    """
    device = find_device(settings.device)
    options |= {
        "version": settings.version,
        "precision": settings.precision,
        "check_range": False,  # pixels are bytes, scaled here; --no-normalize leaves [0, 1] on purpose
    }
    if settings.trunk_weights is not None:
        options["trunk_weights"] = settings.trunk_weights
    try:
        if settings.weights is None:
            return LPIPS(net=settings.net, **options).to(device)
        return _checkpoint(settings, settings.weights).module(**options).to(device)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def _checkpoint(settings: Settings, path: Path) -> Checkpoint:
    """Reads the file of --weights. Errors name the options of the command line, where `LPIPS` names its arguments."""
    try:
        found = load_any(path, ALIASES[settings.net])
    except SeveralError as error:
        raise UsageError(
            f"--weights {path} has several LPIPS: convert one first, lpips-fast convert {path} one.pth --to lpips "
            f"--prefix PREFIX, where PREFIX is one of {some(error.prefixes)}"
        ) from error
    if found.linear is None:
        raise UsageError(f"--weights {path} has no linear weights")
    if found.trunk is not None and settings.trunk_weights is not None:
        raise UsageError(f"--weights {path} has a trunk, too: leave out --trunk-weights")
    return found


class Model:
    """LPIPS of uint8 images [H, W, 3]."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lpips = make_lpips(settings)
        self.device = self.lpips.scaling_layer.shift.device

    @property
    def precision(self) -> str:
        """The precision of the trunk, where `inherit` is what it means on the device."""
        if self.settings.precision != "inherit":
            return self.settings.precision
        return "tf32" if self.device.type == "cuda" and allows_tf32(None) else "float32"

    @property
    def min_side(self) -> int:
        return self.lpips.net.spec.min_size

    def too_small(self, height: int, width: int) -> str | None:
        """Says why images of this size are too small for the net; None if they are not."""
        if min(height, width) >= self.min_side:
            return None
        return f"{width} x {height} pixels; net {self.settings.net!r} needs sides of at least {self.min_side}"

    def tensor(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images of one size as float32 [N, 3, H, W] on the device, in [-1, 1], or in [0, 1] with --no-normalize."""
        stack = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)
        stack = stack.to(torch.float32, memory_format=torch.contiguous_format)
        # 2v - 255 is exact, so this rounds once, as `im2tensor` does.
        return stack.mul_(2).sub_(255).div_(255) if self.settings.normalize else stack.div_(255)

    def weight(self, masks: Sequence[np.ndarray | None]) -> Tensor | None:
        """Masks uint8 [H, W] as weights of pixels in [0, 1], float32 [N, 1, H, W]; None if all masks are None."""
        if masks[0] is None:
            return None
        return torch.from_numpy(np.stack(cast(Sequence[np.ndarray], masks))).to(self.device)[:, None].float().div_(255)

    @torch.inference_mode()
    def distances(self, pairs: Sequence[Pair]) -> list[float]:
        """The distance of each pair. All pairs have one size."""
        images0, images1, masks = zip(*pairs, strict=True)
        return self.lpips(self.tensor(images0), self.tensor(images1), weight=self.weight(masks)).flatten().tolist()

    def outcomes(self, pairs: Iterable[tuple[int, Pair | str]]) -> dict[int, float | str]:
        """The distance of each pair, by its number, or a string that says why there is none.

        Args:
            pairs: numbers and pairs. A string in the place of a pair says why it could not be read.

        Raises:
            ReadError: a pair has no distance, with --strict.
        """
        outcomes: dict[int, float | str] = {}

        def readable() -> Iterator[tuple[int, Pair]]:
            for i, pair in pairs:
                if isinstance(pair, str):
                    why = pair
                elif small := self.too_small(*pair.image0.shape[:2]):
                    why = small
                else:
                    yield i, pair
                    continue
                if self.settings.strict:
                    raise ReadError(why)
                outcomes[i] = " ".join(why.split())

        for batch in _by_size(readable()):
            indices, of_one_size = zip(*batch, strict=True)
            for i, value in zip(indices, self.distances(of_one_size), strict=True):
                outcomes[i] = value if math.isfinite(value) else "the distance is not finite"
        return outcomes

    @torch.inference_mode()
    def layers(self, pair: Pair) -> tuple[float, list[float]]:
        """The distance of a pair, and each layer's part of it."""
        images = self.tensor([pair.image0]), self.tensor([pair.image1])
        value, parts = self.lpips(*images, retPerLayer=True, weight=self.weight([pair.mask]))
        return value.item(), [part.item() for part in parts]

    @torch.inference_mode()
    def maps(self, pair: Pair) -> tuple[np.ndarray, list[np.ndarray]]:
        """The map [H, W] of a pair, and each layer's part of it. All are multiplied by the mask, if there is one."""
        self.lpips.spatial = True
        try:
            value, parts = self.lpips(self.tensor([pair.image0]), self.tensor([pair.image1]), retPerLayer=True)
        finally:
            self.lpips.spatial = False
        weight = self.weight([pair.mask])
        total, *of_layers = ((found if weight is None else found * weight)[0, 0] for found in (value, *parts))
        return total.cpu().numpy(), [part.cpu().numpy() for part in of_layers]

    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """The embeddings [N, D] of images of one size."""
        return embed(self.lpips, _Tensors(self, images))

    def sample(self, images: Sequence[np.ndarray], sketch: Sketch) -> Sample:
        """What the mean distance needs to know of images of one size."""
        size = torch.Size(images[0].shape[:2])
        return sampled(self.lpips, "images", _Tensors(self, images), size, False, sketch)


class _Tensors:
    """Images that become tensors a slice at a time."""

    def __init__(self, model: Model, images: Sequence[np.ndarray]) -> None:
        self.model, self.images = model, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.model.tensor(self.images[rows])


def find_device(name: str) -> torch.device:
    """The device that --device names.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = f"cuda:{processes.local_rank()}" if processes.count() > 1 else "cuda"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def _by_size(pairs: Iterable[tuple[int, Pair]]) -> Iterator[list[tuple[int, Pair]]]:
    """Groups pairs by the size of their images. Groups go on once they hold _PIXELS_AT_ONCE together."""
    groups: dict[tuple[int, ...], list[tuple[int, Pair]]] = {}
    pixels = 0
    for number, pair in pairs:
        shape = pair.image0.shape
        groups.setdefault(shape, []).append((number, pair))
        pixels += shape[0] * shape[1]
        if pixels >= _PIXELS_AT_ONCE:
            yield from groups.values()
            groups, pixels = {}, 0
    yield from groups.values()
