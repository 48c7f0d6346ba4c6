"""What an import costs: the modules that it imports. Each test starts a process, for this one has them already."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lpips_fast

ROOT = Path(__file__).parents[1]
HELP = """
import contextlib, io
from typer.testing import CliRunner
from lpips_fast.cli import app
for arguments in ([], *([command.name] for command in app.registered_commands)):
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, result.output
"""


@pytest.fixture
def imported_by(tmp_path):
    def imported_by(code: str) -> set[str]:
        """The modules in a process after it ran `code`, which must not print anything."""
        found = tmp_path / "modules.json"
        script = f"{code}\nimport json, pathlib, sys\npathlib.Path(sys.argv[1]).write_text(json.dumps([*sys.modules]))"
        done = subprocess.run([sys.executable, "-W", "error", "-c", script, found], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return set(json.loads(found.read_text()))

    return imported_by


def test_package(imported_by):
    heavy = {"torch", "torchvision", "numpy", "PIL", "typer", "safetensors"}
    assert not heavy & imported_by("import lpips_fast")


def test_names(imported_by):
    """They take 20 ms beside torch, as long as they do not import modules that take longer than torch itself."""
    modules = imported_by("from lpips_fast import *")
    assert "lpips_fast.lpips" in modules
    assert not {"torchvision", "torch._dynamo", "matplotlib", "triton", "typer"} & modules


def test_helps_do_not_wait_for_torch(imported_by):
    modules = imported_by(HELP)
    assert "lpips_fast.cli.commands.train" in modules
    assert not {"torch", "torchvision", "numpy", "PIL"} & modules


def test_a_name_registers_the_operators(imported_by):
    imported_by("import lpips_fast, torch; lpips_fast.LPIPS; torch.ops.lpips_fast.head_fwd_cpu.default")


def test_names_are_there():
    assert {*lpips_fast.__all__, "metric", "search"} <= set(dir(lpips_fast))
    for name in lpips_fast.__all__:
        value = getattr(lpips_fast, name)
        assert getattr(lpips_fast, name) is value
        assert name == value.__name__.removeprefix("lpips_fast.")
    with pytest.raises(AttributeError, match="'lpips_fast' has no attribute 'LPISP'"):
        lpips_fast.LPISP  # noqa: B018
    assert pickle.loads(pickle.dumps(lpips_fast.LPIPS)) is lpips_fast.LPIPS


@pytest.mark.parametrize("name", ("PerceptualLoss", "DistModel", "dist_model", "Trainer", "trainer"))
def test_names_of_lpips_that_are_elsewhere(name):
    """Calls from before 2020: the error names what to call instead."""
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; use LPIPS\(net=\.\.\.\)"):
        getattr(lpips_fast, name)
    assert not hasattr(lpips_fast, name)


def test_every_name_of_lpips():
    """Each name that lpips defines exists here, or its error names what replaces it. Its imports do not count."""
    lpips = pytest.importorskip("lpips")
    defined = {name for name, value in vars(lpips).items() if getattr(value, "__module__", "").startswith("lpips")}
    defined |= {"pn", "pretrained_networks", "lpips", "trainer"}
    assert {name for name in defined if not hasattr(lpips_fast, name)} == {"Trainer", "trainer"}


def test_names_of_the_module_with_lpips():
    """As in `from lpips.lpips import NetLinLayer`."""
    module = importlib.import_module("lpips_fast.lpips")
    theirs = pytest.importorskip("lpips.lpips")
    for name in ("LPIPS", "NetLinLayer", "ScalingLayer", "normalize_tensor", "spatial_average", "upsample"):
        assert hasattr(theirs, name) or hasattr(pytest.importorskip("lpips"), name)
        assert getattr(module, name) is getattr(lpips_fast, name)


def test_type_checkers_see_the_names_where_they_are():
    """Type checkers do not run the package's `__getattr__`; they read the imports under TYPE_CHECKING."""
    tree = ast.parse(Path(lpips_fast.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: (node.module or "").removeprefix("lpips_fast").removeprefix(".")
        for node in block.body
        for alias in node.names
    }
    assert seen == {**lpips_fast._MODULE_OF, "functional": ""}
    assert set(seen) == set(lpips_fast.__all__)


def test_reference_has_the_names():
    """`make docs` then checks that each of them can be documented."""
    listed = re.findall(r"^::: lpips_fast\.(\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert set(lpips_fast.__all__) <= set(listed)
