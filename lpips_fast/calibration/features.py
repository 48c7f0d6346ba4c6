"""The features of a data set's images, computed once, because a frozen trunk gives the same features in every epoch.

The features of a patch of 64 x 64 take 0.12 MiB (alex), 0.45 MiB (squeeze) or 1.9 MiB (vgg) in float32, and half of
that in half precision. A triplet has three patches.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lpips_fast._files import replacing
from lpips_fast.bapps.datasets import PATCH, Triplet, TwoAFCDataset
from lpips_fast.bapps.loading import in_order, read_batches
from lpips_fast.lpips import LPIPS
from lpips_fast.weights.files import fingerprint

_HEADER = "features.json"
_CHUNK = 32  # triplets that go through the trunk together


class FeatureCache:
    """The taps of all images of triplets, and the judgements, in memory or in files that several processes share.

    Args:
        fn: an LPIPS with a frozen trunk.
        samples: the triplets.
        folder: where the files lie. A later run completes them or uses them again. None keeps the features in memory.

    Raises:
        ValueError: the trunk is not frozen; the folder has features of other images, of another trunk or of another
            type; or there are several processes and no folder.
        OSError: the disk has too little room.
    """

    def __init__(self, fn: LPIPS, samples: TwoAFCDataset, folder: Path | None = None) -> None:
        if not fn.net.is_frozen():
            raise ValueError("features of a trunk that is trained change with every step: they cannot be kept")
        self._rank, self._world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if folder is None and self._world > 1:
            raise ValueError(f"{self._world} processes share features in files only: keep them on disk")
        self._fn, self._samples, self._folder = fn, samples, folder
        self._device = fn.scaling_layer.shift.device
        with torch.no_grad():
            taps = fn.features(torch.zeros(1, 3, PATCH, PATCH, device=self._device)).taps
        self._dtype = taps[0].dtype
        self._shapes = [tap.shape[1:] for tap in taps]
        self._made_from = {
            "net": fn.net.spec.model,
            "version": fn.version,
            "trunk": fingerprint(fn.net.parameters()),
            "type": str(self._dtype),
            "images": _images_fingerprint(samples),
        }
        self.filled = self._filled_before()
        self._check_room()
        rows = 3 * len(samples)  # reference, image 0, image 1 of the first triplet, and so on
        self._features = [self._storage(f"tap{k}", rows, prod(s), self._dtype) for k, s in enumerate(self._shapes)]
        self._judge = self._storage("judge", len(samples), 1, torch.float32)

    def fill(self, workers: int) -> Iterator[int]:
        """Computes the missing features; yields the number of triplets that each step has added.

        Args:
            workers: the number of processes that read images.

        Raises:
            SampleError: a triplet cannot be used.
        """
        chunks = in_order(len(self._samples), _CHUNK, self.filled)
        batches = read_batches(self._samples, chunks[self._rank :: self._world], workers)
        for first in range(0, len(chunks), self._world):
            turn = chunks[first : first + self._world]
            if self._rank < len(turn):
                self._put(turn[self._rank], next(batches))
            if self._world > 1:
                dist.barrier()
            self.filled = turn[-1].stop
            if self._folder is not None and self._rank == 0:
                with replacing(self._folder / _HEADER) as temporary:
                    temporary.write_text(json.dumps({**self._made_from, "filled": self.filled}, indent=1) + "\n")
            yield sum(map(len, turn))

    def take(self, triplets: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The taps [3N, C_l, H_l, W_l] and the judgements [N, 1, 1, 1] of N triplets, given by number, on fn's device.

        The references' taps come first, then the taps of the images 0, then the taps of the images 1.
        """
        at = torch.tensor(triplets)
        rows = torch.cat([3 * at + k for k in range(3)])
        taps = []
        for kept, (c, h, w) in zip(self._features, self._shapes, strict=True):
            taps.append(kept[rows].to(self._device).view(-1, h, w, c).permute(0, 3, 1, 2))
        return taps, self._judge[at].view(-1, 1, 1, 1).to(self._device)

    def _put(self, triplets: range, batch: Triplet) -> None:
        images = torch.cat((batch.ref, batch.p0, batch.p1)).to(self._device)
        with torch.no_grad():
            taps = self._fn.features(images).taps
        for kept, tap in zip(self._features, taps, strict=True):
            rows = tap.permute(0, 2, 3, 1).reshape(3, len(triplets), -1).transpose(0, 1)
            kept.view(len(self._samples), 3, -1)[triplets.start : triplets.stop] = rows
        self._judge[triplets.start : triplets.stop] = batch.judge.flatten(1)

    def _storage(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        if self._folder is None:
            return torch.empty(rows, width, dtype=dtype)
        path = self._folder / f"{name}.bin"
        if self.filled and not path.exists():
            raise ValueError(f"{path} is missing: delete {self._folder}, to make the features anew")
        # This makes a missing file. It takes room on the disk only as it is written to.
        return torch.from_file(str(path), shared=True, size=rows * width, dtype=dtype).view(rows, width)

    def _check_room(self) -> None:
        """Checks the disk before the first write, because writing to a mapped file on a full disk kills the process."""
        if self._folder is None:
            return
        left = len(self._samples) - self.filled
        needed = 3 * left * sum(prod(shape) for shape in self._shapes) * self._dtype.itemsize
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            needs, has = (f"{size / 2**30:.1f} GiB" for size in (needed, free))
            raise OSError(f"features in {self._folder} need {needs}, the disk has {has}")

    def _filled_before(self) -> int:
        """How many triplets the folder has features of. Only rank 0 looks, because the number may change meanwhile."""
        if self._folder is None:
            return 0
        found = [self._read_header(self._folder / _HEADER) if self._rank == 0 else 0]
        if self._world > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def _read_header(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return 0
        header = json.loads(path.read_text())
        differing = [key for key, value in self._made_from.items() if header.get(key) != value]
        if differing:
            raise ValueError(f"{path.parent} has features with other {' and '.join(differing)}: delete it")
        return header["filled"]


def _images_fingerprint(samples: TwoAFCDataset) -> str:
    """A hash of the paths, sizes and modification times of the files."""
    digest = hashlib.sha256()
    for i in range(len(samples)):
        for path in samples.files(i):
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
