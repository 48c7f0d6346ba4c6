"""Where tests live: the test of a module is found by the module's name.

`lpips_fast/<folder>/<module>.py` is tested by `tests/<folder>/test_<module>.py`, without a leading underscore, or by
the files of the folder `tests/<folder>/<module>/`, one for each topic. `kernels/<module>.py` is tested by
`tests/kernels/test_<module>.py`; so are scripts in `benchmarks/`, `tools/` and the root where they have tests.
`tests/csrc/` holds tests of single files or folders of `csrc/`, by the same rule; the operators' tests are those of the
package. What several test modules need is in `tests/support/`.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

# Modules without a test of their name, and where they are tested.
TESTED_ELSEWHERE = {
    "lpips_fast/__init__.py": "tests/test_import.py",
}

# Tests of no single module, and of what instead.
OF_NO_MODULE = {
    "tests/test_design.py": "docs/design.md and CONTRIBUTING.md",
    "tests/kernels/test_aot.py": "all Triton kernels, compiled ahead of time for GPUs",
    "tests/test_conftest.py": "tests/conftest.py: the suite with a GPU, in several processes, with packages missing",
    "tests/test_examples.py": "examples/",
    "tests/test_fuzz.py": "all public functions, with hypothesis",
    "tests/test_import.py": "the public names, and what an import loads",
    "tests/test_layout.py": "this rule",
    "tests/test_migration.py": "docs/migration.md",
    "tests/test_requests.py": "docs/requests.md",
}


def modules() -> list[Path]:
    """The modules of the packages, without `__init__` of a folder, `__main__` and the link lpips_fast/kernels."""
    found = [ROOT / "lpips_fast" / "__init__.py"]
    for package in ("lpips_fast", "kernels"):
        for path in sorted((ROOT / package).rglob("*.py")):
            inside = path.relative_to(ROOT / package).parts
            if path.name not in ("__init__.py", "__main__.py") and (package == "kernels" or inside[0] != "kernels"):
                found.append(path)
    return found


def others() -> list[Path]:
    """Scripts, and files and folders of csrc, which may have a test of their name."""
    scripts = [*ROOT.glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")]
    return [*scripts, *(ROOT / "csrc").rglob("*")]


def place(module: Path) -> tuple[Path, str]:
    """The folder in `tests` and the name by which the test of a module is found."""
    inside = module.relative_to(ROOT)
    folder = inside.parent.relative_to("lpips_fast") if inside.parts[0] == "lpips_fast" else inside.parent
    return TESTS / folder, module.stem.lstrip("_")


def is_tested_by_name(module: Path) -> bool:
    folder, name = place(module)
    return (folder / f"test_{name}.py").exists() or any((folder / name).glob("test_*.py"))


def files_of_tests() -> list[Path]:
    return sorted(TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_test_of_its_name(module):
    folder, name = place(module)
    if str(module.relative_to(ROOT)) in TESTED_ELSEWHERE:
        assert not is_tested_by_name(module), "it has a test of its name, so it needs no exception"
    else:
        wanted = (folder / f"test_{name}.py").relative_to(ROOT)
        assert is_tested_by_name(module), f"{wanted} is missing, or the reason for it in TESTED_ELSEWHERE"


@pytest.mark.parametrize("path", files_of_tests(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_test_file_mirrors_a_module(path):
    places = {place(module) for module in (*modules(), *others())}
    by_topic = (path.parent.parent, path.parent.name) in places
    mirrors = by_topic or (path.parent, path.stem.removeprefix("test_")) in places
    if str(path.relative_to(ROOT)) in OF_NO_MODULE:
        assert not mirrors, "it mirrors a module, so it needs no exception"
    else:
        assert mirrors, f"there is no module of that name, and no reason for it in OF_NO_MODULE: {path.stem}"


@pytest.mark.parametrize("path", (*TESTED_ELSEWHERE, *OF_NO_MODULE))
def test_exceptions_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", files_of_tests(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_module_imports_another(path):
    """Nor a conftest, whose fixtures come by name; test_conftest.py tests the conftest itself."""
    allowed = [["support"], ["conftest"]] if path.name == "test_conftest.py" else [["support"]]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "tests":
                assert parts[1:2] in allowed, f"line {node.lineno} imports {name}, which is not in tests/support"
