"""The head and LPIPS against the formulas of lpips 0.1.4, on the shapes, strides and values that hypothesis finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpips_fast import functional
from tests.support.comparisons import assert_close, assert_gradients_close
from tests.support.parameters import BACKENDS
from tests.support.raises import raises
from tests.support.strategies import SETTINGS, feature_lists, strided
from tests.support.tolerances import HEAD_GRAD_NORM_TOLERANCE, VALUE_TOLERANCE


def lpips_maps(feats0, feats1, weights):
    """lpips 0.1.4's head in float64, up to the mean over space."""
    from lpips import normalize_tensor

    for layer, (f0, f1) in enumerate(zip(feats0, feats1)):
        squares = (normalize_tensor(f0.double()) - normalize_tensor(f1.double())) ** 2
        weight = 1.0 if weights is None else weights[layer].double().view(1, -1, 1, 1)
        yield (weight * squares).sum(dim=1, keepdim=True)


def value_tolerance(feats):
    return VALUE_TOLERANCE[torch.float64 if feats[0].dtype == torch.float64 else torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
@given(lists=feature_lists())
@SETTINGS
def test_head_against_lpips(backend, lists):
    expected = list(lpips_maps(*lists))
    found = functional.lpips_head(*lists, backend=backend)
    assert found.dtype == (torch.float64 if lists[0][0].dtype == torch.float64 else torch.float32)
    assert_close(found, torch.stack([m.mean(dim=(1, 2, 3)) for m in expected], dim=1), value_tolerance(lists[0]))
    for found_map, expected_map in zip(functional.lpips_head_maps(*lists, backend=backend), expected, strict=True):
        assert_close(found_map, expected_map, value_tolerance(lists[0]))


@pytest.mark.parametrize("backend", BACKENDS)
@given(lists=feature_lists(scales=(0.1, 1.0, 10.0)), needs=st.tuples(st.booleans(), st.booleans()))
@SETTINGS
def test_gradients_of_the_head_against_lpips(backend, lists, needs):
    feats0, feats1, weights = lists
    gradients = []
    for double in (False, True):
        leaves = [
            [(f.double() if double else f).detach().requires_grad_(need) for f in feats]
            for feats, need in zip((feats0, feats1), needs)
        ]
        if double:
            value = torch.stack([m.mean(dim=(1, 2, 3)) for m in lpips_maps(*leaves, weights)], dim=1)
        else:
            value = functional.lpips_head(*leaves, weights, backend=backend)
        wanted = [leaf for fs, need in zip(leaves, needs) if need for leaf in fs]
        gradients.append(torch.autograd.grad(value.sum(), wanted) if wanted else [])
    dtype = feats0[0].dtype
    tolerance = HEAD_GRAD_NORM_TOLERANCE[dtype]
    for found, expected in zip(*gradients, strict=True):
        assert found.dtype == dtype
        # Parallel vectors have a gradient of 0, up to the rounding of the terms that cancel in it.
        error = (found.double() - expected).norm()
        assert error <= tolerance * expected.norm() + 1e-2 * tolerance * expected.numel() ** 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@given(lists=feature_lists(scales=(0.0, 1e-30, 1e-4, 1.0, 1e30)))
@SETTINGS
def test_identical_features_are_at_distance_zero(backend, lists):
    feats0, _, weights = lists
    feats0 = [f.nan_to_num(posinf=1.0, neginf=-1.0) for f in feats0]
    leaves = [f.detach().requires_grad_() for f in feats0]
    value = functional.lpips_head(leaves, feats0, weights, backend=backend)
    finite = [(f.double().square().sum(1) < 1e37).flatten(1).all(1) for f in feats0]
    for layer, ok in enumerate(finite):
        assert torch.equal(value[ok, layer], torch.zeros_like(value[ok, layer]))


@pytest.mark.parametrize("backend", BACKENDS)
@given(lists=feature_lists(scales=(0.0, 1e-15, 1e-9, 1.0, 1e9, 1e15)))
@SETTINGS
def test_everything_stays_finite(backend, lists):
    if lists[0][0].dtype == torch.float16:
        lists = ([f.clamp(-6e4, 6e4) for f in feats] for feats in lists[:2]), lists[2]
        (feats0, feats1), weights = lists
    else:
        feats0, feats1, weights = lists
    leaves = [[f.detach().requires_grad_() for f in feats] for feats in (feats0, feats1)]
    value = functional.lpips_head(*leaves, weights, backend=backend)
    assert value.isfinite().all()
    assert (value >= 0).all()
    for grad in torch.autograd.grad(value.sum(), [*leaves[0], *leaves[1]]):
        assert not grad.isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), lists=feature_lists(scales=(0.5, 1.0)), bad=st.sampled_from((torch.nan, torch.inf, -torch.inf)))
@SETTINGS
def test_nan_in_nan_out(backend, data, lists, bad):
    """A bad value anywhere makes the distance of its image in its layer NaN, and changes nothing else."""
    feats0, feats1, weights = lists
    n = len(feats0[0]) if len(feats0[0]) != 1 else len(feats1[0])
    if len(feats0[0]) != n or n == 0:
        return
    clean = functional.lpips_head(feats0, feats1, weights, backend=backend)
    layer = data.draw(st.integers(0, len(feats0) - 1))
    place = tuple(data.draw(st.integers(0, size - 1)) for size in feats0[layer].shape)
    feats0[layer][place] = bad
    value = functional.lpips_head(feats0, feats1, weights, backend=backend)
    is_bad = torch.zeros_like(value, dtype=torch.bool)
    is_bad[place[0], layer] = True
    assert torch.equal(value.isnan(), is_bad)
    assert torch.equal(value[~is_bad], clean[~is_bad])


@st.composite
def image_pairs(draw):
    """Two batches of images for AlexNet, and the scale of the first batch's values, which are all gray at 0.

    Sizes and strides are any, channels 1 or 3; the batches are equal or 1 against N.
    """
    n = draw(st.integers(0, 3))
    batches = draw(st.sampled_from(((n, n), (1, n), (n, 1))))
    scale = draw(st.sampled_from((1.0, 0.0, 1e-6, 100.0)))
    h, w = draw(st.integers(31, 48)), draw(st.integers(31, 48))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    images = []
    for batch, factor in zip(batches, (scale, 1.0)):
        shape = (batch, draw(st.sampled_from((1, 3))), h, w)
        images.append(draw(strided(shape, factor * (torch.rand(shape, generator=gen) * 2 - 1))))
    return images, scale


@pytest.fixture(scope="module")
def modules(make_ours, make_theirs):
    return {
        spatial: (make_ours(spatial=spatial), make_theirs("alex", torch.float64, spatial=spatial)) for spatial in (0, 1)
    }


@given(case=image_pairs(), spatial=st.sampled_from((0, 1)), normalize=st.booleans())
@settings(SETTINGS, max_examples=settings().max_examples // 2)
def test_lpips_against_lpips(modules, case, spatial, normalize):
    (ours, theirs), (images, scale) = modules[spatial], case
    in0, in1 = (x.detach().requires_grad_() for x in images)
    value, parts = ours(in0, in1, retPerLayer=True, normalize=normalize)
    grads = torch.autograd.grad(value.sum(), (in0, in1))
    assert [g.shape for g in grads] == [x.shape for x in images]
    assert all(g.isfinite().all() for g in grads)
    if not len(value):  # lpips fails on no images of 1 channel
        return
    in0_ref, in1_ref = (x.detach().double().requires_grad_() for x in images)
    expanded = (x.expand(-1, 3, -1, -1) for x in (in0_ref, in1_ref))
    expected, expected_parts = theirs(*expanded, retPerLayer=True, normalize=normalize)
    assert_close(value, expected, VALUE_TOLERANCE[torch.float32])
    for part, expected_part in zip(parts, expected_parts, strict=True):
        assert_close(part, expected_part, VALUE_TOLERANCE[torch.float32])
    if scale >= 1:  # in a gray image all pools are tied, and rounding decides where the gradient goes
        expected_grads = torch.autograd.grad(expected.sum(), (in0_ref, in1_ref))
        assert_gradients_close(grads, expected_grads, torch.float32)


@pytest.mark.parametrize("eps", (-1.0, float("nan"), "1e-10", None, True))
def test_bad_eps(eps):
    with raises(ValueError, "eps", "from 0", repr(eps)):
        functional.lpips_head([F], [F], [W], eps=eps)


F, W = torch.zeros(2, 5, 4, 4), torch.ones(5)


BAD_HEADS = {
    "tensor for a list": ((F, [F], [W]), TypeError, ("feats0", "list", "Tensor")),
    "no list": (([F], None, [W]), TypeError, ("feats1", "list", "NoneType")),
    "no tensor": (([F], [F.numpy()], [W]), TypeError, ("feats1[0]", "tensor", "ndarray")),
    "list for a weight": (([F], [F], [[1.0] * 5]), TypeError, ("weights[0]", "tensor", "list")),
    "no layers": (([], [], []), ValueError, ("feats0", "feats1", "0")),
    "layers differ": (([F, F], [F], [W, W]), ValueError, ("feats0", "feats1", "2", "1")),
    "weights too few": (([F, F], [F, F], [W]), ValueError, ("weights", "2", "1")),
    "rank": (([F[0]], [F], [W]), ValueError, ("feats0[0]", "[N, C, H, W]", "[5, 4, 4]")),
    "rank of the other": (([F, F], [F, F[0]], [W, W]), ValueError, ("feats1[1]", "[N, C, H, W]", "[5, 4, 4]")),
    "integer": (([F.int()], [F.int()], [W]), TypeError, ("floating", "torch.int32")),
    "types differ": (([F], [F.half()], [W]), TypeError, ("feats1[0]", "torch.float16", "torch.float32")),
    "types of layers differ": (([F, F.double()], [F, F], [W, W]), TypeError, ("feats0[1]", "torch.float64")),
    "devices differ": (([F], [F.to("meta")], [W]), ValueError, ("feats1[0]", "meta", "cpu")),
    "channels differ": (([F], [F[:, :4]], [W]), ValueError, ("feats0[0]", "feats1[0]", "[2, 5, 4, 4]", "[2, 4, 4, 4]")),
    "sizes differ": (([F], [F[..., :3]], [W]), ValueError, ("feats0[0]", "feats1[0]", "[2, 5, 4, 3]")),
    "batches differ": (([F], [F.repeat(2, 1, 1, 1)], [W]), ValueError, ("feats0[0]", "[2, 5, 4, 4]", "[4, 5, 4, 4]")),
    "batches of layers differ": (([F, F[:1]], [F, F[:1]], [W, W]), ValueError, ("batch", "[2, 1]")),
    "weights too long": (([F], [F], [torch.ones(6)]), ValueError, ("weights[0]", "5", "[6]")),
    "weights elsewhere": (([F], [F], [W.to("meta")]), ValueError, ("weights[0]", "meta", "cpu")),
}


@pytest.mark.parametrize("function", (functional.lpips_head, functional.lpips_head_maps))
@pytest.mark.parametrize("arguments,kind,words", BAD_HEADS.values(), ids=BAD_HEADS)
def test_bad_features(function, arguments, kind, words):
    with raises(kind, *words):
        function(*arguments)


def test_bad_backend_of_the_head():
    with raises(ValueError, "backend", "'gpu'", "'auto'", "'cpu'"):
        functional.lpips_head([F], [F], [W], backend="gpu")
    with pytest.raises(RuntimeError, match="'cpu' cannot be used for tensors on meta"):
        functional.lpips_head([F.to("meta")], [F.to("meta")], [W.to("meta")], backend="cpu")
