"""An index of images: embeddings or sketches of them, built once, saved, changed, and searched for the nearest images.

LPIPS(x, y) = |e(x) - e(y)|^2 (see `pairwise`), so the nearest images are the ones with the nearest vectors. The index
stores sqrt(H W) e: e itself has a factor of 1 / sqrt(H_l W_l), with which float16 values would be subnormal. A vector
is as large as the features of an image, 62 KiB for 64 x 64 pixels (alex, float16). A sketch of it (see sketch.py) takes
2 KiB for an image of any size. It chooses candidates, and their distances are computed from their vectors, which are
stored, too, or made again from the images. nearest.py has the mathematics.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_fast._checks import check_flags, checked_count, some
from lpips_fast.lpips import LPIPS
from lpips_fast.pairwise import (
    Images,
    batches_of_taps,
    checked_weights,
    embed_rows,
    empty_embeddings,
    images_at,
    product_rounding,
    write_embeddings,
)
from lpips_fast.search import files, nearest
from lpips_fast.search.files import Table
from lpips_fast.search.header import (
    Header,
    by,
    checked_size,
    checked_sketch,
    make_header,
    spec,
    tap_shapes,
)
from lpips_fast.search.nearest import Candidates, SketchEstimates, VectorEstimates, check_finite
from lpips_fast.search.sources import Joined, Source, as_source, is_sequence
from lpips_fast.sketch import Sketch, sketch_embeddings, sketch_taps

_BLOCK_BYTES = 2**28  # size in float32 of the vectors that are in memory at once
_TRAINING_BYTES = 2**30  # size in float32 of the sample of them that FAISS trains with


class Queries(NamedTuple):
    """Queries as an index compares them."""

    vectors: Tensor  # [Q, D], on the device of the distance
    sketches: Tensor | None  # [Q, m], if the index has sketches


class Index:
    """Images to search for the nearest ones to a query. `build`, `from_embeddings` and `load` make an index.

    Attributes:
        header: how it was made.
        vectors: [N, D], sqrt(H W) e, in memory or in the file that the index was loaded from; None if only sketches are
            kept.
        sketches: [N, m] in float16, of the vectors, or None. The search takes them to the device of the distance; move
            them there once if you search often on a GPU.
        names: a name for each image, or None.
        stamps: [N, 2], size in bytes and time of change in nanoseconds of the images' files, or None. `lpips-fast
            index` keeps them to see which files have changed.
        images: where the images are read again if no vectors are kept: what `build` was given, or None. Like the other
            attributes it may be set.
    """

    def __init__(self, fn: LPIPS, header: Header, table: Table, images: Images | Source | None = None) -> None:
        self.header = header
        self.sketches, self.vectors, self.names, self.stamps = table
        self.images = images
        self._fn = fn
        self._faiss: dict[str, Any] = {}
        self._taps = fn.L
        self._scale = math.sqrt(header.size[0] * header.size[1])

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        fn: LPIPS,
        images: Images,
        *,
        names: Sequence[str | PathLike[str]] | None = None,
        size: tuple[int, int] | None = None,
        normalize: bool = False,
        dtype: torch.dtype = torch.float16,
        batch: int = 16,
        sketch: int | None = None,
        vectors: bool | None = None,
    ) -> Index:
        """An index of images.

        Args:
            fn: the distance, with non-negative linear weights.
            images: [N, 3, H, W] in [-1, 1], on any device, or a sequence whose slices are such tensors.
            names: a name for each image, which the index keeps; a path becomes a string.
            size: height and width that images and queries are resized to, bilinearly with antialiasing. It determines
                the length of a vector: `embed` has figures. With None all images must have one size.
            normalize: whether the images are in [0, 1]; they are then mapped to [-1, 1]. The same holds for queries.
            dtype: the type of the vectors, torch.float16 or torch.float32. float16 halves the index, and changes a
                distance d by some 1e-5 sqrt(d) for images of 64 x 64 pixels: 5e-6 if d is 0.25, 1e-8 if d is 1e-6.
                Distances of smaller images change by more, distances of larger ones by less.
            batch: how many images to embed at once.
            sketch: the length of a sketch of each image, at least 64; 1024 is a good one, 2 KiB an image. None makes no
                sketches. They are made batch by batch, so the memory is that of the sketches and of a batch.
            vectors: whether to keep the whole vectors. None keeps them unless there are sketches. Without vectors a
                search reads the images nearest by sketch again, so `images` must stay as they are.

        Raises:
            TypeError, ValueError: as `LPIPS.embed`, or there are no images, an image is NaN or infinite, or names,
                size, dtype, batch, sketch or vectors do not fit the descriptions above.
        """
        check_flags(normalize=normalize, vectors=vectors)
        batch, dtype = checked_count("batch", batch, "a number of images"), _checked_dtype(dtype)
        if size is not None:
            size = checked_size(fn, size)
        kind = None if sketch is None else checked_sketch(sketch)
        keep = kind is None if vectors is None else bool(vectors)
        if kind is None and not keep:
            raise ValueError("vectors must be True or None if sketch is None: an index needs one of the two")
        first = images_at("images", images, slice(0, 1))
        if not len(first):
            raise ValueError("images must be at least one, got none")
        checked = _checked_names(names, len(images))
        shape = fn.checked_image("images", _resized(fn, "images", first, size)).shape[2:]
        header = make_header(fn, (shape[0], shape[1]), size is not None, bool(normalize), False, kind)
        empty = Table(
            None if kind is None else torch.empty(0, kind.length, dtype=torch.float16),
            torch.empty(0, header.values, dtype=dtype) if keep else None,
            None,
            None,
        )
        index = cls(fn, header, empty, None if keep else images)
        table = index._table_of(images, batch)
        index.sketches, index.vectors, index.names = table.sketches, table.vectors, checked
        return index

    @classmethod
    @torch.no_grad()
    def from_embeddings(
        cls,
        fn: LPIPS,
        embeddings: Tensor,
        size: tuple[int, int],
        *,
        names: Sequence[str | PathLike[str]] | None = None,
        dtype: torch.dtype = torch.float16,
        sketch: int | None = None,
    ) -> Index:
        """An index of the vectors that `LPIPS.embed` returned for images.

        The index does not know whether `embed` was called with `normalize`, so `search` accepts either.

        Args:
            fn: the distance that made the embeddings.
            embeddings: [N, D].
            size: height and width of the images.
            names, dtype, sketch: as in `build`. The vectors are kept.

        Raises:
            TypeError, ValueError: embeddings are not what fn returns for images of that size, or are NaN or infinite;
                names, dtype or sketch are not what `build` accepts.
        """
        dtype, size = _checked_dtype(dtype), checked_size(fn, size)
        kind = None if sketch is None else checked_sketch(sketch)
        if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
            given = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise TypeError(f"embeddings must be a tensor [N, D] of floating point, got {given}")
        header = make_header(fn, size, False, None, None, kind)
        if embeddings.dim() != 2 or embeddings.shape[1] != header.values:
            raise ValueError(
                f"embeddings must be [N, {header.values}], for net {fn.pnet_type!r} and images of size {by(size)}, "
                f"got {list(embeddings.shape)}"
            )
        checked = _checked_names(names, len(embeddings))
        stored = (embeddings * math.sqrt(size[0] * size[1])).to(dtype)
        vectors = stored.cpu()
        check_finite("embeddings", stored)
        index = cls(fn, header, Table(None, vectors, checked, None))
        if kind is not None:
            index.sketches = index._sketches_of(kind, embeddings, index._scale)  # of the vectors before their rounding
        return index

    def __len__(self) -> int:
        return self.table.rows

    @property
    def device(self) -> torch.device:
        """Of the distance: where a search compares images."""
        return self._fn.own_tensor().device

    @property
    def table(self) -> Table:
        """What the index keeps of its images."""
        return Table(self.sketches, self.vectors, self.names, self.stamps)

    @torch.no_grad()
    def search(
        self,
        queries: Images,
        k: int = 5,
        *,
        normalize: bool = False,
        faiss: str | None = None,
        estimate: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The images nearest to each query.

        Candidates are all images that may be among the k nearest, by products with the vectors or, if the index has
        sketches, by these. Their distances are then computed from differences of vectors, which are accurate for near
        duplicates, too. With vectors alone nothing is missed. With sketches an image may be missed whose estimate is
        too high by three standard deviations and more. docs/retrieval.md has what was measured: no miss with 1024
        numbers.

        Args:
            queries: [Q, 3, H, W] in [-1, 1], of the index's size unless the index resizes images.
            k: how many images to find, at most as many as the index has.
            normalize: whether the queries are in [0, 1]; they are then mapped to [-1, 1]. It must be the same as for
                the images.
            faiss: a FAISS factory string ('Flat', 'HNSW32,Flat', 'IVF1024,PQ128x4fs', ...): FAISS then finds the
                candidates, more than k, among the sketches, or among the vectors if there are no sketches. The first
                search makes FAISS's index, which is kept beside them. None compares all, in blocks, on the device of
                the distance.
            estimate: whether to return the distances of the sketches, off by a few percent, instead of LPIPS. No image
                is read again.

        Returns:
            Distances [Q, k] and the images' indices [Q, k], both on the CPU, nearest first; of equally near images the
            one with the lower index comes first. A query that is in the index has a distance of exactly 0, also in
            float16, if its vector comes out the same to the bit: on the CPU with the compiled library. Elsewhere
            convolutions may round differently in a batch of another size; the distance is then some 1e-12. Where an
            image cannot be read any more, the next nearest takes its place. If fewer than k images are found, because
            FAISS finds fewer or too few can be read, the remaining distances are inf, and the remaining indices -1.

        Raises:
            TypeError, ValueError: as `LPIPS.embed`, or k is below 1; queries have another size or range than the
                images, or are NaN or infinite; FAISS does not accept the string, or only for other or more vectors;
                the index is from a damaged file; it has no sketches to estimate by; it keeps sketches alone, and
                `images` is None.
            ImportError: faiss is given and FAISS is not installed.
        """
        check_flags(estimate=estimate)
        if estimate and self.sketches is None:
            raise ValueError("estimate must be False for an index without sketches: build it with sketch=1024")
        k = checked_count("k", k, "a number of images")
        compared = self.queries(queries, normalize=normalize)
        find = functools.partial(self.candidates, compared, faiss=faiss, estimate=estimate)
        return self.nearest(compared, k, find, estimate=estimate)

    @torch.no_grad()
    def queries(self, queries: Images, *, normalize: bool = False) -> Queries:
        """The first step of `search`: queries as the index compares them. It raises what `search` raises for them."""
        check_flags(normalize=normalize)
        self._check_layers()
        self._check_range("queries", normalize)
        queries = images_at("queries", queries, slice(None))
        queries = self._fitting("queries", queries)
        vectors, sketches = [], []
        for _, e, s in self._numbers("queries", queries, normalize, vectors=True):
            vectors += [e] if e is not None else []
            sketches += [s] if s is not None else []
        found = Queries(torch.cat(vectors), torch.cat(sketches) if sketches else None)
        for numbers, stored in ((found.vectors, self.vectors), (found.sketches, self.sketches)):
            if numbers is not None and stored is not None:
                check_finite("queries", numbers.to(stored.dtype))  # in the type of the stored ones
        return found

    @torch.no_grad()
    def candidates(
        self,
        queries: Queries,
        k: int,
        *,
        faiss: str | None = None,
        rows: range | None = None,
        estimate: bool = False,
    ) -> list[Candidates]:
        """The second step of `search`: for each query the images that may be among its k nearest.

        Args:
            rows: which images to look through; None for all. Processes may share them: `merged` puts the candidates of
                all of them together.
            faiss: as for `search`, which then looks through all images.
            estimate: whether the estimates shall decide, so that only the k least are needed.
        """
        if faiss is not None:
            _check_factory(faiss)
        if rows is not None and (rows.step != 1 or not 0 <= rows.start <= rows.stop <= len(self)):
            raise ValueError(f"rows must be a range of step 1 within 0 to {len(self)}, got {rows}")
        if len(queries.vectors) == 0 or len(self) == 0:
            none = Candidates(torch.empty(0), torch.empty(0, dtype=torch.int64))
            return [none] * len(queries.vectors)
        k = min(k, len(self))
        if faiss is None:
            return nearest.scan(
                self._estimates(queries, estimate=estimate), k, range(len(self)) if rows is None else rows
            )
        stored = self.vectors if self.sketches is None else self.sketches
        assert stored is not None
        try:
            if faiss not in self._faiss:
                self._faiss[faiss] = _faiss_index(stored, faiss)
            by_products = None if self.sketches is not None else product_rounding(stored.shape[1])
            return nearest.by_faiss(self._estimates(queries, by_products, estimate), self._faiss[faiss], k)
        except (RuntimeError, MemoryError) as error:
            reason = str(error).rpartition(": ")[2]  # without FAISS's own file and line
            raise ValueError(
                f"faiss must be a factory string for {len(self)} vectors of {stored.shape[1]}, got {faiss!r}: {reason}"
            ) from error

    def merged(self, queries: Queries, parts: Sequence[Sequence[Candidates]], k: int) -> list[Candidates]:
        """The candidates among all rows, from what `candidates` found for k among some rows each."""
        return nearest.merged(self._estimates(queries), parts, min(k, len(self)))

    @torch.no_grad()
    def nearest(
        self, queries: Queries, k: int, find: Callable[[int], Sequence[Candidates]], *, estimate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The last step of `search`: the nearest of the candidates. It returns and raises what `search` does.

        Args:
            find: gives the candidates for a number of nearest images. If images cannot be read any more, it is called
                again with a larger number than k.
        """
        shape = len(queries.vectors), min(k, len(self))
        distances, indices = torch.full(shape, math.inf), torch.full(shape, -1)
        if 0 in shape:
            return distances, indices
        if estimate:
            for i, (estimates, rows) in enumerate(find(shape[1])):
                count = min(shape[1], len(rows))
                distances[i, :count], indices[i, :count] = estimates[:count] / self._scale**2, rows[:count]
            return distances, indices
        vectors, estimated, wanted = queries.vectors.cpu(), self._estimates(queries), shape[1]
        while True:
            exact, indices, lost = nearest.confirm(vectors, find(wanted), shape[1], estimated, self._stored)
            if wanted == len(self) or not ((indices < 0).any(dim=1) & (lost > 0)).any():
                return (exact / self._scale**2).float(), indices
            wanted = min(max(2 * wanted, wanted + int(lost.max())), len(self))

    @torch.no_grad()
    def add(
        self,
        images: Images,
        *,
        names: Sequence[str | PathLike[str]] | None = None,
        normalize: bool = False,
        batch: int = 16,
    ) -> None:
        """Adds images behind the ones that are there. It copies the index in memory: add many at once.

        Args:
            images: as for `build`, of the index's size unless it resizes images.
            names: a name for each image, if the index has names.
            normalize, batch: as for `build`; normalize must be the same.

        Raises:
            TypeError, ValueError: as `build`, or the images do not fit the index, which then stays as it is.
        """
        check_flags(normalize=normalize)
        batch = checked_count("batch", batch, "a number of images")
        self._check_layers()
        self._check_range("images", normalize)
        checked = _checked_names(names, len(images))
        if (checked is None) != (self.names is None):
            raise ValueError(f"names must be {'None' if checked else 'given'}, as for the images of the index")
        table = self._table_of(images, batch, normalize)._replace(names=checked)
        source = None
        if self.images is not None:
            source = self._joined().joined(Joined.of(as_source(images), len(images)))
        self._become(self.table._replace(stamps=None).joined(table), source)

    @torch.no_grad()
    def remove(self, which: Sequence[str | PathLike[str]] | Sequence[int]) -> None:
        """Removes images. The ones behind them move up, so their indices change.

        Args:
            which: names of images, each of which removes all images of that name, or indices.

        Raises:
            TypeError, ValueError: `which` are no names or indices of images in the index, which then stays as it is.
        """
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[self._rows_of(which)] = False
        rows = kept.nonzero()[:, 0]
        source = None if self.images is None else self._joined().selected(rows)
        self._become(self.table.selected(rows), source)

    def update(
        self, images: Images, *, names: Sequence[str | PathLike[str]], normalize: bool = False, batch: int = 16
    ) -> None:
        """Replaces the images of these names. They move to the end of the index.

        Raises:
            TypeError, ValueError: as `add` and `remove`; the index then stays as it is.
        """
        checked = _checked_names(names, len(images))
        if checked is None or len({*checked}) < len(checked):
            raise ValueError("names must be given, each once, for they say which images to replace")
        self._rows_of(checked)  # raises an error before anything is changed
        count = len(self)
        self.add(images, names=checked, normalize=normalize, batch=batch)
        self.remove([row for row in self._rows_of(checked).tolist() if row < count])

    def sketched(self, sketch: Sketch | None = None) -> Tensor:
        """The sketches [N, m] in float16: the stored ones, or made from the vectors.

        Args:
            sketch: of which kind; None for the kind of the index or, if it has no sketches, of length 1024.
        """
        if self.sketches is not None and sketch in (None, self.header.sketch):
            return self.sketches
        if self.vectors is None:
            raise ValueError(f"sketch must be the index's, {self.header.sketch}, got {sketch}: it keeps no vectors")
        return self._sketches_of(sketch or Sketch(), self.vectors)

    @torch.no_grad()
    def embeddings(self, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """sqrt(H W) e of images of the index, [n, D] in float32 on the CPU, and which of the rows they are.

        They are the stored vectors, or are made again from the images; an image that cannot be read any more is left
        out.

        Raises:
            ValueError: the index keeps sketches alone, and `images` is None.
        """
        if self.vectors is not None:
            return self.vectors[list(rows)].float(), list(rows)
        if self.images is None:
            raise ValueError(
                "the index keeps sketches alone, so images must be given to compute distances: Index.load(path, fn, "
                "images=...), or search with estimate=True"
            )
        self._check_layers()
        read = self._read(rows)
        kept = [row for row, image in zip(rows, read, strict=True) if image is not None]
        images = [self._fitting("images", self._fn.checked_image("images", i[None])) for i in read if i is not None]
        if not images:
            return torch.empty(0, self.header.values), []
        batch = torch.cat(images)
        vectors = embed_rows(
            self._fn, "images", batch, slice(0, len(batch)), batch.shape[2:], bool(self.header.normalize)
        )
        return (vectors * self._scale).float().cpu(), kept

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the index to a file, whole or not at all. The images are not in it.

        Raises:
            OSError: the file cannot be written.
        """
        files.write(Path(path), self.header, [self.table])

    @classmethod
    def load(cls, path: str | PathLike[str], fn: LPIPS, *, images: Images | Source | None = None) -> Index:
        """Reads an index from a file.

        The numbers stay in the file until a search needs them. The search also checks that they are finite.

        Args:
            path: a file that `save` wrote.
            fn: the distance; its net, version and weights must be the ones the index was made with.
            images: the images that it was built of, for an index that keeps sketches alone: a sequence as for `build`,
                or a `Source`, where single images may be gone.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no index, has another format, is damaged, or was made with another distance; images
                are not as many as the index has.
        """
        header, table = files.read(path, fn)
        index = cls(fn, header, table, images)
        if images is not None and not is_sequence(images) and not hasattr(images, "read"):
            raise TypeError(f"images must be a sequence of images or a Source, got {type(images).__name__}")
        if images is not None and is_sequence(images) and len(images) != len(index):
            raise ValueError(f"images must be the {len(index)} images of {path}, got {len(images)}")
        return index

    def _table_of(self, images: Images, batch: int, normalize: bool | None = None) -> Table:
        """What the index keeps of new images, without names."""
        normalize = bool(self.header.normalize) if normalize is None else normalize
        sketches = None if self.sketches is None else self.sketches.new_empty(len(images), self.sketches.shape[1])
        vectors = None if self.vectors is None else self.vectors.new_empty(len(images), self.vectors.shape[1])
        for start in range(0, len(images), batch):
            part = self._fitting("images", images_at("images", images, slice(start, start + batch)))
            for rows, *made in self._numbers("images", part, normalize, vectors is not None):
                for column, numbers in zip((vectors, sketches), made, strict=True):
                    if column is not None and numbers is not None:
                        stored = numbers.to(column.dtype)
                        column[start + rows.start : start + rows.stop] = stored
                        check_finite("images", stored, start + rows.start)
        return Table(sketches, vectors, None, None)

    def _numbers(
        self, name: str, images: Tensor, normalize: bool, vectors: bool
    ) -> Iterator[tuple[slice, Tensor | None, Tensor | None]]:
        """sqrt(H W) e of images, if `vectors`, and its sketches, if the index has them: some images at a time."""
        fn, kind = self._fn, self.header.sketch
        weights = checked_weights(fn)
        for rows, taps in batches_of_taps(fn, name, images, slice(0, len(images)), images.shape[2:], normalize):
            e = s = None
            if vectors:
                e = empty_embeddings(len(taps[0]), taps)
                write_embeddings(e, taps, weights, fn.norm)
                e *= self._scale
            if kind is not None:
                s = sketch_taps(kind, taps, weights, fn.norm) * self._scale
            yield rows, e, s

    def _read(self, rows: Sequence[int]) -> list[Tensor | None]:
        """The images of these rows from where they are read again, each checked."""
        assert self.images is not None
        read = [*as_source(self.images).read(rows)]
        if len(read) != len(rows):
            raise ValueError(f"images.read must give as many images as it is asked for, {len(rows)}, got {len(read)}")
        for image in read:
            if image is not None and (not isinstance(image, Tensor) or image.dim() != 3):
                given = [*image.shape] if isinstance(image, Tensor) else type(image).__name__
                raise TypeError(f"images.read must give tensors [3, H, W], or None for what is gone, got {given}")
        return read

    def _fitting(self, name: str, images: Tensor) -> Tensor:
        """The images in the index's size; an error if they have another one, and the index does not resize."""
        images = _resized(self._fn, name, images, self.header.size if self.header.resized else None)
        if images.shape[2:] != self.header.size:
            raise ValueError(
                f"the index is of images of {by(self.header.size)} pixels, the {name} are of {by(images.shape[2:])}"
            )
        return images

    def _check_layers(self) -> None:
        """Raises a ValueError if layers of the distance were changed since its constructor, or taps left out."""
        spec(self._fn)
        if self._fn.L != self._taps:
            raise ValueError(f"L, the number of taps in use, must be {self._taps} as for the index, got {self._fn.L}")

    def _check_range(self, name: str, normalize: bool) -> None:
        if self.header.normalize not in (None, bool(normalize)):
            raise ValueError(
                f"the index is of images given with normalize={self.header.normalize}, the {name} are given with "
                f"normalize={normalize}: give them in the range of the images"
            )

    def _sketches_of(self, kind: Sketch, vectors: Tensor, scale: float = 1.0) -> Tensor:
        """The sketches [N, m], float16 on the CPU, of scale times vectors [N, D], some vectors at a time."""
        rows = max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))
        parts = [(sketch_embeddings(kind, part, self._shapes) * scale).half().cpu() for part in vectors.split(rows)]
        return torch.cat([torch.empty(0, kind.length, dtype=torch.float16), *parts])

    @functools.cached_property
    def _shapes(self) -> list[torch.Size]:
        """C_l, H_l and W_l of the taps."""
        return tap_shapes(self._fn, self.header.size)

    def _estimates(
        self, queries: Queries, rounding: float | None = None, estimate: bool = False
    ) -> SketchEstimates | VectorEstimates:
        if self.sketches is not None:
            assert queries.sketches is not None
            assert self.header.sketch is not None
            deviations = 0.0 if estimate else nearest.DEVIATIONS
            return SketchEstimates(queries.sketches, self.sketches, self.header.sketch, deviations)
        assert self.vectors is not None
        return VectorEstimates(queries.vectors, self.vectors, rounding)

    def _stored(self, rows: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """The stored vectors in their own type, whose rounding `direct_distances` knows, or vectors made again."""
        return self.embeddings(rows) if self.vectors is None else (self.vectors[list(rows)], rows)

    def _joined(self) -> Joined:
        assert self.images is not None
        return Joined.of(as_source(self.images), len(self))

    def _become(self, table: Table, images: Joined | None) -> None:
        self.sketches, self.vectors, self.names, self.stamps = table
        self.images = images
        self._faiss.clear()

    def _rows_of(self, which: Sequence[str | PathLike[str]] | Sequence[int]) -> Tensor:
        if isinstance(which, Tensor):  # as `search` gives them
            which = which.tolist()
        if isinstance(which, str) or not isinstance(which, Iterable):
            raise TypeError(f"which must be a list of names or of indices, got {which!r:.99}")
        given = [*which]
        if all(isinstance(one, Integral) and not isinstance(one, bool) for one in given):
            wrong = [row for row in given if not 0 <= row < len(self)]
            if wrong:
                raise ValueError(f"which must be indices below {len(self)}, got {wrong[0]}")
            return torch.tensor([int(row) for row in given], dtype=torch.int64)
        if self.names is None:
            raise ValueError("which must be indices, for the index has no names")
        wanted = {str(name) for name in given}
        rows = [row for row, name in enumerate(self.names) if name in wanted]
        missing = wanted - {self.names[row] for row in rows}
        if missing:
            raise ValueError(f"which must be names of images in the index, which has no {some(missing)}")
        return torch.tensor(rows, dtype=torch.int64)


def _checked_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"dtype must be torch.float16 or torch.float32, got {dtype}")
    return dtype


def _checked_names(names: Sequence[str | PathLike[str]] | None, count: int) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not hasattr(names, "__getitem__"):
        raise TypeError(f"names must be a list of strings or paths, one an image, got {names!r:.99}")
    for i, name in enumerate(names):
        if not isinstance(name, str | PathLike):
            raise TypeError(f"names[{i}] must be a string or a path, got {type(name).__name__} {name!r:.99}")
    if len(names) != count:
        raise ValueError(f"names must be one an image, {count}, got {len(names)}")
    return [str(name) for name in names]


def _resized(fn: LPIPS, name: str, images: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or images.shape[2:] == size:
        return images
    if not images.is_floating_point() or 0 in images.shape[1:]:
        return fn.checked_image(name, images)  # raises an error
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def _check_factory(factory: str) -> None:
    if not isinstance(factory, str):
        raise TypeError(f"faiss must be None or a FAISS factory string, got {type(factory).__name__}")
    # FAISS does not check its numbers: a graph needs two neighbours a vector, and every other number is a count from 1.
    if re.search(r"(?<!\d)0+(?!\d)|(HNSW|NSG)0*1(?!\d)", factory):
        raise ValueError(
            f"faiss must be a factory string with numbers from 1, and from 2 after HNSW and NSG, got {factory!r}"
        )


def _faiss_index(vectors: Tensor, factory: str) -> Any:
    try:
        import faiss  # an optional dependency
    except ImportError as error:
        raise ImportError("searching with FAISS needs it: pip install 'lpips_fast[faiss]'") from error
    check_finite("images", vectors)
    index = faiss.index_factory(vectors.shape[1], factory)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.nprobe = math.ceil(math.sqrt(ivf.nlist))  # FAISS looks into one list alone, which finds half
    if not index.is_trained:
        some = vectors[:: max(1, len(vectors) * 4 * vectors.shape[1] // _TRAINING_BYTES)]
        index.train(some.float().cpu().numpy())
    for block in vectors.split(max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))):
        index.add(block.float().cpu().numpy())
    return index
