"""Names of files that try to leave their place in an HTML page, and the tags of a page."""

from __future__ import annotations

import os
from html.parser import HTMLParser

NAMES = (
    "plain.png",
    "javascript:alert(1).png",
    "data:text,x.png",
    '" onclick="x' + "'.png",
    "<img src=x onerror=y>&amp;.png",
    "</script><script>z.png",
    "one two#three?four%41.png",
    "%2e%2e.png",
    "back\\slash\nline.png",
    "grün 図 \u202egnp.png",
    os.fsdecode(b"no\xffutf8.png"),
    "$style{title}${body}.png",
)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
