"""The report of `dirs`, as a browser shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from lpips_fast.report import Worst, report_page

from .conftest import save_noise

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def browser(tmp_path):
    """Runs a headless Chromium on a page and returns what it prints."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")

    def browser(page, *options: str) -> str:
        fixed = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path}/profile",
        ]
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


def test_report_of_dirs_in_a_browser(call, browser, trunk, tmp_path):
    for i in range(12):
        save_noise(tmp_path / "a" / f"{i}&<b>.png", i)
        save_noise(tmp_path / "b" / f"{i}&<b>.png", i + 100 if i else 0)
    save_noise(tmp_path / "a" / "broken.png", 0)
    (tmp_path / "b" / "broken.png").touch()
    call("dirs", "a", "b", "--report", "report.html", *trunk, status=1)
    page = tmp_path / "report.html"
    assert not re.search(r'(?:src|href)="(?!data:)', page.read_text()), "nothing from elsewhere"
    assert "<script" not in page.read_text()

    shown = browser(page, "--dump-dom")
    assert shown.count("<figure>") == 8
    assert shown.count("<img ") == 3 * 8
    assert shown.count("11&amp;&lt;b&gt;.png") >= 1
    assert sum(int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", shown)) == 12, (
        "every pair is in the histogram"
    )
    assert "Not compared (1)" in shown

    browser(page, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,1500")
    picture = np.array(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert picture.shape == (1500, 1200, 3)
    bars = np.abs(picture - [0xB5, 0x36, 0x7A]).max(axis=2) < 8
    assert bars[:850].sum() > 500, "the histogram is there"
    assert (picture[300:].std(axis=2) > 20).sum() > 20_000, "the images are there"


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.5]])
def test_page_of_little(values):
    page = report_page("t", {}, {"count": len(values)}, [(str(v), v) for v in values], [], [])
    assert ("<svg" in page) == bool(values)


def test_large_images_are_embedded_small():
    noise = np.random.default_rng(0).integers(0, 256, (2000, 1500, 3)).astype(np.uint8)
    pair = Worst("x", 0.5, noise, noise, np.ones((2000, 1500)))
    assert len(report_page("t", {}, {}, [("x", 0.5)], [], [pair])) < 1_000_000
