"""The page of groups: what it shows, and what no name can do."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np

from lpips_fast.cli.group_report import Member, NumberedGroup, group_page, ranked
from tests.support.pages import NAMES, Tags


def group(number, *distances, names=(), label=""):
    names = names or [f"{number}.{i}.png" for i in range(len(distances))]
    return NumberedGroup(number, [Member(label, n, d, f"/x/a/{n}") for n, d in zip(names, distances, strict=True)])


def page_of(groups, load=lambda path: np.zeros((8, 8, 3), np.uint8), place="/x"):
    return group_page(
        "Near-duplicates in a", {"net": "alex"}, {"groups": len(groups)}, groups, load, place and Path(place)
    )


def test_the_largest_groups_come_first_then_the_nearest():
    groups = [group(1, 0, 0.1), group(2, 0, 0.05), group(3, 0, 0.2, 0.1), group(4, 0, None), group(5, 0, 0.01)]
    assert [g.number for g in ranked(groups)] == [3, 4, 5, 2, 1]
    assert re.findall(r"<h2>Group (\d): (\d) images", page_of(groups)) == [
        ("3", "3"),
        ("4", "2"),
        ("5", "2"),
        ("2", "2"),
        ("1", "2"),
    ]


def test_distances_and_links():
    page = page_of([group(1, 0, 0.12345, None, label="b")])
    captions = ["<b>first</b> B 1.0.png", "<b>0.1235</b> B 1.1.png", "<b>–</b> B 1.2.png"]
    assert re.findall("<figcaption>(.*?)</figcaption>", page) == captions
    tags = re.findall('<a href="(.*?)"><img alt="(.*?)"', page)
    assert tags == [(f"a/1.{i}.png", f"1.{i}.png") for i in range(3)]
    assert "script" not in page


def test_the_summary_in_words():
    found = {"images_a": 3, "in_groups_a": 2, "groups": 1}
    page = group_page("Near-duplicates", {}, found, [], lambda path: None, None)
    heads = re.findall('<th scope="row">(.*?)</th>', page)
    assert heads == ["images of A", "images of A in groups", "groups"]


def test_not_more_than_a_page_holds():
    groups = [group(i, *range(12)) for i in range(203)]
    read = []
    page = page_of(groups, lambda path: read.append(path))
    assert page.count("<section>") == 2 + 200
    assert page.count("<figure>") == 200 * 8 == len(read)
    assert page.count("and 4 more") == 200
    assert "3 more groups are not shown" in page
    assert "not shown" not in page_of(groups[:200])


def test_images_that_cannot_be_shown():
    page = page_of([group(1, 0, 0.1)], lambda path: None)
    assert page.count('.png"><i>no picture</i></a>') == 2
    unknown = NumberedGroup(1, [Member("", "3", 0.0, None), Member("", "7", 0.1, None)])
    assert page_of([unknown]).count("<figure><i>no picture</i><figcaption>") == 2


def test_no_name_leaves_its_place_in_the_page():
    for place in ("/x/reports", "/x/a", None):
        hostile, harmless = (
            Tags(page_of([group(1, *[0.1] * 4, names=names[i : i + 4]) for i in (0, 4, 8)], place=place)).tags
            for names in (NAMES, ["n.png"] * len(NAMES))
        )
        assert [(tag, list(attributes)) for tag, attributes in hostile] == [(tag, list(a)) for tag, a in harmless]
        base = f"file://{place}/report.html" if place else "http://elsewhere/report.html"
        links = [attributes["href"] for tag, attributes in hostile if tag == "a"]
        files = [os.fsdecode(unquote_to_bytes(urlsplit(urljoin(base, link)).path)) for link in links]
        assert files == [f"/x/a/{name}" for name in NAMES]
        assert all(urlsplit(link).scheme == ("" if place else "file") for link in links)
