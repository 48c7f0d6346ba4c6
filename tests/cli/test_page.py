"""What HTML reports are made of. tests/cli/test_report.py has whole pages in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.page import LARGEST_SIDE, picture, properties, shown, shrink, url, whole_page


@pytest.mark.parametrize("script", ("", "let x = 1;"))
def test_the_policy_allows_what_the_page_has(script):
    page = whole_page("<i>", "<p>body</p>", "p { color: red; }", script)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; ")
    for tag, text in (("style", "p { color: red; }"), ("script", script)):
        assert (f"<{tag}>" in page) == bool(text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert (f"{tag}-src 'sha256-{digest}'" in policy) == bool(text)
    assert "<title>&lt;i&gt;</title>" in page
    assert "<p>body</p>" in page


def test_text_is_escaped():
    assert shown('<b>\n"&') == "&lt;b&gt;\\n&quot;&amp;"
    assert properties({"<": "&", "x": 0.12345678, "none": None, "flag": True, "off": False, "range": [0.0, 0.5]}) == (
        '<table><tbody><tr><th scope="row">&lt;</th><td>&amp;</td></tr>\n'
        '<tr><th scope="row">x</th><td>0.123457</td></tr>\n<tr><th scope="row">none</th><td>–</td></tr>\n'
        '<tr><th scope="row">flag</th><td>yes</td></tr>\n<tr><th scope="row">off</th><td>no</td></tr>\n'
        '<tr><th scope="row">range</th><td>0:0.5</td></tr>\n'
        "</tbody></table>"
    )


def test_links_are_relative_to_the_page():
    assert url("/x/a b/1.png", Path("/x/reports")) == "../a%20b/1.png"
    assert url("/x/a:b.png", None) == "file:///x/a%3Ab.png"


@pytest.mark.parametrize("kind", ("PNG", "JPEG"))
@pytest.mark.parametrize("size, expected", (((20, 10), (160, 80)), ((100, 100), (100, 100)), ((1000, 500), (160, 80))))
def test_pictures_have_one_size(kind, size, expected):
    """As nearly as whole factors allow."""
    image = np.zeros((*size[::-1], 3), np.uint8)
    tag = picture("A", shrink(image, 160), 160, kind)
    data = re.fullmatch(f'<img alt="A" src="data:image/{kind.lower()};base64,(.*)">', tag)
    found = Image.open(io.BytesIO(base64.b64decode(data[1])))
    assert found.format == kind
    assert found.size == expected


def test_maps_are_made_small():
    assert shrink(np.ones((2 * LARGEST_SIDE, LARGEST_SIDE), np.float32)).shape == (LARGEST_SIDE, LARGEST_SIDE // 2)
