"""The file of an index: one safetensors file, which a search maps into memory.

Its tensors have a row for each image:

    sketches    [N, m]  float16
    vectors     [N, D]  float16 or float32; one of sketches and vectors may be missing
    names       [B]     uint8, the names one after the other in UTF-8, with name_ends [N], int64; both may be missing
    stamps      [N, 2]  int64, size in bytes and time of change in nanoseconds of the image files; may be missing
    checksums   [N, 4]  uint8, the CRC-32 of the bytes of the vector, then of the sketch; the lowest byte comes first

and the metadata `format`, `format_version` and `header` (see header.py). The names are no metadata, because reading
these takes longer the more images there are. Loading checks shapes and types alone, and its time does not depend on N.
`sound_rows` checks the rows themselves.

The safetensors package writes what is in memory. An index may be larger, so this module writes the format itself
(https://github.com/huggingface/safetensors: the length of a JSON header, the header, the tensors) a block of rows at a
time, and reads it with the package.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lpips_fast._files import replacing
from lpips_fast.lpips import LPIPS
from lpips_fast.search import header as headers
from lpips_fast.search.header import Header, by

_FORMAT = "lpips_fast.Index"
_FORMAT_VERSION = "3"
_BLOCK_BYTES = 2**25  # of rows that are in memory while a file is written
_CHECKED = "vectors", "sketches"  # columns that the checksums are of, as they lie in the file
_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


class Table(NamedTuple):
    """What an index keeps of its images, a row each."""

    sketches: Tensor | None
    vectors: Tensor | None
    names: Sequence[str] | None
    stamps: Tensor | None

    @property
    def rows(self) -> int:
        columns = (self.sketches, self.vectors)
        return next(len(column) for column in columns if column is not None)

    def selected(self, rows: Tensor) -> Table:
        """The rows of these numbers."""
        sketches, vectors, stamps = (None if c is None else c[rows] for c in (self.sketches, self.vectors, self.stamps))
        names = None if self.names is None else [self.names[row] for row in rows.tolist()]
        return Table(sketches, vectors, names, stamps)

    def joined(self, other: Table) -> Table:
        """These rows, then the rows of a table with the same columns."""
        columns = [
            None if mine is None or theirs is None else torch.cat((mine, theirs))
            for mine, theirs in zip(
                (self.sketches, self.vectors, self.stamps), (other.sketches, other.vectors, other.stamps), strict=True
            )
        ]
        names = None if self.names is None or other.names is None else [*self.names, *other.names]
        return Table(columns[0], columns[1], names, columns[2])


class Names(Sequence[str]):
    """The names in a file, read one by one when they are asked for."""

    def __init__(self, text: Tensor, ends: Tensor) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start, end = (0 if at == 0 else int(self._ends[at - 1])), int(self._ends[at])
        self._check(at, start, end)
        return _decoded(self._text[start:end].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        """Takes all of them from the file at once, which is many times faster than one by one."""
        text, start = self._text.numpy().tobytes(), 0
        for at, end in enumerate(self._ends.tolist()):
            self._check(at, start, end)
            yield _decoded(text[start:end])
            start = end

    def _check(self, at: int, start: int, end: int) -> None:
        if not 0 <= start <= end <= len(self._text):
            raise ValueError(f"the index is damaged: its name {at} lies at {start} to {end} of {len(self._text)} bytes")


def write(path: Path, header: Header, tables: Sequence[Table], order: Tensor | None = None) -> None:
    """Writes an index, whole or not at all.

    Args:
        tables: the rows, in tables with the same columns.
        order: [N, 2], the table and the row in it of each row of the index; None for all rows of the tables in turn.

    Raises:
        OSError: the file cannot be written.
        ValueError: a name is no text.
    """
    if order is None:
        of = [torch.full((table.rows,), number) for number, table in enumerate(tables)]
        order = torch.stack((torch.cat(of), torch.cat([torch.arange(table.rows) for table in tables])), dim=1)
    columns: dict[str, tuple[torch.dtype, list[int], Iterator[Tensor]]] = {}

    def add(name: str, column: Sequence[Tensor | None]) -> None:
        parts = [part for part in column if part is not None]
        if parts:
            shape = [len(order), *parts[0].shape[1:]]
            columns[name] = parts[0].dtype, shape, _in_order(parts, order)

    add("stamps", [table.stamps for table in tables])
    if tables[0].names is not None:
        encoded = [_encoded(tables[table].names, row) for table, row in order.tolist()]
        ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)
        columns["name_ends"] = torch.int64, [len(ends)], iter([ends])
    add("vectors", [table.vectors for table in tables])
    add("sketches", [table.sketches for table in tables])
    checksums = np.zeros(len(order), "<u4")  # filled while the rows are written
    columns["checksums"] = torch.uint8, [len(order), 4], iter([torch.from_numpy(checksums.view(np.uint8)).view(-1, 4)])
    if tables[0].names is not None:
        blob = bytearray(b"".join(encoded))
        text = torch.frombuffer(blob, dtype=torch.uint8) if blob else torch.empty(0, dtype=torch.uint8)
        columns["names"] = torch.uint8, [len(text)], iter([text])
    metadata = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "header": header.to_json()}
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(_safetensors_header(metadata, {k: (dtype, shape) for k, (dtype, shape, _) in columns.items()}))
            for name, (_, _, blocks) in columns.items():
                start = 0
                for block in blocks:
                    rows = block.cpu().numpy()
                    if name in _CHECKED:
                        _add(checksums[start:], rows)
                        start += len(rows)
                    file.write(rows.tobytes())
    except OSError as error:
        raise OSError(f"the index {path} cannot be written: {error}") from error


def read_header(path: str | PathLike[str]) -> Header:
    """How an index was made, whatever the distance. It raises what `read` raises for the file alone."""
    with _opened(path) as file:
        return _header(file)


def read(path: str | PathLike[str], fn: LPIPS) -> tuple[Header, Table]:
    """An index's header and its columns, which stay in the file; a search checks that their numbers are finite.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no index, has another format, is damaged, or was made with another distance than fn.
    """
    with _opened(path) as file:
        return _read(file, fn)


def sound_rows(path: str | PathLike[str]) -> Tensor:
    """[N], whether the vector and the sketch of each image are as they were written. It reads the whole file.

    Raises:
        FileNotFoundError, ValueError: as `read`, but for the distance, which is not asked for.
    """
    with _opened(path) as file:
        stored = file.get_tensor("checksums").numpy().view("<u4")[:, 0]
        found = np.zeros_like(stored)
        for name in _CHECKED:
            if name in file.keys():
                column, start = file.get_tensor(name), 0
                for block in column.split(max(1, _BLOCK_BYTES // max(1, column[:1].nbytes))):
                    _add(found[start:], block.numpy())
                    start += len(block)
        return torch.from_numpy(found == stored)


def _add(checksums: np.ndarray, rows: np.ndarray) -> None:
    """Goes on with the first checksums by rows."""
    for i, row in enumerate(rows):
        checksums[i] = zlib.crc32(row, int(checksums[i]))


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Any]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no index {path}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an index: {error}") from error


def _header(file: Any) -> Header:
    metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise ValueError("it is not an index of lpips_fast")
    if (version := metadata.get("format_version")) != _FORMAT_VERSION:
        raise ValueError(f"it is of format {version}, this version reads {_FORMAT_VERSION}: build it again")
    return headers.read_header(metadata.get("header", "null"))


def _read(file: Any, fn: LPIPS) -> tuple[Header, Table]:
    header = headers.checked_header(_header(file), fn)
    there = {*file.keys()}
    wanted = {"vectors", "sketches"} & there
    if "checksums" not in there:
        raise ValueError(f"it must have checksums, got {sorted(there)}")
    if ("sketches" in there) != (header.sketch is not None) or not wanted:
        raise ValueError(f"it must have vectors, or the sketches that its header tells of, got {sorted(there)}")
    rows = file.get_slice(min(wanted)).get_shape()[:1]
    count = rows[0] if rows else 0
    described = f"for net {fn.pnet_type!r} and images of size {by(header.size)}"
    expected = {
        "vectors": (("F16", "F32"), [count, header.values], described),
        "sketches": (("F16",), [count, header.sketch.length if header.sketch else 0], "by its header"),
        "stamps": (("I64",), [count, 2], "two an image"),
        "name_ends": (("I64",), [count], "one an image"),
        "checksums": (("U8",), [count, 4], "four bytes an image"),
    }
    columns: dict[str, Tensor | None] = dict.fromkeys(expected)
    for name, (dtypes, shape, why) in expected.items():
        if name in there:
            part = file.get_slice(name)
            if part.get_dtype() not in dtypes or part.get_shape() != shape:
                needed = f"{' or '.join(dtypes)} {['N', *shape[1:]]}".replace("'", "")
                raise ValueError(
                    f"its {name} must be {needed}, {why}, N = {count}, got {part.get_dtype()} {part.get_shape()}"
                )
            columns[name] = file.get_tensor(name)
    names = None
    if (ends := columns["name_ends"]) is not None:
        text = file.get_tensor("names")
        if text.dtype != torch.uint8 or text.dim() != 1 or len(text) != (int(ends[-1]) if count else 0):
            raise ValueError(f"its names must be the bytes that name_ends tells of, got {text.dtype} {[*text.shape]}")
        names = Names(text, ends)
    return header, Table(columns["sketches"], columns["vectors"], names, columns["stamps"])


def _in_order(tables: Sequence[Tensor], order: Tensor) -> Iterator[Tensor]:
    """The rows of an index, a block at a time, from columns of its tables."""
    row_bytes = tables[0].shape[1:].numel() * tables[0].element_size()
    for part in order.split(max(1, _BLOCK_BYTES // max(1, row_bytes))):
        block = tables[0].new_empty(len(part), *tables[0].shape[1:])
        for number in part[:, 0].unique().tolist():
            here = part[:, 0] == number
            block[here] = tables[number][part[here, 1]]
        yield block


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _encoded(names: Sequence[str] | None, row: int) -> bytes:
    assert names is not None  # as in the other tables
    try:
        return names[row].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"names[{row}] must be text, got {names[row]!r:.99}") from error


def _safetensors_header(metadata: dict[str, str], tensors: dict[str, tuple[torch.dtype, list[int]]]) -> bytes:
    described: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        described[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # the tensors, the ones of longer types first, are then aligned to their types
    return len(text).to_bytes(8, "little") + text
