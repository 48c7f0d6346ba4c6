"""weight=: the mean over space is weighted pixel by pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.support.comparisons import assert_norms_close
from tests.support.gradients import gradients
from tests.support.images import NOISE_SIZE, noise
from tests.support.tolerances import GRAD_TOLERANCE, WITHOUT_EPS_TOLERANCE


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_pixel_weights(make_ours, grad_in_forward):
    """The value is the weighted mean of the maps. Weights of 1 change nothing; weights of 0 give 0 and no NaN."""
    fn = make_ours("alex", grad_in_forward=grad_in_forward, chunk_size=2 if grad_in_forward else None).double()
    in0, in1 = noise(3, dtype=torch.float64)
    plain = gradients(fn, in0, in1)
    ones = gradients(fn, in0, in1, weight=torch.ones(1, 1, NOISE_SIZE, NOISE_SIZE))
    assert_norms_close([ones[0], *ones[1]], [plain[0], *plain[1]], GRAD_TOLERANCE[torch.float64])

    weight = torch.rand(3, 1, NOISE_SIZE, NOISE_SIZE)
    weight[1] = 0
    value, grads = gradients(fn, in0, in1, weight=weight)
    reference = make_ours("alex", backend="reference").double()
    taps = [reference.features(x).taps for x in (in0, in1)]
    expected = torch.zeros(3, dtype=torch.float64)
    for f0, f1, lin in zip(*taps, reference.lins):
        a, b = (F.normalize(f, dim=1, eps=1e-30) for f in (f0, f1))
        d = lin((a - b) ** 2)
        m = F.adaptive_avg_pool2d(weight.double(), d.shape[2:])
        expected += torch.nan_to_num((m * d).sum(dim=(1, 2, 3)) / m.sum(dim=(1, 2, 3)))
    torch.testing.assert_close(value.flatten(), expected, **WITHOUT_EPS_TOLERANCE)
    assert value[1] == 0
    assert all((g[1] == 0).all() and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("precision,dtype", (("bfloat16", torch.float32), ("inherit", torch.float64)))
def test_pixel_weights_leave_the_type(make_ours, precision, dtype):
    fn = make_ours("alex", precision=precision).double()
    in0, in1 = (x.double() for x in noise(2))
    assert fn(in0, in1).dtype == fn(in0, in1, weight=torch.ones(1, 1, NOISE_SIZE, NOISE_SIZE)).dtype == dtype
