"""Nearest neighbours by LPIPS: an index of images' embeddings, built once, saved, and searched by vector products.

LPIPS(x, y) = |e(x) - e(y)|^2 (see `pairwise`), so the nearest images are the ones with the nearest vectors. The index
stores sqrt(H W) e: e itself has a factor of 1 / sqrt(H_l W_l), with which float16 values would be subnormal.

A matrix product gives all distances, rounded by some 1e-7 of the vectors' squared lengths. Distances of near duplicates
differ by less. So the candidates are all images that may be among the k nearest within that rounding, and their
distances are computed again from the differences.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lpips_fast._checks import check_flags, checked_count
from lpips_fast._files import replacing
from lpips_fast.lpips import LPIPS
from lpips_fast.pairwise import Images, direct_distances, embed_rows, images_at, product_distances, product_rounding
from lpips_fast.trunk.execute import run
from lpips_fast.trunk.nets import Net
from lpips_fast.trunk.program import Setting
from lpips_fast.weights.files import fingerprint

_FORMAT = "lpips_fast.Index"
_FORMAT_VERSION = "1"
# Fields of the header that the first files of this format lack.
_LATER = ("normalize", "raw", "reading", "transparent", "opaque")
_BLOCK_BYTES = 2**28  # size in float32 of the stored vectors that one matrix product compares
_EXACT_ROWS = 256  # how many stored vectors have their differences from a query in memory at once


class Header(NamedTuple):
    """How an index was made; a search must be made in the same way."""

    net: str
    version: str
    lpips: bool
    size: tuple[int, int]  # height and width that the trunk saw
    resized: bool  # whether images of other sizes are resized to it, or refused
    normalize: bool | None  # the argument of `build`, and so of `search`; None: unknown
    raw: bool | None  # whether the trunk saw [0, 1] instead of [-1, 1], by the command line's --no-normalize
    reading: dict[str, Any] | None  # how the command line read the image files, by option; None: unknown
    transparent: bool | None  # whether an image file was transparent; None: unknown
    opaque: bool | None  # whether an image file was not transparent; None: unknown
    linear_sha256: str
    trunk_sha256: str


class Index:
    """Images to search for the nearest ones to a query. `build`, `from_embeddings` and `load` make an index.

    Attributes:
        vectors: [N, D], sqrt(H W) e, in memory or in the file that the index was loaded from.
        names: a name for each vector, or None.
    """

    def __init__(
        self, fn: LPIPS, header: Header, vectors: Tensor, names: Sequence[str | PathLike[str]] | None = None
    ) -> None:
        self.header = header
        self.vectors = vectors
        self.names = _checked_names(names, len(vectors))
        self._fn = fn
        self._faiss: dict[str, Any] = {}
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
    ) -> Index:
        """An index of images.

        Args:
            fn: the distance, with non-negative linear weights.
            images: [N, 3, H, W] in [-1, 1], on any device, or a sequence whose slices are such tensors.
            names: a name for each image, which the index keeps; a path becomes a string.
            size: height and width that images and queries are resized to, bilinearly with antialiasing. It determines
                the length of a vector: `embed` has figures. With None all images must have one size.
            normalize: whether the images are in [0, 1]; they are then mapped to [-1, 1]. The same holds for queries.
            dtype: torch.float16 or torch.float32. float16 halves the index, and changes a distance d by some
                1e-5 sqrt(d) for images of 64 x 64 pixels: 5e-6 if d is 0.25, 1e-8 if d is 1e-6. Distances of smaller
                images change by more, distances of larger ones by less.
            batch: how many images to embed at once.

        Raises:
            TypeError, ValueError: as `LPIPS.embed`, or there are no images, an image is NaN or infinite, or names,
                size, dtype or batch do not fit the descriptions above.
        """
        check_flags(normalize=normalize)
        batch, dtype = checked_count("batch", batch, "a number of images"), _checked_dtype(dtype)
        if size is not None:
            size = _checked_size(fn, size)
        first = images_at("images", images, slice(0, 1))
        if not len(first):
            raise ValueError("images must be at least one, got none")
        names = _checked_names(names, len(images))
        shape = _resized(fn, "images", first, size).shape[2:]
        header = _header(fn, (shape[0], shape[1]), size is not None, bool(normalize), raw=False)
        vectors = torch.empty(0)
        for start in range(0, len(images), batch):
            part = _resized(fn, "images", images_at("images", images, slice(start, start + batch)), size)
            embeddings = embed_rows(fn, "images", part, slice(0, len(part)), shape, normalize)
            stored = (embeddings * math.sqrt(shape.numel())).to(dtype)
            if start == 0:
                vectors = torch.empty(len(images), stored.shape[1], dtype=dtype)
            vectors[start : start + batch] = stored
            _check_finite("images", stored, start)
        return cls(fn, header, vectors, names)

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
    ) -> Index:
        """An index of the vectors that `LPIPS.embed` returned for images.

        The index does not know whether `embed` was called with `normalize`, so `search` accepts either.

        Args:
            fn: the distance that made the embeddings.
            embeddings: [N, D].
            size: height and width of the images.
            names, dtype: as in `build`.

        Raises:
            TypeError, ValueError: embeddings are not what fn returns for images of that size, or are NaN or infinite;
                names or dtype are not what `build` accepts.
        """
        dtype, size = _checked_dtype(dtype), _checked_size(fn, size)
        if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
            given = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise TypeError(f"embeddings must be a tensor [N, D] of floating point, got {given}")
        length = _vector_length(fn, size)
        if embeddings.dim() != 2 or embeddings.shape[1] != length:
            raise ValueError(
                f"embeddings must be [N, {length}], for net {fn.pnet_type!r} and images of size {_by(size)}, "
                f"got {list(embeddings.shape)}"
            )
        names = _checked_names(names, len(embeddings))
        stored = (embeddings * math.sqrt(size[0] * size[1])).to(dtype)
        vectors = stored.cpu()
        _check_finite("embeddings", stored)
        return cls(fn, _header(fn, size, resized=False, normalize=None, raw=None), vectors, names)

    def __len__(self) -> int:
        return len(self.vectors)

    @torch.no_grad()
    def search(
        self, queries: Images, k: int = 5, *, normalize: bool = False, faiss: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """The images nearest to each query.

        Matrix products find the candidates: all images that are as near as the k-th within the products' rounding.
        Their distances are computed again from the differences, which are accurate for near duplicates, too.

        Args:
            queries: [Q, 3, H, W] in [-1, 1], of the index's size unless the index resizes images.
            k: how many images to find, at most as many as the index has.
            normalize: whether the queries are in [0, 1]; they are then mapped to [-1, 1]. It must be the same as for
                the images.
            faiss: a FAISS factory string ('Flat', 'HNSW32,Flat', 'SQfp16', ...): FAISS then finds the candidates, at
                least 2 k, and more as long as FAISS's own distances do not separate them from the k-th. The first
                search makes FAISS's index, which is kept beside the vectors. None compares all vectors, in blocks, on
                the device of the distance.

        Returns:
            Distances [Q, k] and the images' indices [Q, k], both on the CPU, nearest first; of equally near images the
            one with the lower index comes first. A query that is in the index has a distance of exactly 0, also in
            float16, if its vector is the same to the bit. In a batch of another size convolutions may round
            differently; the distance is then some 1e-12. If FAISS finds fewer than k images, the remaining distances
            are inf, and the remaining indices are -1.

        Raises:
            TypeError, ValueError: as `LPIPS.embed`, or k is below 1; queries have another size or range than the
                images, or are NaN or infinite; FAISS does not accept the string, or only for other or more vectors;
                the index is from a damaged file.
            ImportError: faiss is given and FAISS is not installed.
        """
        check_flags(normalize=normalize)
        _spec(self._fn)  # raises an error if layers were changed since the constructor
        if self.header.normalize not in (None, bool(normalize)):
            raise ValueError(
                f"the index is of images given with normalize={self.header.normalize}, the queries are given with "
                f"normalize={normalize}: give them in the range of the images"
            )
        k = checked_count("k", k, "a number of images")
        if faiss is not None:
            _check_factory(faiss)
        queries = images_at("queries", queries, slice(None))
        queries = _resized(self._fn, "queries", queries, self.header.size if self.header.resized else None)
        if queries.shape[2:] != self.header.size:
            raise ValueError(
                f"the index is of images of {_by(self.header.size)} pixels, the queries are of {_by(queries.shape[2:])}"
            )
        every = slice(0, len(queries))
        found = embed_rows(self._fn, "queries", queries, every, queries.shape[2:], normalize) * self._scale
        if found.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"the index has vectors of {self.vectors.shape[1]} values, the queries of {found.shape[1]}: L, the "
                f"number of taps in use, is {self._fn.L} and was another"
            )
        _check_finite("queries", found.to(self.vectors.dtype))  # in the type of the stored vectors
        shape = len(queries), min(k, len(self))
        distances, indices = torch.full(shape, math.inf), torch.full(shape, -1)
        if 0 in shape:
            return distances, indices
        candidates = self._nearest(found, shape[1]) if faiss is None else self._by_faiss(found, shape[1], faiss)
        for i, (query, rows) in enumerate(zip(found.cpu(), candidates, strict=True)):
            rows = rows.sort().values  # of equally near images, the first then comes first
            parts = [direct_distances(query, self.vectors, part) for part in rows.split(_EXACT_ROWS)]
            exact = torch.cat(parts) / self._scale**2
            order = exact.argsort(stable=True)[: shape[1]]
            distances[i, : len(order)], indices[i, : len(order)] = exact[order].float(), rows[order]
        return distances, indices

    def _nearest(self, queries: Tensor, k: int) -> list[Tensor]:
        """For each query, the indices of the images that may be among its k nearest."""
        rows = max(1, _BLOCK_BYTES // (4 * self.vectors.shape[1]))
        distances = queries.new_zeros(len(queries), 0)
        near = distances.bool()
        indices = distances.long()
        for start in range(0, len(self), rows):
            block = self.vectors[start : start + rows].to(queries)
            here, _ = product_distances(queries, block)
            _check_finite("images", here.T, start)  # `load` leaves this check to the search
            distances = torch.cat((distances, here), dim=1)
            numbers = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
            indices = torch.cat((indices, numbers), dim=1)
            near = _near(queries, distances, k, product_rounding())
            distances, order = distances.topk(int(near.sum(dim=1).max()), dim=1, largest=False)
            near, indices = near.gather(1, order), indices.gather(1, order)
        return [row[kept] for row, kept in zip(indices.cpu(), near.cpu(), strict=True)]

    def _by_faiss(self, queries: Tensor, k: int, factory: str) -> list[Tensor]:
        """As `_nearest`, among the images that FAISS finds. FAISS, too, computes distances by a matrix product."""
        queries = queries.float().cpu()
        n = min(2 * k, len(self))
        try:
            if factory not in self._faiss:
                self._faiss[factory] = _faiss_index(self.vectors, factory)
            while True:
                found = self._faiss[factory].search(queries.numpy(), n)
                distances, indices = map(torch.from_numpy, found)
                near = _near(queries, distances, k, product_rounding(self.vectors.shape[1])) & (indices >= 0)
                if n == len(self) or not near[:, -1].any():
                    break
                n = min(4 * n, len(self))
        except (RuntimeError, MemoryError) as error:
            reason = str(error).rpartition(": ")[2]  # without FAISS's own file and line
            raise ValueError(
                f"faiss must be a factory string for {len(self)} vectors of {self.vectors.shape[1]}, "
                f"got {factory!r}: {reason}"
            ) from error
        near[:, : 2 * k] = indices[:, : 2 * k] >= 0  # more than k: most of FAISS's indexes are approximate
        return [row[kept] for row, kept in zip(indices, near, strict=True)]

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the index to a safetensors file, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        path = Path(path)
        metadata = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "header": json.dumps(self.header._asdict())}
        if self.names is not None:
            metadata["names"] = json.dumps(self.names)
        try:
            with replacing(path) as temporary:
                save_file({"vectors": self.vectors}, temporary, metadata)
        except (OSError, SafetensorError) as error:
            raise OSError(f"the index {path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str], fn: LPIPS) -> Index:
        """Reads an index from a file.

        The vectors stay in the file until a search needs them. The search also checks that they are finite.

        Args:
            path: a file that `save` wrote.
            fn: the distance; its net, version and weights must be the ones the index was made with.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no index, has another format, is damaged, or was made with another distance.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no index {path}")
        try:
            with safe_open(path, "pt") as file:
                return cls(fn, *_read(file, fn))
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as an index: {error}") from error


def _read(file: Any, fn: LPIPS) -> tuple[Header, Tensor, list[str] | None]:
    """The header, the vectors and the names in an index's file; all are checked, except the vectors' values.

    The vectors stay on the disk until a search, which checks that they are finite.
    """
    metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise ValueError("it is not an index of lpips_fast")
    if (version := metadata.get("format_version")) != _FORMAT_VERSION:
        raise ValueError(f"it is of format {version}, this version reads {_FORMAT_VERSION}: build it again")
    fields = _from_json(metadata, "header")
    unknown: dict[str, Any] = dict.fromkeys(_LATER)
    if not isinstance(fields, dict) or {*unknown, *fields} != {*Header._fields}:
        given = f"{fields!r:.99}" if not isinstance(fields, dict) else ", ".join(fields)
        raise ValueError(f"its header must have {', '.join(Header._fields)}, got {given:.199}")
    header = Header(**{**unknown, **fields})
    own = _header(fn, header.size, header.resized, header.normalize, header.raw)
    own = own._replace(reading=header.reading, transparent=header.transparent, opaque=header.opaque)
    for what, made_with, needed in zip(Header._fields, header, own, strict=True):
        if made_with != needed:
            raise ValueError(f"it was made with {what} {made_with!s:.99}, this LPIPS has {needed}: build it again")
    if not isinstance(header.reading, dict | None):
        raise ValueError(f"its reading must be options by name, got {header.reading!r:.99}")
    for what in ("resized", "normalize", "raw", "transparent", "opaque"):
        if not isinstance(flag := getattr(header, what), bool) and (flag is not None or what == "resized"):
            raise ValueError(f"its {what} must be true or false, got {flag!r:.99}")
    size = _checked_size(fn, header.size)
    length, vectors = _vector_length(fn, size), file.get_slice("vectors")
    dtype, shape = vectors.get_dtype(), vectors.get_shape()
    if dtype not in ("F16", "F32") or len(shape) != 2 or shape[1] != length:
        raise ValueError(
            f"its vectors must be F16 or F32 [N, {length}], for net {fn.pnet_type!r} and images of size {_by(size)}, "
            f"got {dtype} {shape}"
        )
    names = None
    if "names" in metadata and not isinstance(names := _from_json(metadata, "names"), list):
        raise ValueError(f"its names must be a list of strings, got {names!r:.99}")
    names = _checked_names(names, shape[0])
    return own._replace(size=size), file.get_tensor("vectors"), names


def _from_json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {key} must be JSON: {error}") from error


def _header(fn: LPIPS, size: tuple[int, int], resized: bool, normalize: bool | None, raw: bool | None) -> Header:
    """The header of an index of images; the fields about image files are unknown."""
    model = _spec(fn).model
    linear = fingerprint(fn.linear_weights() or [])
    trunk = fingerprint(fn.net.parameters())
    return Header(
        net=model,
        version=fn.version,
        lpips=fn.lpips,
        size=size,
        resized=resized,
        normalize=normalize,
        raw=raw,
        reading=None,
        transparent=None,
        opaque=None,
        linear_sha256=linear,
        trunk_sha256=trunk,
    )


def _spec(fn: LPIPS) -> Net:
    """The spec of fn's trunk; a ValueError if layers were changed since the constructor made them."""
    if not fn.is_stock():
        raise ValueError("fn must have the layers that it was made with, for an index does not know them from others")
    return fn.net.spec


def _checked_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"dtype must be torch.float16 or torch.float32, got {dtype}")
    return dtype


def _checked_size(fn: LPIPS, size: Sequence[int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Iterable) else ()
    smallest = _spec(fn).min_size
    if len(sides) != 2 or not all(isinstance(side, Integral) and side >= smallest for side in sides):
        raise ValueError(
            f"size must be height and width, two whole numbers of at least {smallest} pixels for net "
            f"{fn.pnet_type!r}, got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def _vector_length(fn: LPIPS, size: tuple[int, int]) -> int:
    """D of the vectors of images of that height and width, computed from shapes alone."""
    setting = Setting(fn.net.plan, torch.float32, torch.contiguous_format)
    try:
        images = torch.empty(0, 3, *size, device="meta")
        parameters = [torch.empty_like(p, device="meta") for p in fn.net.parameters()]
        taps, _ = run(setting, (images,), (None, None), parameters)
    except (RuntimeError, TypeError) as error:  # offsets that are no int64
        raise ValueError(f"size must be that of images, got {_by(size)}: {error}") from error
    return sum(tap.shape[1:].numel() for tap in taps[: fn.L])


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


def _check_finite(name: str, vectors: Tensor, start: int = 0) -> None:
    """Raises a ValueError that names the first image whose vector is NaN or infinite; `start` is the first's index.

    Call it after the vectors were copied to the CPU. The copy has waited for the device, so this check adds no wait.
    """
    finite = vectors.sum(dim=1, dtype=torch.float32).isfinite()  # several times faster than a check of each value
    if not finite.all():
        i = start + finite.tolist().index(False)
        raise ValueError(f"{name} must be finite, got NaN or infinite values in the vector of {name}[{i}]")


def _resized(fn: LPIPS, name: str, images: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or images.shape[2:] == size:
        return images
    if not images.is_floating_point() or 0 in images.shape[1:]:
        return fn.checked_image(name, images)  # raises an error
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _near(queries: Tensor, distances: Tensor, k: int, rounding: float) -> Tensor:
    """Whether each of the rounded distances [Q, n] may be among a query's k smallest: [Q, n].

    A distance is off by up to `rounding` (|q|^2 + |v|^2), and |v|^2 <= (|q| + |v - q|)^2 <= 2 |q|^2 + 2 |v - q|^2.
    """
    kth = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values[:, -1:]
    lengths = 3 * queries.square().sum(dim=1, keepdim=True) + 2 * kth
    return distances <= kth + 2 * rounding * lengths


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
    _check_finite("images", vectors)
    index = faiss.index_factory(vectors.shape[1], factory)
    if not index.is_trained:
        index.train(vectors.float().numpy())
    for block in vectors.split(max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))):
        index.add(block.float().numpy())
    return index
