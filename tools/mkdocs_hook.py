"""A hook of mkdocs: it adds files from outside docs/ to the site, and makes links to them work as on GitHub."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
OTHERS = ("LICENSE", "NOTICE")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    for path in [*(ROOT / name for name in OTHERS), *(ROOT / "benchmarks" / "results").rglob("*.png")]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to the same files in the site, whose pages share a folder."""
    from_root = page.file.src_uri in PAGES.values()

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2]
        in_repository = target.removeprefix("../") if not from_root else target
        return f"]({PAGES.get(in_repository, in_repository.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\((?!https?:)([^)#\s]+)((?:#[^)]*)?)\)", link, markdown)
