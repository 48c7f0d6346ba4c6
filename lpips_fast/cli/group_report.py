"""Groups of near-duplicates as one HTML page, without a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpips_fast.cli.page import STYLE, picture, properties, section, shown, shrink, url, whole_page

_GROUPS = 200  # groups with pictures, at most
_MEMBERS = 8  # pictures of a group, at most
_SIDE = 160  # of a picture, in pixels

# Numbers of the summary, as the page calls them.
_SUMMARY = {
    "images_a": "images of A",
    "images_b": "images of B",
    "in_groups": "images in groups",
    "in_groups_a": "images of A in groups",
    "in_groups_b": "images of B in groups",
    "surplus": "images in groups but the first of each",
}


class Member(NamedTuple):
    """An image of a group.

    Attributes:
        label: of the image's folder, a or b; empty if there is one folder.
        name: as results have it.
        lpips: to the first image of the group, 0 for the first, None if one of the two could not be read again.
        file: where the image is; None if that is unknown.
    """

    label: str
    name: str
    lpips: float | None
    file: str | None


class NumberedGroup(NamedTuple):
    """A group with its number in the results."""

    number: int
    members: Sequence[Member]


def ranked(groups: Sequence[NumberedGroup]) -> list[NumberedGroup]:
    """The largest groups first, of equally large ones those with the smaller distances."""

    def order(group: NumberedGroup) -> tuple[int, float]:
        return -len(group.members), sum(member.lpips or 0 for member in group.members)

    return sorted(groups, key=order)


def group_page(
    title: str,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    groups: Sequence[NumberedGroup],
    load: Callable[[str], np.ndarray | None],
    place: Path | None,
) -> str:
    """Makes the page.

    Args:
        title: the heading.
        settings: the settings of the run.
        summary: the numbers of images and groups.
        groups: all groups. The page shows up to 200, and up to 8 images of each.
        load: reads an image as uint8 [H, W, 3]; None if it cannot be read.
        place: the folder of the page, to which links are relative. None makes links absolute.
    """
    parts = [
        f"<h1>{shown(title)}</h1>",
        '<div class="columns">',
        section("Summary", properties({_SUMMARY.get(key, key): value for key, value in summary.items()})),
        section("Settings", properties(settings)),
        "</div>",
        '<p class="note">Under each image stands its LPIPS to the first image of its group. In a chain of images, each '
        "near to the next, it may exceed the limit. The largest groups come first; their numbers are those of "
        "--csv and --json.</p>",
    ]
    order = ranked(groups)
    for number, members in order[:_GROUPS]:
        figures = "".join(_figure(member, i == 0, load, place) for i, member in enumerate(members[:_MEMBERS]))
        more = len(members) - _MEMBERS
        note = f'<p class="note">and {more} more</p>' if more > 0 else ""
        parts.append(section(f"Group {number}: {len(members)} images", f'<div class="members">{figures}</div>{note}'))
    if (hidden := len(order) - _GROUPS) > 0:
        parts.append(f'<p class="note">{hidden} more groups are not shown; --csv and --json have all.</p>')
    return whole_page(title, "\n".join(parts), STYLE + _STYLE)


def _figure(member: Member, first: bool, load: Callable[[str], np.ndarray | None], place: Path | None) -> str:
    tag = "<i>no picture</i>"
    if member.file is not None:
        if (image := load(member.file)) is not None:
            tag = picture(shown(Path(member.file).name), shrink(image, _SIDE), _SIDE, "JPEG")
        tag = f'<a href="{url(member.file, place)}">{tag}</a>'
    distance = "first" if first else "–" if member.lpips is None else f"{member.lpips:.4f}"
    label = f"{member.label.upper()} " if member.label else ""
    return f"<figure>{tag}<figcaption><b>{distance}</b> {label}{shown(member.name)}</figcaption></figure>"


_STYLE = """\
.note { color: var(--muted); }
.members { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem .75rem; }
.members { line-height: 1.3; }
.members img { display: block; max-width: 100%; outline: 1px solid var(--line); outline-offset: -1px; }
.members figcaption { margin: .3rem 0 0; }
"""
