"""What only the head's CPU kernels do, against the float64 reference. tests/head has what every backend does."""

from __future__ import annotations

import pytest
import torch

from lpips_fast import _library, functional
from tests.support.comparisons import assert_all_close
from tests.support.features import in_layout, to_float64
from tests.support.threads import threads
from tests.support.tolerances import HEAD_GRAD_TOLERANCE

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

STREAMED = 4 << 20  # bytes of a gradient from which on it is stored around the caches: kStreamBytes


@pytest.mark.parametrize("width", (192, 191))  # rows of whole vectors at aligned addresses, and others
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last", "transposed"))
def test_large_gradients(layout, dtype, width):
    channels = 64 if width % 2 == 0 else 63
    height = -(-STREAMED // (channels * width * dtype.itemsize))
    gen = torch.Generator().manual_seed(0)
    feats = [
        in_layout(torch.randn(1, channels, height, width, generator=gen).relu().to(dtype), layout) for _ in range(2)
    ]
    weight = torch.rand(channels, generator=gen, dtype=torch.float64 if dtype == torch.float64 else torch.float32)

    def gradients(backend, feats, weight):
        leaves = [f.detach().requires_grad_() for f in feats]
        [d] = functional.lpips_head_maps(leaves[:1], leaves[1:], [weight], backend=backend)
        return torch.autograd.grad(d.sum(), leaves)

    found = gradients("cpu", feats, weight)
    expected = gradients("reference", to_float64(feats), weight.double())
    assert found[0].nbytes >= STREAMED
    assert_all_close(list(found), list(expected), HEAD_GRAD_TOLERANCE, "d_feats")


@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
def test_threads_do_not_change_bits(layout):
    """The features are enough work for three threads: `kElements` for each."""
    gen = torch.Generator().manual_seed(0)
    feats = [in_layout(torch.randn(2, 64, 160, 160, generator=gen).relu(), layout) for _ in range(2)]
    weight = torch.rand(64, generator=gen)

    def everything():
        leaves = [t.detach().requires_grad_() for t in (*feats, weight)]
        value = functional.lpips_head([leaves[0]], [leaves[1]], [leaves[2]], backend="cpu")
        return value, *torch.autograd.grad(value.sum(), leaves)

    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(everything())
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))
