"""Wrong arguments of a call get an exception that names the argument, its value and what is accepted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lpips_fast
import lpips_fast.distance.grad_in_forward
import lpips_fast.trunk.execute
from tests.support.images import MIN_SIZE, NOISE_SIZE, blank, noise, pair
from tests.support.parameters import NETS
from tests.support.raises import raises


@pytest.fixture(scope="module")
def module(make_ours):
    return make_ours()


GOOD = (2, 3, 40, 40)


BAD_IMAGES = {
    "no tensor": (np.zeros(GOOD, np.float32), TypeError, ("tensor", "ndarray")),
    "none": (None, TypeError, ("tensor", "NoneType")),
    "rank 3, no channels": (blank(2, 40, 40), ValueError, ("[N, 3, H, W]", "[2, 40, 40]")),
    "rank 1": (blank(40), ValueError, ("[N, 3, H, W]", "[40]")),
    "rank 0": (blank(), ValueError, ("[N, 3, H, W]", "[]")),
    "4 channels": (blank(2, 4, 40, 40), ValueError, ("3", "1", "[2, 4, 40, 40]")),
    "2 channels": (blank(2, 2, 40, 40), ValueError, ("3", "1", "[2, 2, 40, 40]")),
    "channels last in shape": (blank(2, 40, 40, 3), ValueError, ("[N, 3, H, W]", "[2, 40, 40, 3]")),
    "uint8": (blank(*GOOD, dtype=torch.uint8), TypeError, ("floating", "torch.uint8", "[-1, 1]", "127.5")),
    "int64": (blank(*GOOD, dtype=torch.int64), TypeError, ("floating", "torch.int64")),
    "bool": (blank(*GOOD, dtype=torch.bool), TypeError, ("floating", "torch.bool")),
    "complex": (blank(*GOOD, dtype=torch.complex64), TypeError, ("floating", "torch.complex64")),
    "float64": (blank(*GOOD, dtype=torch.float64), TypeError, ("torch.float64", "torch.float32", ".to()")),
    "device": (blank(*GOOD, device="meta"), ValueError, ("meta", "cpu", ".to()")),
    "too small": (blank(2, 3, 30, 40), ValueError, ("31", "alex", "30 x 40")),
    "no pixels": (blank(2, 3, 0, 0), ValueError, ("31", "alex", "0 x 0")),
}


@pytest.mark.parametrize("which", (0, 1))
@pytest.mark.parametrize("bad,kind,words", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image(module, which, bad, kind, words):
    images = [blank(*GOOD), blank(*GOOD)]
    images[which] = bad
    with raises(kind, f"in{which}", *words):
        module(*images)


@pytest.mark.parametrize("net", NETS)
def test_minimum_size(make_ours, net):
    """An image of the minimum size works; an image one pixel smaller on either side is refused by name."""
    module, size = make_ours(net), MIN_SIZE[net]
    in0, in1 = pair(1, size, size)
    assert module(in0.requires_grad_(), in1).isfinite().all()
    for h, w in ((size - 1, size), (size, size - 1)):
        with raises(ValueError, "in0", str(size), net, f"{h} x {w}"):
            module(*pair(1, h, w))


def test_backend_that_is_not_there(make_ours):
    missing = {name: reason for name, reason in lpips_fast.backends("cpu").items() if reason is not None}
    for name, reason in missing.items():
        with raises(RuntimeError, name, reason):
            make_ours(backend=name)(*pair(1, 40, 40))


def test_strings_for_flags_of_a_call(module):
    for name in ("normalize", "retPerLayer"):
        with raises(TypeError, name, "True or False", "'no'"):
            module(blank(*GOOD), blank(*GOOD), **{name: "no"})
    with raises(TypeError, "normalize", "'no'"):
        module.features(blank(*GOOD), normalize="no")


def test_taps_that_are_not_there(make_ours):
    in0, in1 = pair(1, 40, 40)
    changed = make_ours()
    changed.net.slice2[0] = torch.nn.AvgPool2d(3, 2)
    for fn in (make_ours(), make_ours(grad_in_forward=True), changed):
        for taps in (0, 6, -1):
            fn.L = taps
            for call in (lambda fn=fn: fn(in0.requires_grad_(), in1), lambda fn=fn: fn.features(in0)):
                with raises(ValueError, "L", "from 1 to 5", str(taps)):
                    call()


@pytest.mark.parametrize("change", ("flat", "scalar", "fewer", "numbers"))
def test_linear_weights_of_other_shapes(module, change):
    """Shapes that would broadcast are refused, too."""
    own = [weight.detach().clone() for weight in module.linear_weights()]
    given = {
        "flat": [weight.flatten() for weight in own],
        "scalar": [torch.zeros(()) for _ in own],
        "fewer": own[:-1],
        "numbers": [0.0] * len(own),
    }[change]
    shape = "float" if change == "numbers" else str(list(given[0].shape))
    with raises(ValueError, "linear_weights", "[1, 64, 1, 1]", shape):
        module.set_linear_weights(given)
    assert all(torch.equal(a, b) for a, b in zip(module.linear_weights(), own, strict=True))


def test_bad_options(make_ours):
    with pytest.raises(ValueError, match=r"precision.*'bf16'"):
        make_ours("alex", precision="bf16")
    with pytest.raises(ValueError, match="spatial"):
        make_ours("alex", spatial=True, grad_in_forward=True)
    fn = make_ours("alex")
    in0, in1 = noise(2)
    for weight in (
        torch.ones(2, 1, 5, 5),
        torch.ones(3, 1, NOISE_SIZE, NOISE_SIZE),
        torch.ones(2, 3, NOISE_SIZE, NOISE_SIZE),
    ):
        with pytest.raises(ValueError, match="weight"):
            fn(in0, in1, weight=weight)
    with pytest.raises(ValueError, match=r"reduction.*'avg'"):
        fn(in0, in1, reduction="avg")
    with pytest.raises(ValueError, match="frames"):
        fn(in0, in1, frames=1)
    with pytest.raises(ValueError, match="spatial"):
        make_ours("alex", spatial=True)(in0, in1, weight=torch.ones(2, 1, NOISE_SIZE, NOISE_SIZE))
