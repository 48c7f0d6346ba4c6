"""The report of `dirs`: the page itself, and as a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.report import Example, choose_examples, report_page
from lpips_fast.cli.results import FilePair
from tests.support.image_files import save_noise
from tests.support.pages import NAMES, Tags
from tests.support.tolerances import BAR_WIDTH_TOLERANCE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DARK, LIGHT = (f"--blink-settings=preferredColorScheme={i}" for i in (0, 1))


@pytest.fixture
def browser(tmp_path):
    """Runs a headless Chromium on a page and returns what it prints."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")

    def browser(page, *options: str) -> str:
        fixed = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile"]
        if os.geteuid() == 0:
            fixed.append("--no-sandbox")  # Chromium has no sandbox for root
        done = subprocess.run(
            [program, *fixed, *options, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return browser


@pytest.fixture
def evaluate(browser, tmp_path):
    """Evaluates an expression of `page`, a document in a frame. It is as written, with its policy in force."""

    def evaluate(text: str, expression: str, *options: str, width: int = 1200, scripts: bool = True):
        sandbox = "" if scripts else "sandbox=allow-same-origin"
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<!DOCTYPE html><meta charset="utf-8"><iframe {sandbox} width={width} height=900 srcdoc="{escape(text)}">'
            "</iframe><pre></pre>"
            "<script>onload = () => { const page = document.querySelector('iframe').contentDocument;"
            f"document.querySelector('pre').textContent = JSON.stringify({expression}); }}</script>",
            encoding="utf-8",
        )
        return json.loads(unescape(re.search("<pre>(.*)</pre>", browser(frame, "--dump-dom", *options))[1]))

    return evaluate


def paired(*distances: float, names: tuple[str, ...] = ()) -> list[tuple[FilePair, float]]:
    names = names or tuple(f"{i}.png" for i in range(len(distances)))
    return [(FilePair(name, f"a/{name}", f"b/{name}"), d) for name, d in zip(names, distances, strict=True)]


def page_of(distances, examples=None, errors=(), place: Path | None = Path(), unmatched=((), ())) -> str:
    settings, summary = {"net": "alex"}, {"count": len(distances)}
    return report_page(("a", "b"), settings, summary, distances, errors, unmatched, examples or {}, place)


def noise(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def example(name: str = "0.png", height: int = 32, width: int = 32) -> Example:
    image = noise(0, height, width)
    return Example(FilePair(name, f"a/{name}", f"b/{name}"), 0.5, image, image, np.ones((height, width), np.float32))


def test_report_of_dirs_in_a_browser(call, browser, evaluate, trunk, tmp_path):
    for i in range(12):
        save_noise(tmp_path / "a" / f"{i}&<b>.png", i)
        save_noise(tmp_path / "b" / f"{i}&<b>.png", i + 100 if i else 0)
    save_noise(tmp_path / "a" / "broken.png", 0)
    (tmp_path / "b" / "broken.png").touch()
    save_noise(tmp_path / "b" / "only<b>.png", 0)
    call("dirs", "a", "b", "--report", "report.html", *trunk, status=1)
    page = tmp_path / "report.html"
    assert not re.search(r'src="(?!data:)', page.read_text()), "nothing from elsewhere"

    shown = browser(page, "--dump-dom")
    assert '<p id="filter">' in shown, "the policy lets the script run"
    assert shown.count("<figure>") == 8
    assert [shown.count(f"<b>{heading}</b>") for heading in ("A", "B", "map")] == [8, 8, 8]
    assert shown.count("<img ") == 3 * 8 + 1, "and the scale of the maps"
    assert shown.count("11&amp;&lt;b&gt;.png") >= 1
    assert sum(int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", shown)) == 12, (
        "every pair is in the histogram"
    )
    assert "Not compared (2)" in shown
    assert re.search(r"only&lt;b&gt;.png</td><td>no counterpart in a</td>", shown)

    places = "['svg', '.figures'].map(s => page.querySelector(s).getBoundingClientRect())"
    height, *boxes = evaluate(page.read_text(), f"[page.documentElement.scrollHeight, ...{places}]")
    browser(page, f"--screenshot={tmp_path / 'page.png'}", f"--window-size=1200,{height}", LIGHT)
    picture = np.array(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert picture.shape == (height, 1200, 3)
    histogram, figures = (picture[int(box["top"]) : int(box["bottom"])] for box in boxes)
    assert (np.abs(histogram - [0xB5, 0x36, 0x7A]).max(axis=2) < 8).sum() > 500, "the bars are there"
    assert (figures.std(axis=2) > 20).sum() > 20_000, "the images are there"


def test_links_of_dirs_lead_to_the_files(run, evaluate, trunk, tmp_path):
    (tmp_path / "out").mkdir()
    for folder in "ab":
        for i, name in enumerate(NAMES):
            save_noise(tmp_path / folder / "sub" / name, i)
    run("dirs", "a", "b", "--report", "out/report.html", *trunk)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    links = evaluate(
        text.replace('href="../', 'href="'),  # the page that holds the frame is a folder higher
        "Array.from(page.querySelectorAll('#distances a'), a => [a.textContent, a.href])",
    )
    files = [os.fsdecode(unquote_to_bytes(urlsplit(url).path)) for _, url in links]
    assert all(url.startswith("file:///") for _, url in links)
    assert sorted(files) == sorted(str(tmp_path / folder / "sub" / name) for folder in "ab" for name in NAMES)
    assert [label for label, _ in links] == ["A", "B"] * len(NAMES)


@pytest.mark.parametrize("place", ["/x/reports", "/x/a", "/", None])
def test_no_name_leaves_its_place_in_the_page(place):
    distances = [(FilePair(name, f"/x/a/{name}", f"/x/b/{name}"), 0.5) for name in NAMES]
    plain = [(FilePair("n.png", "/x/a/n.png", "/x/b/n.png"), 0.5) for _ in NAMES]
    pages = []
    for pairs in (distances, plain):
        shown = {"Largest distances": [example()._replace(pair=pair) for pair, _ in pairs]}
        errors, only_a = [(pair, pair.name) for pair, _ in pairs], [pair.a for pair, _ in pairs]
        pages.append(page_of(pairs, shown, errors, place and Path(place), unmatched=(only_a, ())))
    hostile, harmless = (Tags(page).tags for page in pages)
    assert [(tag, list(attributes)) for tag, attributes in hostile] == [(tag, list(a)) for tag, a in harmless]
    assert pages[0].encode("utf-8"), "without surrogates"

    base = f"file://{place}/report.html" if place else "http://elsewhere/report.html"
    links = [attributes["href"] for tag, attributes in hostile if tag == "a"]
    files = [os.fsdecode(unquote_to_bytes(urlsplit(urljoin(base, link)).path)) for link in links]
    assert all(urlsplit(link).scheme == ("" if place else "file") for link in links)
    of_pairs = [f"/x/{folder}/{name}" for name in NAMES for folder in "ab"]
    assert files == [*of_pairs, *of_pairs, *(f"/x/a/{name}" for name in NAMES), *of_pairs]


def test_folders_are_named_as_they_are():
    page = report_page(("$style", "<i>{body}"), {}, {}, [], [], ((), ()), {}, None)
    assert page.count("LPIPS of $style and &lt;i&gt;{body}") == 2


def test_pictures_name_what_differs_in_their_paths():
    pairs = (("/d/run1/out/1.png", "/d/run2/out/1.png"), ("a/1.png", "b/1.jpg"), ("x/a/1.png", "x/1.png"), ("x", "x"))
    figures = [example()._replace(pair=FilePair("1", *files)) for files in pairs]
    parts = re.findall("<small>(.*?)</small>", page_of(paired(0.5), {"Largest distances": figures}))
    assert parts == ["run1", "run2", "a/1.png", "b/1.jpg", "a/1.png", "1.png", "x", "x"]


def test_the_policy_allows_this_script_and_style_alone(evaluate):
    page = page_of(paired(0.5))
    for tag in ("script", "style"):
        content = re.search(f"<{tag}>(.*)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page
    ran = "page.title"
    strange = "<script>document.title = 'ran'</script>"
    assert evaluate(page + strange, ran) == "LPIPS of a and b"
    assert evaluate(page.replace("'sha256-", "'unsafe-inline' 'sha-") + strange, ran) == "ran", "but for the policy"
    assert evaluate(page.replace("const rows", "let rows"), "page.getElementById('filter').hidden")


ROWS = "Array.from(page.querySelectorAll('#distances tbody tr'), r => r.hidden ? '' : r.cells[2].textContent)"
TABLE = paired(0.1, 0.30000001, 0.3, 0.2, names=("f10.png", "f9.png", "É.png", "f1.png"))


def test_the_page_is_whole_without_its_script(evaluate):
    page = page_of(TABLE)
    shown = f"[page.getElementById('filter').checkVisibility(), page.querySelectorAll('button').length, {ROWS}]"
    assert evaluate(page, shown, scripts=False) == [False, 0, ["f9.png", "É.png", "f1.png", "f10.png"]]
    assert evaluate(page, shown) == [True, 2, ["f9.png", "É.png", "f1.png", "f10.png"]]


@pytest.mark.parametrize(
    "clicks, order, sort",
    [
        ("0", "f10 f1 É f9", ["ascending", None]),
        ("00", "f9 É f1 f10", ["descending", None]),
        ("1", "É f1 f9 f10", [None, "ascending"]),
        ("11", "f10 f9 f1 É", [None, "descending"]),
        ("110", "f10 f1 É f9", ["ascending", None]),
    ],
)
def test_the_table_sorts(evaluate, clicks, order, sort):
    click = "".join(f"page.querySelectorAll('#distances button')[{i}].click()," for i in clicks)
    sorts = "Array.from(page.querySelectorAll('#distances [data-order]'), h => h.getAttribute('aria-sort'))"
    names, sorted_by = evaluate(page_of(TABLE), f"[{click} {ROWS}, {sorts}].slice(-2)")
    assert names == [f"{name}.png" for name in order.split()]
    assert sorted_by == sort


@pytest.mark.parametrize(
    "piece, shown, count",
    [
        ("F1", ["", "", "f1.png", "f10.png"], "2 of 4"),
        ("e\u0301", ["", "É.png", "", ""], "1 of 4"),
        (".*", ["", "", "", ""], "0 of 4"),
        ("", ["f9.png", "É.png", "f1.png", "f10.png"], ""),
    ],
)
def test_the_table_filters(evaluate, piece, shown, count):
    steps = "".join(
        f"page.querySelector('input').value = {json.dumps(text)},"
        "page.querySelector('input').dispatchEvent(new Event('input')),"
        for text in ("x", piece)
    )
    assert evaluate(page_of(TABLE), f"[{steps} {ROWS}, page.querySelector('output').textContent].slice(-2)") == [
        shown,
        count,
    ]


@pytest.mark.parametrize("width", [390, 1200])
def test_layout(evaluate, width):
    long = "n" * 120 + ".png"
    settings = {"weights_sha256": "0" * 64, "b": "folder" * 20}
    distances = paired(0.5, 0.25, names=(long, "0.png"))
    examples = {"Largest distances": [example(long), example("tall", 320, 60), example("wide", 20, 320)]}
    errors, unmatched = [(distances[0][0], "w" * 99)], ((), (long,))
    page = report_page(("a" * 90, "b"), settings, {}, distances, errors, unmatched, examples, Path())
    boxes = "Array.from(page.querySelectorAll('.panels img'), i => i.getBoundingClientRect())"
    scrolled, boxes = evaluate(page, f"[page.documentElement.scrollWidth, {boxes}]", width=width)
    assert scrolled <= width, "nothing overflows"
    for a, b, of_map in zip(boxes[::3], boxes[1::3], boxes[2::3], strict=True):
        assert min(a["width"], a["height"]) >= 8
        assert a["top"] == b["top"]
        assert a["right"] <= b["left"]
        if width == 390:
            assert of_map["top"] >= a["bottom"]
            assert of_map["left"] == a["left"]
        else:
            assert of_map["top"] == a["top"]


@pytest.mark.parametrize("scheme, dark", [(DARK, True), (LIGHT, False)])
def test_contrast(evaluate, scheme, dark):
    page = page_of(paired(0.5, 0.25), {"Largest distances": [example()]}, [(FilePair("x", "a/x", "b/x"), "broken")])
    colors = evaluate(
        page,
        "['rect', '.axis', 'text', 'h1', 'figcaption', 'small', 'th', 'td', 'td a', 'button', '.scale']"
        ".map(s => getComputedStyle(page.querySelector(s))).map((s, i) => i < 3 ? s.fill : s.color)"
        ".concat(getComputedStyle(page.querySelector('#distances th')).backgroundColor)",
        scheme,
    )
    *texts, ground = (luminance(color) for color in colors)
    assert (ground < 0.1) == dark
    for color, text in zip(colors, texts):
        ratio = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        assert ratio >= 4.5, f"{color} on {colors[-1]}"


def luminance(color: str) -> float:
    """The relative luminance of WCAG 2."""
    rgb = np.array([int(n) for n in re.findall(r"\d+", color)[:3]]) / 255
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def histogram(values):
    """The edges of the bins and the counts in them, from the page."""
    page = page_of(paired(*values))
    bars = re.findall(r"<title>(\S+) to (\S+): (\d+)</title>", page)
    labels = [float(x) for x in re.findall(r'<text x="[^"]*" y="204" text-anchor="middle">([^<]*)<', page)]
    return [float(low) for low, _, _ in bars] + [float(bars[-1][1])], [int(n) for *_, n in bars], labels


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0.41, 0.47, 500),
        np.linspace(0.0, 1.0, 11),
        np.linspace(0.1, 0.3, 3),
        np.geomspace(1e-7, 3e-6, 40),
        [-0.02, 0.05],
        [120.0, 180.0, 240.0],
        [0.99, 0.992, 1.0],
    ],
)
def test_the_histograms_axis_fits(values):
    edges, counts, labels = histogram(values)
    step = edges[1] - edges[0]
    assert sum(counts) == len(values)
    assert len(counts) <= 31
    assert 3 <= len(labels) <= 9
    assert len(set(labels)) == len(labels)
    margin = step * (1.001 if max(values) - min(values) > 4 * step else 3.001)
    assert edges[0] - step * 1e-6 <= min(values) <= edges[0] + margin
    assert edges[-1] - margin <= max(values) <= edges[-1] + step * 1e-6
    assert np.allclose(np.diff(edges), step, rtol=BAR_WIDTH_TOLERANCE)
    for i, count in enumerate(counts):
        inside = sum(edges[i] - 1e-6 * step <= v <= edges[i + 1] + 1e-6 * step for v in values)
        assert count <= inside, "a bar's numbers are those it is labelled with"
    digits = f"{step:.3e}"[0]
    assert digits in "125", "round numbers"


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [0.5], [0.3] * 50, [0.5, 0.50001], [1e-8] * 3, [-0.5]])
def test_the_histogram_of_equal_values(values):
    edges, counts, _ = histogram(values)
    assert len(counts) == 5
    assert max(counts) == sum(counts) == len(values)
    bar = counts.index(len(values))
    assert edges[bar] - 1e-12 <= values[0] <= edges[bar + 1]
    assert edges[0] >= 0 or values[0] < 0, "no distances below 0 where there are none"
    assert edges[1] - edges[0] >= abs(values[0]) / 20, "no axis of differences that there are not"


def test_the_histogram_labels_its_counts():
    page = page_of(paired(*[0.1] * 40, *[0.2] * 10))
    assert [f">{n}<" in page for n in (0, 10, 20, 30, 40)] == [True] * 5
    assert ">LPIPS</text>" in page
    assert ">pairs</text>" in page


def test_images_without_a_counterpart_are_listed():
    """Each has a link to its file."""
    page = page_of(
        [], errors=[(FilePair("x", "a/x", "b/x"), "broken")], unmatched=(["1.png", "sub/<2>.png"], ["3.png"])
    )
    assert "Not compared (4)" in page
    rows = re.findall("<td>(<a.*?)</td><td>(.*?)</td><td>(.*?)</td>", page)
    assert rows[1:] == [
        ('<a href="a/1.png">A</a>', "1.png", "no counterpart in b"),
        ('<a href="a/sub/%3C2%3E.png">A</a>', "sub/&lt;2&gt;.png", "no counterpart in b"),
        ('<a href="b/3.png">B</a>', "3.png", "no counterpart in a"),
    ]
    assert "Not compared" not in page_of(paired(0.5))


def test_the_scale_is_in_one_line(evaluate):
    page = page_of(paired(0.5), {"Largest distances": [example()._replace(map=np.full((32, 32), 0.307, np.float32))]})
    text, lines = "page.querySelector('.scale').textContent", "page.querySelector('.ramp').getClientRects().length"
    shown = evaluate(page, f"[{text}, {lines}]", width=390)
    assert shown == ["Scale of all maps: 0  0.307", 1]


def test_no_scale_where_all_maps_are_0():
    same = example()._replace(map=np.zeros((32, 32), np.float32))
    assert "Scale of all maps" not in page_of(paired(0.0), {"Largest distances": [same]})
    assert "Scale of all maps" in page_of(paired(0.5), {"Largest distances": [same, example()]})


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.5]])
def test_page_of_little(values):
    assert ("<svg" in page_of(paired(*values))) == bool(values)


def chosen(images, distances):
    """The numbers of the pairs in each group, and of the pairs that were read, in order."""
    read = []

    def load(pair):
        read.append(int(pair.name.split(".")[0]))
        image = images[read[-1]]
        return None if image is None else (image, image)

    groups = choose_examples(paired(*distances), load, lambda images: images[0][..., 0] / np.float32(255))
    for group in groups.values():
        values = [e.distance for e in group]
        assert values == sorted(values, reverse=True)
    names = {heading.split()[0]: [int(e.pair.name.split(".")[0]) for e in group] for heading, group in groups.items()}
    return names, read


def test_examples_of_large_median_and_small_distances():
    n = 41
    order = np.random.default_rng(0).permutation(n)
    names, read = chosen([noise(i) for i in range(n)], order / n)
    by_distance = np.argsort(-order).tolist()
    assert names["Largest"] == by_distance[:4]
    assert by_distance[20] in names["Around"]
    assert set(names["Around"]) < set(by_distance[19:22])
    assert names["Smallest"] == by_distance[-2:]
    assert len(read) == 8, "no more than shown"


@pytest.mark.parametrize("n", range(9))
def test_few_pairs_are_shown_once(n):
    names, _ = chosen([noise(i) for i in range(n)], [1 - i / 10 for i in range(n)])
    shown = [i for group in names.values() for i in group]
    assert shown == sorted(set(shown)), "each once, in order of distance"
    assert len(shown) == min(n, 7), "and a third of 8 is 3"


def test_frames_of_one_scene_give_one_example_a_group():
    wide = noise(0, 6, 12).repeat(16, axis=0).repeat(16, axis=1)
    still = noise(1, 6, 8).repeat(16, axis=0).repeat(16, axis=1) // 2
    pan = [wide[:, i // 3 : i // 3 + 128] for i in range(12)]
    brighter = [still + np.uint8(i) for i in range(12)]
    grainy = [wide[:, :128] // 2 + noise(i, 96, 128) // 4 for i in range(12)]
    names, read = chosen([*pan, *brighter, *grainy], [1 - i / 100 for i in range(36)])
    assert names == {"Largest": [0], "Around": [17], "Smallest": [35]}
    assert sorted(read) == list(range(36)), "each was read once"


def test_choice_among_scenes():
    scenes = [noise(i, 16, 16) for i in range(40)]
    images = [scenes[i // 5] for i in range(60)]
    names, _ = chosen(images, [1 - i / 100 for i in range(60)])
    assert names["Largest"] == [0, 5, 10, 15]
    assert names["Smallest"] == [54, 59]


def test_the_search_for_other_pictures_ends():
    names, read = chosen([noise(0)] * 300, [1 - i / 1000 for i in range(300)])
    assert {heading: len(group) for heading, group in names.items()} == {"Largest": 1, "Around": 1, "Smallest": 1}
    assert len(read) == 3 * 32


def test_flat_images_are_told_apart():
    grays = [np.full((8, 8, 3), 40 + i // 3, np.uint8) for i in range(12)]
    names, _ = chosen(grays, [1 - i / 100 for i in range(12)])
    assert names["Largest"] == [0, 3]


def test_a_pair_that_cannot_be_read_any_more_is_left_out(call, trunk, tmp_path):
    names, _ = chosen([None] + [noise(i) for i in range(11)], [1 - i / 100 for i in range(12)])
    assert names["Largest"] == [1, 2, 3]

    for i in range(3):
        for folder in "ab":
            save_noise(tmp_path / folder / f"{i}.png", i)
    call("dirs", "a", "b", "--csv", "x.csv", *trunk)
    (tmp_path / "b" / "1.png").write_bytes(b"")
    told = call("dirs", "a", "b", "--csv", "x.csv", "--resume", "--report", "r.html", *trunk)
    assert "1.png is not shown in r.html" in told
    assert (tmp_path / "r.html").read_text().count("<figure>") == 2


def test_large_images_are_embedded_small():
    def load(pair):
        return noise(0, 2000, 1500), noise(1, 2000, 1500)

    examples = choose_examples(paired(0.5), load, lambda _: np.ones((2000, 1500), np.float32))
    (shown,) = examples["Largest distances"]
    assert [picture.shape[:2] for picture in shown[2:]] == [(320, 240)] * 3
    assert len(page_of(paired(0.5), examples)) < 1_000_000
