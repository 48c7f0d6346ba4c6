"""Folders of images for the commands: what is in them, of what size, and which image belongs to which."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .options import ReadError, UsageError


def list_folder(folder: Path) -> list[Path]:
    """The images of a folder, at any depth: sorted paths relative to it."""
    from ..images import list_images, suffixes

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    paths = list_images(folder)
    if not paths:
        raise UsageError(f"{folder} has no images ({', '.join(sorted(suffixes()))})")
    return paths


def one_size(paths: Sequence[Path]) -> tuple[int, int]:
    """The width and height that all images have; those that cannot be read are left out."""
    from ..images import image_size

    counts: Counter[tuple[int, int]] = Counter()
    for path in paths:
        with contextlib.suppress(OSError):
            counts[image_size(path)] += 1
    if not counts:
        raise ReadError(f"none of the {len(paths)} images can be read, e.g. {paths[0]}")
    if len(counts) > 1:
        sizes = ", ".join(f"{n} of {w} x {h}" for (w, h), n in counts.most_common(5))
        raise UsageError(f"the images are of {len(counts)} sizes ({sizes}) and must be of one: use --size WIDTHxHEIGHT")
    return next(iter(counts))


class Match(NamedTuple):
    pairs: list[tuple[str, Path, Path]]  # name, path in the first folder, path in the second
    only_a: list[Path]
    only_b: list[Path]


def match(paths_a: list[Path], paths_b: list[Path]) -> Match:
    """Pairs relative paths by name, and what is left by name without suffix, where that is unambiguous.

    A pair's name is its path in the first folder.
    """
    in_b = set(paths_b)
    found = {a: a for a in paths_a if a in in_b}
    stems_a = _by_stem(a for a in paths_a if a not in found)
    stems_b = _by_stem(b for b in paths_b if b not in found)
    for stem, members in stems_a.items():
        if len(members) == len(stems_b.get(stem, ())) == 1:
            found[members[0]] = stems_b[stem][0]
    taken = set(found.values())
    return Match(
        [(a.as_posix(), a, found[a]) for a in paths_a if a in found],
        [a for a in paths_a if a not in found],
        [b for b in paths_b if b not in taken],
    )


def _by_stem(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    groups: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        groups[path.with_suffix("")].append(path)
    return groups
