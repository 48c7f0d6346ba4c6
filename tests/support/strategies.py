"""Strategies of hypothesis for features: shapes, types, strides and values."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
)

dtypes = st.sampled_from((torch.float32, torch.float64, torch.float16, torch.bfloat16))
shapes = st.tuples(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9))  # C, H, W


@st.composite
def strided(draw, shape: tuple[int, ...], values: Tensor) -> Tensor:
    """The values as a view with any order of dimensions, any steps and any offset in memory."""
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.tuples(*(st.integers(1, 2) for _ in shape)))
    offset = draw(st.integers(0, 3))
    padded = [shape[d] * steps[d] for d in order]
    base = torch.full((offset + max(1, torch.Size(padded).numel()),), torch.nan, dtype=values.dtype)
    strides, stride = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = stride * steps[d]
        stride *= shape[d] * steps[d]
    view = base.as_strided(shape, strides, offset)
    return view.copy_(values)


@st.composite
def feature_lists(draw, scales=(0.0, 1e-15, 1e-6, 1.0, 1e4)):
    """feats0, feats1, weights of a few layers: batches equal or 1 against N, pixels of very different norms."""
    dtype = draw(dtypes)
    n = draw(st.integers(0, 3))
    batches = draw(st.sampled_from(((n, n), (1, n), (n, 1))))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scales = torch.tensor(scales, dtype=torch.float64)
    feats0, feats1, weights = [], [], []
    for c, h, w in draw(st.lists(shapes, min_size=1, max_size=3)):
        for feats, batch in zip((feats0, feats1), batches):
            f = torch.randn(batch, c, h, w, generator=gen, dtype=torch.float64)
            f *= scales[torch.randint(len(scales), (batch, 1, h, w), generator=gen)]
            feats.append(draw(strided((batch, c, h, w), f.to(dtype))))
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        weight_shape = draw(st.sampled_from(((c,), (1, c, 1, 1))))
        weights.append(torch.rand(weight_shape, generator=gen, dtype=torch.float64).to(acc))
    return feats0, feats1, draw(st.sampled_from((weights, None)))
