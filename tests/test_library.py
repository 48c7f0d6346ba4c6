"""The library of operators: a definition is a schema and a fake, and why the compiled file is not there."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lpips_fast import _library


@pytest.fixture
def define(monkeypatch):
    """Defines operators that are gone after the test."""
    with torch.library._scoped_library("lpips_fast", "FRAGMENT") as library:
        monkeypatch.setattr(_library, "library", library)
        yield _library.define


def test_an_operator_has_a_schema_and_a_fake(define):
    define("tested_sums", "(Tensor x, *, int times=2) -> Tensor", lambda x, *, times=2: x.new_empty(times, x.shape[0]))
    operator = torch.ops.lpips_fast.tested_sums.default
    assert str(operator._schema) == "lpips_fast::tested_sums(Tensor x, *, int times=2) -> Tensor"
    with FakeTensorMode():
        assert operator(torch.empty(3, 4)).shape == (2, 3)
        assert operator(torch.empty(3, 4, dtype=torch.float64), times=5).dtype == torch.float64
    assert operator(torch.empty(3, 4, device="meta"), times=5).shape == (5, 3)
    with pytest.raises(NotImplementedError, match="tested_sums"):
        operator(torch.empty(3, 4))


def test_an_implementation_may_come_later(define):
    """As the compiled file and the Triton kernels bring them. torch.compile takes the shapes from the fake."""
    define("tested_twice", "(Tensor x) -> Tensor", torch.empty_like)
    _library.library.impl("tested_twice", lambda x: 2 * x, "CPU")
    operator = torch.ops.lpips_fast.tested_twice
    x = torch.rand(3)
    torch.library.opcheck(operator.default, (x,))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: operator(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), 2 * x + 1)


def test_a_library_that_was_not_built(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _library._load() == "the compiled library was not built (it needs a C++ compiler at installation)"


def test_a_library_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "_C.abi3.so").write_bytes(b"no library")
    spec = ModuleSpec("lpips_fast._C", None, origin=str(tmp_path / "_C.abi3.so"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert _library._load().startswith("the compiled library _C.abi3.so does not load: ")
