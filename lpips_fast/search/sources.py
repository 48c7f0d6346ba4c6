"""Where an index that keeps no vectors gets its images from again, to compute exact distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard, cast

import torch
from torch import Tensor

from lpips_fast.pairwise import Images, images_at


class Source(Protocol):
    """Images that can be read again, each by itself, where some may be gone."""

    def read(self, rows: Sequence[int], /) -> list[Tensor | None]:
        """The images [3, H, W] of an index's rows, as `Index.build` took them; None for one that cannot be read."""


class Slices:
    """A sequence whose slices are tensors [n, 3, H, W], as a source."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def read(self, rows: Sequence[int]) -> list[Tensor | None]:
        return [images_at("images", self._images, slice(row, row + 1))[0] for row in rows]


class Joined:
    """Images of several sources: row i is image `image[i]` of source `source[i]`."""

    def __init__(self, sources: list[Source], source: Tensor, image: Tensor) -> None:
        self._sources, self._source, self._image = sources, source, image

    @classmethod
    def of(cls, source: Source, count: int) -> Joined:
        """The source itself, of `count` images."""
        if isinstance(source, cls):
            return source
        return cls([source], torch.zeros(count, dtype=torch.int64), torch.arange(count))

    def read(self, rows: Sequence[int]) -> list[Tensor | None]:
        images: list[Tensor | None] = [None] * len(rows)
        which, image = self._source[list(rows)].tolist(), self._image[list(rows)].tolist()
        for number in {*which}:
            places = [place for place, of in enumerate(which) if of == number]
            for place, found in zip(places, self._sources[number].read([image[p] for p in places]), strict=True):
                images[place] = found
        return images

    def selected(self, rows: Tensor) -> Joined:
        """The images of these rows. Sources of none of them are let go."""
        used, source = self._source[rows].unique(return_inverse=True)
        return Joined([self._sources[number] for number in used.tolist()], source, self._image[rows])

    def joined(self, other: Joined) -> Joined:
        """These images, then others."""
        others = other._source + len(self._sources)
        return Joined(
            [*self._sources, *other._sources],
            torch.cat((self._source, others)),
            torch.cat((self._image, other._image)),
        )


def as_source(images: Images | Source) -> Source:
    """A source, or anything that `Index.build` takes, as a source."""
    return Slices(images) if is_sequence(images) else cast(Source, images)


def is_sequence(images: Images | Source) -> TypeGuard[Images]:
    """Whether these are images by slices, which may have a method `read` of another meaning."""
    return hasattr(images, "__getitem__")
