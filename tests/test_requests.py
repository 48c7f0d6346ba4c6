"""docs/requests.md: the tests that it names exist; and the tests of requests that no module answers alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from lpips_fast import functional
from lpips_fast.metric import LearnedPerceptualImagePatchSimilarity
from tests.support.images import SIZE, pair
from tests.support.tolerances import SCRIPT_TOLERANCE

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (\d+) \| .*\| (.+) \|$", (ROOT / "docs" / "requests.md").read_text(), re.MULTILINE)


def names_of_tests(path: Path) -> set[str]:
    """The tests of a file, as test_x or TestX::test_y."""
    tree = ast.parse(path.read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for outer in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        found |= {f"{outer.name}::{node.name}" for node in outer.body if isinstance(node, ast.FunctionDef)}
    return found


def test_the_table_is_whole():
    assert [int(number) for number, _ in ROWS] == list(range(1, 34))


@pytest.mark.parametrize("held_by", [held_by for _, held_by in ROWS], ids=[number for number, _ in ROWS])
def test_the_tests_it_names_exist(held_by):
    named = re.findall(r"`([^`]+)`", held_by)
    assert named
    for name in named:
        path, _, test = name.partition("::")
        assert test in names_of_tests(ROOT / path), name


def test_one_range_everywhere(make_ours, trunk_states):
    """[-1, 1], and [0, 1] with normalize=True, give the same values in every function that takes images."""
    fn = make_ours("alex")
    signed = pair(2, *SIZE["alex"])
    unit = tuple((x + 1) / 2 for x in signed)
    metric = LearnedPerceptualImagePatchSimilarity(
        net_type="alex", reduction="none", trunk_weights=trunk_states["alex"]
    )
    ways = {
        "forward": lambda images, **options: fn(*images, **options),
        "features": lambda images, **options: fn(images[0], fn.features(images[1], **options), **options),
        "pairwise": lambda images, **options: fn.pairwise(*images, **options),
        "embed": lambda images, **options: torch.stack([fn.embed(x, **options) for x in images]),
        "metric": lambda images, normalize=False: (setattr(metric, "normalize", normalize), metric(*images))[1],
    }
    for name, way in ways.items():
        expected = way(signed)
        torch.testing.assert_close(way(unit, normalize=True), expected, **SCRIPT_TOLERANCE, msg=name)
        assert not torch.allclose(way(unit), expected, rtol=1e-2), name


@pytest.mark.parametrize("backend", ("auto", "reference"))
def test_head_on_another_network(backend):
    """LPIPS of another network's features with given weights is the paper's formula, differentiable to the image."""
    trunk = torch.nn.ModuleList([torch.nn.Conv2d(3, 24, 3, 2), torch.nn.Conv2d(24, 40, 3, 2)]).double()
    weights = [torch.rand(24, dtype=torch.float64), torch.rand(40, dtype=torch.float64)]

    def features(x):
        first = trunk[0](x).relu()
        return [first, trunk[1](first).relu()]

    in0, in1 = pair(2, 21, 30, dtype=torch.float64)
    in0.requires_grad_()
    value = functional.lpips_head(features(in0), features(in1), weights, backend=backend).sum(dim=1)
    expected = torch.zeros(2, dtype=torch.float64)
    for f0, f1, w in zip(features(in0), features(in1), weights):
        a, b = (torch.nn.functional.normalize(f, dim=1) for f in (f0, f1))
        expected = expected + torch.einsum("c,nchw->nhw", w, (a - b) ** 2).mean(dim=(1, 2))
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad(v.sum(), in0)[0] for v in (value, expected))
    torch.testing.assert_close(found, wanted)
