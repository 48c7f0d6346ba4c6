"""Folders of images: the images in them, their size, and which image of one folder belongs to which of another."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lpips_fast.cli.errors import ReadError, UsageError


def list_folder(folder: Path) -> list[Path]:
    """The images of a folder, at any depth: sorted paths relative to the folder.

    Raises:
        UsageError: there is no such folder, or it has no images.
    """
    from lpips_fast.images import list_images, suffixes

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    paths = list_images(folder)
    if not paths:
        raise UsageError(f"{folder} has no images ({', '.join(sorted(suffixes()))})")
    return paths


def one_size(paths: Sequence[Path]) -> tuple[int, int]:
    """The width and height of all images. Images that cannot be read are left out.

    Raises:
        ReadError: none can be read.
        UsageError: the sizes differ.
    """
    from lpips_fast.images import image_size

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
    """The pairs of two folders, and the images of each that are in no pair."""

    pairs: list[tuple[str, Path, Path]]  # name, path in the first folder, path in the second
    only_a: list[Path]
    only_b: list[Path]


def match(paths_a: Sequence[Path], paths_b: Sequence[Path], pattern: str = "{name}") -> Match:
    """Pairs relative paths by name, and the remaining paths by name without suffix, if it is unique in both folders.

    The name of a pair is its path in the first folder.

    Args:
        paths_a, paths_b: the images of both folders.
        pattern: the names in the second folder without suffix. {name} stands for the name in the first folder.

    Raises:
        UsageError: the pattern has no {name}.
    """
    if "{name}" not in pattern:
        raise UsageError(f"--pattern must have {{name}} in it, for A's name without suffix, got {pattern!r}")
    in_b = set(paths_b)
    wanted = {a: Path(f"{named_by(pattern, a)}{a.suffix}") for a in paths_a}
    found = {a: wanted[a] for a in paths_a if wanted[a] in in_b}
    taken = set(found.values())
    stems_a = by_stem({a: wanted[a] for a in paths_a if a not in found})
    stems_b = by_stem({b: b for b in paths_b if b not in taken})
    for stem, members in stems_a.items():
        if len(members) == len(stems_b.get(stem, ())) == 1:
            found[members[0]] = stems_b[stem][0]
    taken = set(found.values())
    return Match(
        [(a.as_posix(), a, found[a]) for a in paths_a if a in found],
        [a for a in paths_a if a not in found],
        [b for b in paths_b if b not in taken],
    )


def named_by(pattern: str, a: Path) -> Path:
    """The path in the second folder, without suffix, that a pattern gives a path in the first."""
    return a.parent / pattern.replace("{name}", a.stem)


def by_stem(names: Mapping[Path, Path]) -> dict[Path, list[Path]]:
    """Groups paths by the names that they map to, without suffix."""
    groups: dict[Path, list[Path]] = defaultdict(list)
    for path, name in names.items():
        groups[name.with_suffix("")].append(path)
    return groups
