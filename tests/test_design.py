"""docs/design.md and CONTRIBUTING.md name files and functions that are there, and the tree names every module."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lpips_fast"
DESIGN = (ROOT / "docs" / "design.md").read_text()
TREE = re.search(r"```text\n(.*?)```", DESIGN, re.DOTALL)[1]
TEXT = DESIGN.replace(TREE, "") + (ROOT / "CONTRIBUTING.md").read_text()
FOLDERS = (ROOT, PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir()))


def code(text: str) -> list[str]:
    return sorted(set(re.findall(r"`([^`\n]+)`", text)))


@pytest.mark.parametrize("path", [c for c in code(TEXT) if re.fullmatch(r"[\w./]+(/|\.(py|md|toml|cpp|h))", c)])
def test_files_are_there(path):
    assert any((folder / path).exists() for folder in (*FOLDERS, ROOT / "csrc", ROOT / "csrc" / "head", ROOT / "tests"))


MODULES = {path.stem: path for folder in ("distance", "trunk", "head") for path in (PACKAGE / folder).glob("[a-z]*.py")}
NAMES = [c for c in code(DESIGN) if c.count(".") == 1 and c.split(".")[0] in MODULES and not c.endswith(".py")]


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_there(name):
    stem, attribute = name.split(".")
    # operators.py is in head and in trunk
    modules = [f"lpips_fast.{folder}.{stem}" for folder in ("distance", "trunk", "head")]
    found = [module for module in modules if importlib.util.find_spec(module)]
    assert any(hasattr(importlib.import_module(module), attribute) for module in found)


def test_many_names_are_checked():
    assert len(NAMES) > 15


@pytest.mark.parametrize("folder", ("distance", "trunk", "head"))
def test_the_tree_names_every_module(folder):
    assert {f"{path.stem}.py" for path in (PACKAGE / folder).glob("[a-z]*.py")} <= set(re.findall(r"\w+\.py", TREE))


def test_the_tree_names_what_is_at_the_top():
    there = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" and not path.name.startswith("__")}
    assert there <= set(re.findall(r"\w+\.py", TREE))
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists() and not path.is_symlink()}
    assert folders <= set(re.findall(r"(\w+)/", TREE))
