"""Two-alternative forced choice (2AFC) and just noticeable differences (JND) as torch data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpips_fast.images import im2tensor, load_image

PATCH = 64  # height and width of BAPPS's images, in pixels


class Triplet(NamedTuple):
    """A judgement of which of two images is nearer to a reference. A DataLoader puts a batch dimension before each."""

    ref: Tensor  # [3, 64, 64] in [-1, 1]
    p0: Tensor
    p1: Tensor
    judge: Tensor  # [1, 1, 1], the share of people who found p1 nearer


class Pair(NamedTuple):
    """A judgement of whether two images, shown briefly, are the same."""

    p0: Tensor  # [3, 64, 64] in [-1, 1]
    p1: Tensor
    same: Tensor  # [1, 1, 1], the share of people who found them the same


Sample = TypeVar("Sample", Triplet, Pair)


class SampleError(ValueError):
    """A sample is incomplete, cannot be read or has wrong content. The message names the file."""


class Judgements(Dataset[Sample], Generic[Sample]):
    """The base of both kinds: a folder for each image of a sample, and one for the judgement."""

    kind: str
    images: tuple[str, ...]
    judgement: str
    sample: type[Sample]

    def __init__(self, root: str | PathLike[str], subsets: Sequence[str]) -> None:
        if not subsets:
            raise ValueError(f"subsets must name at least one, e.g. 'train/cnn', got {subsets!r}")
        self.root: Path = Path(root) / self.kind
        self.names: list[tuple[str, str]] = [(subset, name) for subset in subsets for name in self._complete(subset)]

    def __len__(self) -> int:
        return len(self.names)

    def files(self, i: int) -> list[Path]:
        """The files of a sample: the images, then the judgement."""
        subset, name = self.names[i]
        folder = self.root / subset
        files = [folder / part / f"{name}.png" for part in self.images]
        files.append(folder / self.judgement / f"{name}.npy")
        return files

    def __getitem__(self, i: int) -> Sample:
        *images, judgement = self.files(i)
        return self.sample._make([*map(_read_patch, images), _read_share(judgement)])

    def _complete(self, subset: str) -> list[str]:
        """The sorted names of a subset's samples; an error if one of them lacks a file."""
        parts = {part: ".png" for part in self.images} | {self.judgement: ".npy"}
        found = {}
        for part, suffix in parts.items():
            folder: Path = self.root / subset / part
            if not folder.is_dir():
                raise ValueError(f"{self.kind} subset {subset!r}: no folder {folder}")
            found[part] = {path.stem for path in folder.iterdir() if path.suffix == suffix and path.name[0] != "."}
        names: set[str] = set().union(*found.values())
        if not names:
            raise ValueError(f"{self.kind} subset {subset!r}: no samples in {self.root / subset}")
        missing = [f"{part}/{name}{parts[part]}" for part in parts for name in sorted(names - found[part])]
        if missing:
            some = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            raise SampleError(f"{self.root / subset} lacks {len(missing)} files: {some}")
        return sorted(names)


class TwoAFCDataset(Judgements[Triplet]):
    """Judgements of which of two images is nearer to a reference: `Triplet`s.

    Args:
        root: the folder that contains `2afc`.
        subsets: at least one, such as 'train/traditional'. Their samples follow each other, sorted by name in each.

    Raises:
        ValueError: a folder is missing or empty.
        SampleError: on construction, samples lack a file; on access, a file cannot be read, an image is not 64 x 64, or
            a judgement is not one number in [0, 1].
    """

    kind = "2afc"
    images = ("ref", "p0", "p1")
    judgement = "judge"
    sample = Triplet


class JNDDataset(Judgements[Pair]):
    """Judgements of whether two images are the same: `Pair`s. Arguments and errors as for `TwoAFCDataset`."""

    kind = "jnd"
    images = ("p0", "p1")
    judgement = "same"
    sample = Pair


def list_subsets(root: str | PathLike[str], kind: str, split: str) -> list[str]:
    """The subsets of a kind, '2afc' or 'jnd', and a split, 'train' or 'val', that exist."""
    folder = Path(root) / kind / split
    return sorted(f"{split}/{path.name}" for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


@contextmanager
def unreadable() -> Iterator[None]:
    """Makes the error of an image that cannot be read a `SampleError`."""
    try:
        yield
    except OSError as error:
        raise SampleError(str(error)) from error


def _read_patch(path: Path) -> Tensor:
    with unreadable():
        image = load_image(path)
    if image.shape != (PATCH, PATCH, 3):
        raise SampleError(f"{path} must be {PATCH} x {PATCH} pixels, it is {image.shape[1]} x {image.shape[0]}")
    return im2tensor(image)[0]


def _read_share(path: Path) -> Tensor:
    try:
        if not path.is_file():
            raise ValueError("it is a folder, a device or a pipe")
        # Mapped, because a file of a few bytes can claim to have terabytes.
        value = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises nearly anything on a broken or hostile file
        raise SampleError(f"{path} cannot be read as a judgement: {error}") from error
    if value.size != 1 or value.dtype.kind not in "fiub" or not 0 <= value.item() <= 1:
        raise SampleError(f"{path} must be one number from 0 to 1, got {np.array2string(value, threshold=5)}")
    return torch.tensor(value.item(), dtype=torch.float32).view(1, 1, 1)
