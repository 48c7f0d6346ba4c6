"""torch's FlopCounterMode counts the same FLOPs for LPIPS as for `lpips`, whichever kernels compute it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lpips_fast
from lpips_fast import functional
from tests.support.images import pair
from tests.support.parameters import NETS

pytestmark = pytest.mark.skipif(lpips_fast.backends()["cpu"] is not None, reason="needs the compiled library")


def count(fn, *inputs):
    """FLOPs of the forward, and of the forward and the backward together."""
    with FlopCounterMode(display=False) as counter:
        value = fn(*inputs)
        forward = counter.get_total_flops()
        if value.requires_grad:
            value.sum().backward()
    return forward, counter.get_total_flops()


@pytest.fixture(params=("metric", "loss"))
def images(request):
    """Two batches, of which the first requires a gradient in a loss."""
    in0, in1 = pair(2, 64, 70)  # large enough for Winograd in most layers
    return in0.requires_grad_(request.param == "loss"), in1


@pytest.mark.parametrize("options", ({}, {"spatial": True}, {"cpu_conv": "direct"}), ids=str)
@pytest.mark.parametrize("net", NETS)
def test_counts_as_lpips(make_ours, make_theirs, images, net, options):
    """The first call, which transforms the filters, counts the same as the next."""
    theirs = make_theirs(net, spatial=options.get("spatial", False)).requires_grad_(False)
    fn = make_ours(net, **options)
    expected = count(theirs, *images)
    assert count(fn, *images) == count(fn, *images) == expected
    assert expected[0] > 0
    assert (expected[1] > expected[0]) == images[0].requires_grad


def test_gradient_in_forward(make_ours, images):
    """The sum stays the same, and all of it falls in the forward."""
    _, expected = count(make_ours("vgg"), *images)
    forward, total = count(make_ours("vgg", grad_in_forward=True), *images)
    assert forward == total == expected


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_one_image_for_all(make_ours, make_theirs, net):
    in0, in1 = pair(3, 64, 64)
    theirs = make_theirs(net).requires_grad_(False)
    assert count(make_ours(net), in0, in1[:1]) == count(theirs, in0, in1[:1])


@pytest.mark.parametrize("backend", ("cpu", "triton"))
@pytest.mark.parametrize("maps", (False, True))
def test_head(backend, maps):
    """It counts as its 1x1 convolution: forwards, for the gradient to features, and for the gradient to weights."""
    if lpips_fast.backends()[backend] is not None:
        pytest.skip(lpips_fast.backends()[backend])

    def head(f0, f1, weight):
        if maps:
            return functional.lpips_head_maps([f0], [f1], [weight], backend=backend)[0]
        return functional.lpips_head([f0], [f1], [weight], backend=backend)

    once = 2 * 2 * 8 * 3 * 5
    for needs in ((False, False, False), (True, False, False), (True, True, False), (False, False, True), (True,) * 3):
        inputs = torch.rand(2, 8, 3, 5), torch.rand(2, 8, 3, 5), torch.rand(8)
        found = count(head, *(x.requires_grad_(need) for x, need in zip(inputs, needs)))
        assert found == (once, once * (1 + any(needs[:2]) + needs[2])), needs


def test_head_on_the_way_back_through_a_tap():
    """It counts as the head's backward alone. Tensors without memory do: the operator runs on a GPU."""
    f0, f1, grad, weight = (
        torch.empty(shape, device="meta") for shape in ((2, 8, 3, 5), (1, 8, 3, 5), (2, 1, 3, 5), 8)
    )
    arguments = grad, f0, f1.expand_as(f0), weight, 1e-10, 15
    for both in (False, True):
        assert count(torch.ops.lpips_fast.head_tap_bwd_triton, *arguments, both, None, 0, 1)[0] == 2 * 2 * 8 * 3 * 5


@pytest.mark.parametrize("counter_first", (False, True))
def test_whichever_is_imported_first(counter_first):
    """The package does not import the counter, which takes long; both orders of import have the formulas."""
    imports = ["from torch.utils.flop_counter import FlopCounterMode", "from lpips_fast import LPIPS"]
    script = f"""
import sys, torch
{imports[not counter_first]}
assert ("torch.utils.flop_counter" in sys.modules) == {counter_first}
{imports[counter_first]}
x = torch.rand(1, 3, 32, 32)
with FlopCounterMode(display=False) as counter:
    LPIPS(net="squeeze", pnet_rand=True, cpu_conv="winograd")(x, x)
names = {{str(name) for name in counter.get_flop_counts()["Global"]}}
assert names == {{"lpips_fast.trunk_fwd_cpu", "lpips_fast.head_fwd_cpu"}}, names
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
