"""Where tests live: the test of a module is found by the module's name.

`lpips_fast/<folder>/<module>.py` is tested by `tests/<folder>/test_<module>.py`, without a leading underscore, or by
the files of the folder `tests/<folder>/<module>/`, one for each topic. `kernels/<module>.py` is tested by
`tests/kernels/test_<module>.py`; so are scripts in `benchmarks/`, `tools/` and the root where they have tests.
`tests/csrc/` holds tests of single files or folders of `csrc/`, by the same rule; the operators' tests are those of the
package. What several test modules need is in `tests/support/`; the tolerances are in its `tolerances.py`.

It also holds who imports what at the edges of the package: the tests, the kernels. The contracts of import-linter in
pyproject.toml hold it within.
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
    "tests/head/test_emulator.py": "tests/head/emulator/, which runs the CUDA kernels on the CPU",
    "tests/kernels/test_aot.py": "all Triton kernels, compiled ahead of time for GPUs",
    "tests/test_conftest.py": "tests/conftest.py: the suite with a GPU, in several processes, with packages missing",
    "tests/test_examples.py": "examples/",
    "tests/test_fuzz.py": "all public functions, with hypothesis",
    "tests/test_import.py": "the public names, and what an import loads",
    "tests/test_layout.py": "this rule",
    "tests/test_migration.py": "docs/migration.md",
    "tests/test_requests.py": "docs/requests.md",
}


# What kernels/ may import of the package: the operators that it implements, and what these say of types and layouts.
OF_KERNELS = (
    "lpips_fast._library",
    "lpips_fast.head.operators",
    "lpips_fast.kernels",
    "lpips_fast.trunk.convolution",
    "lpips_fast.trunk.operators",
)

# Comparisons within a tolerance, and how many arguments stand before it; and the names of the arguments that give it.
COMPARISONS = {"approx": 1, "allclose": 2, "assert_close": 2, "isclose": 2}
TOLERANCE_ARGUMENTS = ("rtol", "atol", "rel", "abs", "rel_tol", "abs_tol")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_files(*folders: str) -> list[Path]:
    """All Python files in folders of the root, without the link lpips_fast/kernels."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not path.is_relative_to(ROOT / "lpips_fast" / "kernels")]


def modules() -> list[Path]:
    """The modules of the packages, without `__init__` of a folder and `__main__`."""
    found = [path for path in python_files("lpips_fast", "kernels") if path.name not in ("__init__.py", "__main__.py")]
    return [ROOT / "lpips_fast" / "__init__.py", *found]


def others() -> list[Path]:
    """Scripts, and files and folders of csrc, which may have a test of their name."""
    scripts = [*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
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


@pytest.mark.parametrize("module", modules(), ids=relative)
def test_a_module_has_a_test_of_its_name(module):
    folder, name = place(module)
    if str(module.relative_to(ROOT)) in TESTED_ELSEWHERE:
        assert not is_tested_by_name(module), "it has a test of its name, so it needs no exception"
    else:
        wanted = (folder / f"test_{name}.py").relative_to(ROOT)
        assert is_tested_by_name(module), f"{wanted} is missing, or the reason for it in TESTED_ELSEWHERE"


@pytest.mark.parametrize("path", files_of_tests(), ids=relative)
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


def imports(path: Path) -> list[str]:
    """The full names that a file imports, also those inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", python_files("tests"), ids=relative)
def test_files_of_tests_import_only_support_from_tests(path):
    """They import no other test module, and no conftest, whose fixtures come by name."""
    allowed = ("tests.support", "tests.conftest") if path == TESTS / "test_conftest.py" else ("tests.support",)
    found = [name for name in imports(path) if is_within(name, ("tests",)) or "conftest" in name.split(".")]
    assert [name for name in found if not is_within(name, allowed)] == []


@pytest.mark.parametrize("path", python_files("lpips_fast", "kernels", "benchmarks"), ids=relative)
def test_no_module_imports_tests(path):
    assert [name for name in imports(path) if is_within(name, ("tests",))] == []


@pytest.mark.parametrize("path", python_files("kernels"), ids=relative)
def test_kernels_import_the_operators_that_they_implement(path):
    own = [name for name in imports(path) if is_within(name, ("lpips_fast", "kernels"))]
    assert [name for name in own if not is_within(name, OF_KERNELS)] == []


@pytest.mark.parametrize("path", python_files("lpips_fast"), ids=relative)
def test_no_module_imports_the_kernels(path):
    """head/backends.py alone loads them, by name: they need Triton."""
    assert [name for name in imports(path) if is_within(name, ("lpips_fast.kernels", "kernels"))] == []
    by_name = path == ROOT / "lpips_fast" / "head" / "backends.py"
    assert ('import_module("lpips_fast.kernels")' in path.read_text()) == by_name


def numbers(node: ast.AST) -> list[float]:
    """The number literals in an expression, except 0 and indices."""
    if isinstance(node, ast.Subscript):
        return numbers(node.value)
    if isinstance(node, ast.Constant):
        is_number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        return [node.value] if is_number and node.value else []
    return [number for child in ast.iter_child_nodes(node) for number in numbers(child)]


def literal_tolerances(source: str) -> list[str]:
    """The comparisons whose tolerance is a number, except negated ones: two values must differ by more than it."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.NotEq):
            return
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            given = [keyword.value for keyword in node.keywords if keyword.arg in TOLERANCE_ARGUMENTS]
            given += node.args[COMPARISONS.get(called, len(node.args)) :]
            if called in COMPARISONS and any(map(numbers, given)):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


@pytest.mark.parametrize(
    "path", [path for path in python_files("tests") if path != TESTS / "support" / "tolerances.py"], ids=relative
)
def test_tolerances_have_names(path):
    """Their names and reasons are in tests/support/tolerances.py."""
    assert literal_tolerances(path.read_text()) == []


def test_literal_tolerances_are_found():
    found = (
        "assert a == approx(b, rel=1e-3)",
        "assert all(x == pytest.approx(y, abs=2 * TOLERANCE) for x, y in pairs)",
        "torch.testing.assert_close(a, b, rtol=0, atol=1e-6)",
        "assert_close(a, b, (0, 1e-3))",
        "assert np.allclose(a, b, 1e-3)",
        "assert math.isclose(a, b, rel_tol=1e-5)",
    )
    assert all(len(literal_tolerances(source)) == 1 for source in found)
    others = (
        "assert a == approx(0.5)",
        "assert a != approx(b, rel=1e-3)",
        "assert not all(torch.allclose(*pair, rtol=1e-4) for pair in pairs)",
        "torch.testing.assert_close(a, b, rtol=TOLERANCE[0], atol=0)",
    )
    assert not any(map(literal_tolerances, others))
