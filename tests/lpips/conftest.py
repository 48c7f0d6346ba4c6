"""LPIPS and lpips 0.1.4, each made once for all tests of LPIPS."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.support.gradients import value_and_gradient
from tests.support.images import pair


@pytest.fixture(scope="package")
def oracle(make_theirs):
    """lpips 0.1.4 in float64, by net and options."""
    made = functools.cache(lambda net, options: make_theirs(net, torch.float64, **dict(options)))
    return lambda net, **options: made(net, tuple(options.items()))


@pytest.fixture(scope="package")
def ours(make_ours):
    """Our module by net, type and options; no test changes it. Few are kept, because VGG is large."""
    made = functools.lru_cache(4)(lambda net, dtype, options: make_ours(net, **dict(options)).to(dtype))
    return lambda net, dtype=torch.float32, **options: made(net, dtype, tuple(options.items()))


@pytest.fixture(scope="package")
def module(make_ours):
    """LPIPS with SqueezeNet; no test changes it."""
    return make_ours("squeeze")


@pytest.fixture(scope="package")
def expected(module):
    """The value and the gradient of that module, in plain eager mode."""
    return value_and_gradient(module, *pair(2, 40, 40))
