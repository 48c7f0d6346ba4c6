"""What the HTML reports of commands are made of. A page needs no other file and no network.

A Content-Security-Policy allows the page's own style and script, and pictures within the page. Text and names of files
cannot leave their places: text is escaped, and the path in a link is percent-encoded.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from lpips_fast.cli.drawing import one_line

LARGEST_SIDE = 320  # of an embedded picture, in pixels, unless it is said otherwise


def whole_page(title: str, body: str, style: str, script: str = "") -> str:
    """The page.

    Args:
        title: as text.
        body, style, script: as HTML, CSS and JavaScript.
    """
    policy = f"style-src {_content_hash(style)}"
    if script:
        policy += f"; script-src {_content_hash(script)}"
        script = f"<script>{script}</script>\n"
    return _PAGE.substitute(title=shown(title), body=body, style=style, script=script, policy=policy)


def shown(text: str) -> str:
    return escape(one_line(text))


def section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def properties(values: Mapping[str, Any]) -> str:
    lines = "".join(f'<tr><th scope="row">{shown(key)}</th><td>{_value(v)}</td></tr>\n' for key, v in values.items())
    return f"<table><tbody>{lines}</tbody></table>"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ":".join(map(_value, value))
    return f"{value:.6g}" if isinstance(value, float) else "–" if value is None else shown(str(value))


def table(name: str, head: str, rows: Iterable[str]) -> str:
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>\n{"".join(rows)}</tbody></table>'


def row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def url(file: str, place: Path | None) -> str:
    """The URL of a file, relative to the folder `place` if both are on one drive.

    The path is percent-encoded, colons and quotes too, so that no file name gives another scheme or ends an attribute.
    """
    if place is not None:
        try:
            return quote(os.fsencode(Path(os.path.relpath(file, place)).as_posix()))
        except ValueError:  # on another drive
            pass
    return Path(file).absolute().as_uri()


def picture(label: str, image: np.ndarray, side: int = LARGEST_SIDE, kind: str = "PNG") -> str:
    """The tag of an image, with a label in HTML.

    A small image is enlarged by a whole factor up to `side`, without interpolation.
    """
    factor = max(1, side // max(image.shape[:2]))
    file = io.BytesIO()
    Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1)).save(file, kind)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{label}" src="data:image/{kind.lower()};base64,{data}">'


def shrink(image: np.ndarray, side: int = LARGEST_SIDE) -> np.ndarray:
    """An image, uint8 [H, W, 3], or a map [H, W], with sides of at most `side`."""
    small = Image.fromarray(image)
    # A triangle filter does not overshoot: a map's values stay within its range.
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small)


def _content_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy allows this inline text, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


STYLE = """
:root { color-scheme: light dark; --line: #8884; --muted: #5c5c66; --accent: #b5367a; }
@media (prefers-color-scheme: dark) { :root { --muted: #a5a5b0; --accent: #d9589b; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem; }
a { color: inherit; text-decoration-color: var(--accent); text-underline-offset: .15em; }
table { border-collapse: collapse; max-width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem 1.2rem .2rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 500; }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: .3rem; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.columns { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.columns section { flex: 1 1 16rem; min-width: 0; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  th, td { padding-right: .7rem; }
}
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; form-action 'none'; \
img-src data:; $policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
$script</body>
</html>
""")
