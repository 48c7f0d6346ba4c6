"""`lpips-fast duplicates`: groups of near-duplicates in a folder, or across two.

Processes share the tiles of pairs. Each finds the pairs that join images, and rank 0 makes groups of them, which are
the same for any number of processes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpips_fast.cli import command, output, processes
from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.folders import list_folder, one_size
from lpips_fast.cli.options import OUTPUT_PANEL, Csv, Json, Moved, Size, parse_size
from lpips_fast.cli.settings import Reading, Settings

if TYPE_CHECKING:
    import numpy as np

    from lpips_fast.cli.group_report import Member, NumberedGroup
    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.search import Index
    from lpips_fast.search.duplicates import Group

Where = Annotated[
    Path, typer.Argument(metavar="DIR|INDEX", show_default=False, help="A folder of images, or an index of one.")
]
Other = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR|INDEX",
        show_default=False,
        help="Another one: only pairs of an image of each count, as when test images are looked for in training data.",
    ),
]
Below = Annotated[float, typer.Option(help="Images are near-duplicates if their LPIPS is below this.")]
Report = Annotated[
    Path | None,
    typer.Option(help="Write a page (HTML, self-contained) with pictures.", rich_help_panel=OUTPUT_PANEL),
]

_SHOWN = 20  # groups on the screen
_SHOWN_MEMBERS = 8  # images of a group on the screen


@dataclass(frozen=True)
class Side:
    """Images that are compared: a folder or an index file, as it was given."""

    given: Path
    label: str  # in results; empty if there is one side
    index: Index
    folder: Path | None  # where the files are, or were; None if that is unknown

    @functools.cached_property
    def there(self) -> bool:
        """Whether the folder is there."""
        return self.folder is not None and self.folder.is_dir()

    def name(self, row: int) -> str:
        """The path of an image as the folder was given, or its name in the index, or its number if it has no name."""
        if self.index.names is None:
            return str(row)
        name = self.index.names[row]
        return str(self.given / name) if self.given == self.folder else name

    def file(self, row: int) -> str | None:
        """The image's file; None if it is unknown, or its folder is not there."""
        if self.folder is None or not self.there or self.index.names is None:
            return None
        return str(self.folder / self.index.names[row])


def duplicates(
    where: Where,
    settings: Settings,
    reading: Reading,
    other: Other = None,
    below: Below = 0.1,
    size: Size = None,
    folder: Moved = None,
    json: Json = None,
    csv: Csv = None,
    report: Report = None,
) -> None:
    """Groups of near-duplicates in a folder, or what two folders share.

    The images of a group are joined, directly or by others, by pairs with an LPIPS below --below. Each is listed with
    its LPIPS to the first one.
    """
    given = [where] if other is None else [where, other]
    wanted = parse_size(size)
    _check_options(given, wanted, below, folder)

    from lpips_fast.cli.model import Model
    from lpips_fast.cli.notices import Notices
    from lpips_fast.cli.sources import reading_errors

    with processes.group():
        notices = Notices(reading)
        sides, errors = _open(given, wanted, Model(settings), reading, notices, folder)
        found = _find(sides, below)
        for side in sides:
            errors += reading_errors(side.index, side.given)
        if report is not None:
            errors += [
                f"the images of {side.given} are not at {side.folder}, and {report} has no pictures of them; "
                f"lpips-fast index FOLDER -o {side.given} notes the new place"
                for side in sides
                if side.folder is not None and not side.there
            ]
        of_all = [of_each for round in processes.gathered([errors], processes.count()) for of_each in round]
        if processes.rank() == 0:
            groups = _numbered(sides, found)
            summary = _summary(sides, groups)
            height, width = sides[0].index.header.size
            described = {**settings.described(), **reading.described(), "size": [width, height], "below": below}
            if not output.to_stdout(json, csv, report):
                _print(groups, summary)
            compared = [str(side.given) for side in sides]
            rows = [{"group": number, "members": [_row(member) for member in members]} for number, members in groups]
            output.write_json(json, {"settings": described, "compared": compared, "summary": summary, "groups": rows})
            columns = ["group", "name", *(["folder"] if other is not None else []), "lpips"]
            output.write_csv(csv, [{"group": n, **_row(m)} for n, members in groups for m in members], columns)
            if report is not None:
                title = f"Near-duplicates {'in' if other is None else 'of'} {' and '.join(compared)}"
                on_page = {**described, "size": f"{width}x{height}"}
                of_all.append(_write_report(report, title, on_page, summary, groups, reading))
        if all(path.is_dir() for path in given):
            notices.tell()
        else:
            notices.tell(remedy="an index made with --background takes another colour")
    output.end(dict.fromkeys(itertools.chain(*of_all)))


def _check_options(given: Sequence[Path], size: tuple[int, int] | None, below: float, folder: Path | None) -> None:
    from lpips_fast.search.duplicates import checked_limit

    try:
        checked_limit("--below", below)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if len(given) == 2 and given[0].resolve() == given[1].resolve():
        raise UsageError(f"{given[0]} and {given[1]} are the same: give one, whose images are compared with each other")
    folders = [path for path in given if path.is_dir()]
    if folder is not None and folders:
        raise UsageError(f"--folder is for an index, and {folders[0]} is a folder")
    if folder is not None and len(given) > 1:
        raise UsageError("--folder is for one index alone; lpips-fast index FOLDER -o INDEX notes where images are now")
    if size is not None and not folders:
        raise UsageError("--size is for folders; an index has its size")
    if folders and processes.count() > 1:
        raise UsageError(f"torchrun shares the pairs of index files: make one, lpips-fast index {folders[0]} -o FILE")


def _open(
    given: Sequence[Path],
    size: tuple[int, int] | None,
    model: Model,
    reading: Reading,
    notices: Notices,
    moved: Path | None,
) -> tuple[list[Side], list[str]]:
    """Opens index files, makes indexes of folders, and says which files cannot be read."""
    from lpips_fast.cli.indexing import build_index
    from lpips_fast.cli.sources import open_index

    opened = {path: open_index(path, model, reading, notices, moved) for path in given if not path.is_dir()}
    sizes = [index.header.size[::-1] for index in opened.values() if index.header.resized]
    if size is None and sizes:
        size = sizes[0]
    elif size is None and not opened and len(given) > 1:
        size = one_size([folder / name for folder in given for name in list_folder(folder)])
    sides, errors = [], []
    for path, label in zip(given, "ab" if len(given) > 1 else [""]):
        if path in opened:
            index = opened[path]
            folder = moved or (None if index.header.folder is None else Path(index.header.folder))
        else:
            index, unreadable = build_index(path, model, size, reading, notices)
            errors += unreadable
            folder = path
        sides.append(Side(path, label, index, folder))
    (height, width), last = sides[0].index.header.size, sides[-1].index.header.size
    if (height, width) != last:
        raise UsageError(
            f"{given[0]} has images of {width} x {height}, {given[-1]} of {last[1]} x {last[0]}, and they must be of "
            "one size: use --size WIDTHxHEIGHT, for folders here and for an index where it is made"
        )
    return sides, errors


def _find(sides: Sequence[Side], below: float) -> list[Group]:
    """The groups, on rank 0. All processes look for pairs."""
    from lpips_fast.search.duplicates import find_edges, groups, tiles

    index, other = sides[0].index, sides[1].index if len(sides) > 1 else None
    own = processes.own_run(tiles(index, other))
    try:
        with output.progress(len(own), "tiles") as advance:
            edges = find_edges(index, other, own, below=below, progress=lambda done, total: advance())
        of_all = [of_each for round in processes.gathered([edges], processes.count()) for of_each in round]
        return groups(index, other, itertools.chain(*of_all))
    except ValueError as error:
        names = ", ".join(f"{name} is {side.given}" for name, side in zip(("index", "other"), sides))
        raise UsageError(f"{error} ({names}; lpips-fast index FOLDER -o FILE --rebuild builds one anew)") from error


def _numbered(sides: Sequence[Side], groups: Sequence[Group]) -> list[NumberedGroup]:
    from lpips_fast.cli.group_report import Member, NumberedGroup

    def member(number: int, row: int, distance: float) -> Member:
        side = sides[number]
        return Member(side.label, side.name(row), None if math.isnan(distance) else distance, side.file(row))

    return [
        NumberedGroup(n, [member(*at, distance) for at, distance in zip(group.members, group.distances)])
        for n, group in enumerate(groups, start=1)
    ]


def _summary(sides: Sequence[Side], groups: Sequence[NumberedGroup]) -> dict[str, int]:
    members = [member for group in groups for member in group.members]
    if len(sides) == 1:
        return {
            "images": len(sides[0].index),
            "groups": len(groups),
            "in_groups": len(members),
            "surplus": len(members) - len(groups),
        }
    summary = {f"images_{side.label}": len(side.index) for side in sides}
    summary["groups"] = len(groups)
    return summary | {f"in_groups_{side.label}": sum(m.label == side.label for m in members) for side in sides}


def _row(member: Member) -> dict[str, Any]:
    folder = {"folder": member.label} if member.label else {}
    return {"name": member.name, **folder, "lpips": member.lpips}


def _print(groups: Sequence[NumberedGroup], summary: dict[str, int]) -> None:
    """Prints the largest groups and the summary."""
    from lpips_fast.cli.group_report import ranked

    if len(groups) <= _SHOWN:
        title, listed = "Groups", list(groups)
    else:
        title, listed = f"The {_SHOWN} largest groups", ranked(groups)[:_SHOWN]
    rows = []
    for number, members in listed:
        for member in members[:_SHOWN_MEMBERS]:
            rows.append((member.name, str(number), "" if member.lpips is None else f"{member.lpips:.7g}"))
        if (more := len(members) - _SHOWN_MEMBERS) > 0:
            rows.append((f"and {more} more", str(number), ""))
    output.print_table(title, ("image", "group", "LPIPS to the first"), rows)
    output.print_summary(summary)


def _write_report(
    path: Path,
    title: str,
    settings: dict[str, Any],
    summary: dict[str, int],
    groups: Sequence[NumberedGroup],
    reading: Reading,
) -> list[str]:
    """Writes the page, and says why images cannot be shown: in one line, however many they are."""
    from lpips_fast.cli.group_report import group_page
    from lpips_fast.cli.reading import load

    errors: list[str] = []

    def pixels(file: str) -> np.ndarray | None:
        try:
            return load(Path(file), reading).pixels
        except OSError as error:  # the file has changed since it was compared
            errors.append(" ".join(str(error).split()))
            return None

    place = None if path == output.STDOUT else path.parent
    output.write_text(path, group_page(title, settings, summary, groups, pixels, place))
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    return [f"not shown in {path}: {errors[0]}{more}"] if errors else []


def register(app: typer.Typer) -> None:
    command.register(
        app,
        "duplicates",
        duplicates,
        [
            "lpips-fast duplicates photos/ --size 64x64 --below 0.1 --report duplicates.html",
            "lpips-fast duplicates train/ test/ --size 64x64 --csv shared.csv",
            "torchrun --nproc-per-node 4 -m lpips_fast duplicates photos.index --csv duplicates.csv",
        ],
        sharded=True,
    )
