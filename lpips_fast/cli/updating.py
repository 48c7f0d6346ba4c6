"""Brings an index file up to date with a folder. Building it, updating it and going on after a kill are one thing.

A row is right if its bytes have its checksum, and the file of its name still has its stamps: size in bytes and time of
change. The rows that are right in FILE, and in the units of FILE.partial, are kept. The other images of the folder are
embedded, a unit at a time, and each unit is a small index file in FILE.partial, which appears there whole. At the end
FILE is written from all rows that are right, in the order of the folder, and FILE.partial is removed. --rebuild takes
no row that it has not made: its units have names of their own.

Each image goes through the trunk in a batch of the same size, wherever it is. So a row has the same bits, whichever run
and process makes it, and with it the file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_fast._files import replaceable
from lpips_fast.cli import output, processes
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.folders import list_folder, one_size
from lpips_fast.cli.indexing import Kind, Recipe, none_readable
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.settings import Reading
from lpips_fast.cli.sources import check_equal, check_options, stamp
from lpips_fast.lpips import LPIPS
from lpips_fast.search import Header, files
from lpips_fast.search.files import Table

# The files of FILE.partial: finished units, and FILE before it is in its place; and what `replacing` writes first.
_OWN = re.compile(r"(\.)?((unit|rebuilt)-[0-9]{6,}|whole)\.index(?(1)\.\w+\.index)")

_ASKED = "asked for", " (--rebuild builds it anew)"  # of messages about options that differ


class Updated(NamedTuple):
    """What `update_index` did."""

    images: int  # in the index
    kept: int  # of them, how many were there already
    kind: Kind
    errors: list[str]  # why images could not be read


@dataclass(frozen=True)
class _Part:
    """An index file: FILE, or a unit."""

    path: Path
    header: Header
    table: Table

    @functools.cached_property
    def sound(self) -> Tensor:
        """[N], whether each row is as it was written."""
        return files.sound_rows(self.path)

    @property
    def kind(self) -> Kind:
        sketch = self.header.sketch
        return Kind(None if sketch is None else sketch.length, self.table.vectors is not None)


@dataclass(frozen=True)
class _File:
    """FILE and FILE.partial."""

    out: Path  # FILE as the user names it
    model: Model
    reading: Reading
    rebuild: bool  # whether to take nothing from FILE

    @property
    def target(self) -> Path:
        return replaceable(self.out)

    @property
    def partial(self) -> Path:
        return self.target.with_name(f"{self.target.name}.partial")

    @functools.cached_property
    def whole(self) -> _Part | None:
        """FILE as it is, if there is something to take from it. It is read once, since no other run changes it."""
        if self.rebuild or not self.target.exists():
            return None
        try:
            header = files.read_header(self.target)
            check_options(self.out, header, self.model, self.reading, *_ASKED)
            return _read(self.target, self.model.lpips)
        except ValueError as error:
            raise UsageError(f"{error} (--rebuild builds it anew)") from error

    def check_partial(self) -> None:
        """Raises a UsageError if FILE.partial is something else, or holds what is not this command's to remove."""
        if self.partial.is_symlink() or (self.partial.exists() and not self.partial.is_dir()):
            raise UsageError(f"--output keeps what is finished in {self.partial}, which is no folder")
        if foreign := sorted({*self.partial.glob("*")} - {*self._own_files()}):
            raise UsageError(
                f"--output keeps what is finished in {self.partial}, and {foreign[0].name} there is none of it: move "
                "it away"
            )

    def unit(self, number: int) -> Path:
        return self.partial / f"{'rebuilt' if self.rebuild else 'unit'}-{number:06d}.index"

    def units(self, recipe: Recipe) -> dict[Path, _Part]:
        """The units that were made by the recipe and, with --rebuild, by --rebuild."""
        units = {}
        for path in sorted(self.partial.glob("rebuilt-*.index" if self.rebuild else "[ru]*-*.index")):
            with contextlib.suppress(ValueError):  # it is damaged, or of another network
                unit = _read(path, self.model.lpips)
                header = unit.header._replace(transparent=None, opaque=None, folder=recipe.header.folder)
                if (header, unit.kind) == (recipe.header, recipe.kind):
                    units[path] = unit
        return units

    def clear(self, kept: Collection[Path] = ()) -> None:
        """Removes this command's files from FILE.partial but those to keep, and the folder if it is then empty."""
        for path in self._own_files():
            if path not in kept:
                path.unlink()
        with contextlib.suppress(OSError):  # it is not empty, or not there
            self.partial.rmdir()

    def _own_files(self) -> list[Path]:
        return [path for path in self.partial.glob("*") if _OWN.fullmatch(path.name) and not path.is_dir()]


class _Plan(NamedTuple):
    """What there is to do, the same for all processes."""

    size: tuple[int, int]
    kind: Kind
    names: list[str]
    stamps: Tensor  # [N, 2]
    missing: list[int]  # the numbers of the images to embed
    next_unit: int  # the number of the first new unit

    @property
    def kept(self) -> int:
        return len(self.names) - len(self.missing)


def update_index(
    folder: Path,
    out: Path,
    model: Model,
    size: tuple[int, int] | None,
    reading: Reading,
    notices: Notices,
    kind: Kind | None = None,
    rebuild: bool = False,
) -> Updated:
    """Writes the index of a folder to a file, or brings it up to date. All processes of the group must call this.

    Args:
        out: the file.
        size: the width and height that all images take; None if they have one size already.
        kind: what to keep; None for what the file keeps or, without a file, what number and size of the images suggest.
        rebuild: whether to take nothing from the file.

    Raises:
        ReadError: no image can be read; or with --strict, one cannot.
        UsageError: there are no images, their sizes differ, or are too small for the net; or the file is no index, or
            was made with other options.
    """
    file = _File(out, model, reading, rebuild)
    resized = size is not None
    plan = processes.from_first(lambda: _plan(file, folder, model, size, reading, notices, kind))
    recipe = Recipe.of(folder, len(plan.names), model, reading, plan.size, resized, plan.kind)
    units = [*enumerate(recipe.units(len(plan.missing)), plan.next_unit)]
    errors: list[str] = []
    with output.progress(len(plan.missing), f"images ({plan.kept} from before)") as advance:
        made = _make_units(file, plan, recipe, processes.own(units), notices, advance)
        for of_each_process in processes.gathered(made, len(units)):
            for rank, images, why in of_each_process:
                errors += why
                if rank != processes.rank():
                    advance(images)
    images = _assemble(file, plan, recipe, errors) if processes.rank() == 0 else 0
    return Updated(images, plan.kept, plan.kind, errors)


def _plan(
    file: _File,
    folder: Path,
    model: Model,
    size: tuple[int, int] | None,
    reading: Reading,
    notices: Notices,
    kind: Kind | None,
) -> _Plan:
    file.check_partial()
    names = [path.as_posix() for path in list_folder(folder)]
    paths = [folder / name for name in names]
    stamps = torch.tensor([stamp(path) for path in paths])
    whole = file.whole
    if whole is None:
        wanted, kept = size or one_size(paths), kind
    else:
        height, width = whole.header.size
        wanted, kept = size or (width, height), kind or whole.kind
    recipe = Recipe.of(folder, len(names), model, reading, wanted, size is not None, kept)
    if whole is not None:
        _check_made_likewise(file.out, whole, recipe)
    units = file.units(recipe)
    places = _places(_parts(whole, units), names, stamps)
    if whole is not None and whole.header.folder != recipe.header.folder and (places < 0).all():
        raise UsageError(
            f"{file.out} is of {whole.header.folder}, and {folder} has none of its images: name another file "
            "(--rebuild builds it anew)"
        )
    file.clear(units)
    missing = (places[:, 0] < 0).nonzero()[:, 0].tolist()
    if whole is not None and not whole.sound.all():
        damaged = int((~whole.sound).sum())
        output.warn(f"{file.out} is damaged: {damaged} of its {len(whole.sound)} images are not taken from it")
    if whole is not None and missing:
        notices.index(file.out, whole.header.transparent, whole.header.opaque)
        if size is None:
            _check_size(file.out, recipe.size, [paths[i] for i in missing])
    numbers = [int(path.stem.rpartition("-")[2]) for path in units]
    return _Plan(recipe.size, recipe.kind, names, stamps, missing, max(numbers, default=-1) + 1)


def _check_size(out: Path, size: tuple[int, int], new: Sequence[Path]) -> None:
    """Raises a UsageError if new images have another size than those of the file."""
    with contextlib.suppress(ReadError):  # of one_size, if none can be read: each is named at the end
        if (of_new := one_size(new)) != size:
            raise UsageError(
                f"{out} is of images of {size[0]} x {size[1]} pixels, new ones are {of_new[0]} x {of_new[1]}: use "
                "--rebuild --size WIDTHxHEIGHT"
            )


def _make_units(
    file: _File,
    plan: _Plan,
    recipe: Recipe,
    units: Sequence[tuple[int, range]],
    notices: Notices,
    advance: Callable[[], None],
) -> Iterator[tuple[int, int, list[str]]]:
    """Makes units, and yields for each this process's rank, how many images it has, and why some cannot be read."""
    images = recipe.read([plan.names[plan.missing[i]] for _, unit in units for i in unit])
    for number, unit in units:
        rows = [plan.missing[i] for i in unit]
        built, errors = recipe.build([plan.names[row] for row in rows], images, notices, advance, plan.stamps[rows])
        if len(built):
            file.partial.mkdir(exist_ok=True)
            files.write(file.unit(number), built.header, [built.table])
        yield processes.rank(), len(unit), list(errors.values())


def _assemble(file: _File, plan: _Plan, recipe: Recipe, errors: Sequence[str]) -> int:
    """Writes FILE, and returns how many images are in it."""
    whole = file.whole
    parts = _parts(whole, file.units(recipe))
    places = _places(parts, plan.names, plan.stamps)
    order = places[places[:, 0] >= 0]
    if len(order) + len(errors) != len(plan.names):
        raise RuntimeError(f"{file.partial} lacks images that other processes have embedded: each machine must see it")
    if not len(order):
        raise none_readable(len(plan.names), errors[0])
    header = recipe.header._replace(
        transparent=any(part.header.transparent for part in parts), opaque=any(part.header.opaque for part in parts)
    )
    if whole is not None and whole.header == header and order.tolist() == [[0, row] for row in range(whole.table.rows)]:
        file.clear()  # units of images that are gone again
        return len(order)
    file.partial.mkdir(exist_ok=True)
    written = file.partial / "whole.index"  # if a kill leaves it behind, the next run removes it
    files.write(written, header, [part.table for part in parts], order)
    os.replace(written, file.target)
    file.clear()
    return len(order)


def _parts(whole: _Part | None, units: Mapping[Path, _Part]) -> list[_Part]:
    return [*([] if whole is None else [whole]), *units.values()]


def _read(path: Path, fn: LPIPS) -> _Part:
    header, table = files.read(path, fn)
    names = None if table.names is None else [*table.names]
    return _Part(path, header, table._replace(names=names))


def _check_made_likewise(out: Path, whole: _Part, recipe: Recipe) -> None:
    folder = whole.header.folder
    if whole.header.reading is None or folder is None or whole.table.names is None or whole.table.stamps is None:
        raise UsageError(f"{out} was made in Python, not by this command (--rebuild builds it anew)")
    check_equal(out, _options(whole.header, whole.kind), _options(recipe.header, recipe.kind), *_ASKED)


def _options(header: Header, kind: Kind) -> list[str]:
    """The options of `index` alone, as a user would give them."""
    height, width = header.size
    return [f"--size {width}x{height}" if header.resized else "no --size", str(kind)]


def _places(parts: Sequence[_Part], names: Sequence[str], stamps: Tensor) -> Tensor:
    """[N, 2], the part and its row that are right for each image; -1 if none is."""
    numbers = {name: i for i, name in enumerate(names)}
    places = torch.full((len(names), 2), -1)
    for number, part in enumerate(parts):
        table = part.table
        if table.names is None or table.stamps is None:
            continue
        images = torch.tensor([numbers.get(name, -1) for name in table.names], dtype=torch.int64)
        right = part.sound & (images >= 0) & (stamps[images] == table.stamps).all(dim=1)
        places[images[right], 0] = number
        places[images[right], 1] = right.nonzero()[:, 0]
    return places
