"""One warning if images are plainly in another range."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch

from lpips_fast import metric, patch
from lpips_fast.compat import piq, taming
from lpips_fast.distance.ranges import CALLS, MANY
from lpips_fast.search import Index
from tests.support.images import pair


@pytest.fixture
def calls(make_ours):
    """The warnings of `count` calls with images times `factor` plus `offset`; `options` are the module's."""

    def calls(count, factor, offset, *, normalize=False, which=(0, 1), backward=False, **options):
        fn = make_ours("squeeze", **options)
        images = list(pair(1, 17, 17))
        for i in which:
            images[i] = images[i] / images[i].abs().max() * factor + offset
        images[0].requires_grad_(backward)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(count):
                fn(*images, normalize=normalize)
        return found

    return calls


def test_images_of_0_to_255(calls):
    for which in ((0, 1), (0,), (1,)):
        (found,) = calls(3, 127.5, 127.5, which=which)
        assert all(words in str(found.message) for words in ("[-1, 1]", "x / 127.5 - 1", "check_range=False"))
        assert found.filename == __file__  # the line of the call
    (found,) = calls(3, 127.5, 127.5, normalize=True)
    assert all(words in str(found.message) for words in ("[0, 1]", "x / 255"))
    assert len(calls(3, 127.5, 127.5, backward=True)) == 1


def _bytes():
    """An image with values from 0 to 255."""
    return 127.5 * (pair(1, 32, 32)[0].clamp(-1, 1) + 1)


@pytest.mark.parametrize(
    "call",
    (
        pytest.param(lambda make, x: make("squeeze", backend="reference")(x, x), id="reference"),
        pytest.param(lambda make, x: make("squeeze", spatial=True)(x, x), id="maps"),
        pytest.param(lambda make, x: make(grad_in_forward=True)(x.requires_grad_(), x), id="grad_in_forward"),
        pytest.param(lambda make, x: make("squeeze")(*[x[:, :, None].expand(-1, -1, 2, -1, -1)] * 2), id="videos"),
        pytest.param(lambda make, x: make("squeeze").embed(x), id="embed"),
        pytest.param(lambda make, x: Index.build(make("squeeze"), x), id="index"),
        pytest.param(lambda make, x: Index.build(make("squeeze"), x / 255).search(x), id="search"),
        pytest.param(lambda make, x: taming.LPIPS(pnet_rand=True)(x, x), id="taming"),
        pytest.param(lambda make, x: piq.LPIPS(pnet_rand=True)(x, x), id="piq"),
        pytest.param(lambda make, x: piq.LPIPS(pnet_rand=True, distance="mae")(x, x), id="piq, mae"),
    ),
)
def test_images_of_0_to_255_on_every_path(make_ours, call):
    with pytest.warns(UserWarning, match="0 to 255: x / ") as found:
        call(make_ours, _bytes())
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("spatial", (False, True))
@pytest.mark.parametrize("resize", (None, 24))
def test_images_of_0_to_255_in_torchmetrics_network(spatial, resize):
    network = metric.Network(net="squeeze", pnet_rand=True, spatial=spatial, resize=resize)
    x = _bytes()
    with pytest.warns(UserWarning, match="0 to 255") as found:
        network(x, x)
    assert found[0].filename == __file__


def test_images_of_0_to_255_in_torchmetrics_function(monkeypatch, cached_trunk):
    monkeypatch.setattr("lpips_fast.weights.published.provide", cached_trunk)
    metric._kept_network.cache_clear()
    x = _bytes()
    with pytest.warns(UserWarning, match="0 to 255") as found:
        metric.learned_perceptual_image_patch_similarity(x, x, "squeeze")
    assert found[0].filename == __file__
    metric._kept_network.cache_clear()


def test_images_of_0_to_255_in_patched_code():
    lpips = pytest.importorskip("lpips")
    x = _bytes()
    with patch():
        module = lpips.LPIPS(net="squeeze", pnet_rand=True)
    with pytest.warns(UserWarning, match="0 to 255"):
        module(x, x)


def test_images_of_0_to_1_in_many_calls(calls):
    assert not calls(MANY - 1, 0.5, 0.5)
    (found,) = calls(MANY + 3, 0.5, 0.5)
    assert all(words in str(found.message) for words in ("[-1, 1]", "normalize=True", f"{MANY} calls"))
    assert not calls(CALLS + 3, 0.5, 0.5, which=(0,))  # the other image is in [-1, 1]


def test_images_of_minus_1_to_1_told_to_be_0_to_1(calls):
    (found,) = calls(3, 1, 0, normalize=True)
    assert all(words in str(found.message) for words in ("[0, 1]", "(x + 1) / 2"))


def test_no_warning_where_all_is_well(calls):
    assert not calls(CALLS + 3, 1, 0)
    assert not calls(CALLS + 3, 1.4, 0)  # a decoder may overshoot
    assert not calls(CALLS + 3, 0.7, 0.5, normalize=True)
    assert not calls(MANY + 3, 0.1, 0.2)  # dark images


def test_ranges_with_and_without_normalize_are_told_apart(make_ours):
    """For example a model that trains in [-1, 1] and validates in [0, 1]."""
    fn, (in0, in1) = make_ours("squeeze"), pair(1, 17, 17)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(CALLS // 2):
            fn((in0 + 1) / 2, (in1 + 1) / 2, normalize=True)
            fn(in0, in1)
    bright = make_ours("squeeze")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(MANY + 2):
            bright((in0 + 1) / 2, (in1 + 1) / 2, normalize=True)
        bright((in0 + 1) / 2, (in1 + 1) / 2)


def test_switched_off(calls):
    assert not calls(3, 127.5, 127.5, check_range=False)


def test_only_the_first_calls_look(make_ours, monkeypatch):
    fn, (in0, in1) = make_ours("squeeze"), pair(1, 17, 17)
    looked = []
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda x, **_: looked.append(1) or (x.min(), x.max()))
    for _ in range(CALLS + 5):
        fn(in0, in1)
    assert len(looked) == 2 * CALLS


def test_features_and_copies(make_ours):
    fn = make_ours("squeeze")
    in0, in1 = pair(1, 17, 17)
    for call in (lambda fn: fn.features(in0 * 255), lambda fn: fn.pairwise(in0 * 255), lambda fn: fn(in0 * 255, in1)):
        with pytest.warns(UserWarning, match="0 to 255") as found:
            call(copy.deepcopy(fn))
        assert found[0].filename == __file__
    with pytest.warns(UserWarning, match="0 to 255"):
        fn.features(in0 * 255)
    for other in (copy.deepcopy(fn), pickle.loads(pickle.dumps(fn))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other(in0 * 255, in1)  # the module has warned before


def test_images_that_cannot_be_looked_at(make_ours):
    """The values of an image are not read if it is compiled, traced, transformed or has no values."""
    fn, (in0, in1) = make_ours("squeeze"), pair(1, 17, 17)
    in0 = in0 * 255
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LPIPS")
        torch._dynamo.reset()
        torch.compile(fn, backend="aot_eager", fullgraph=True)(in0, in1)
        torch.func.vmap(lambda x: fn(x, in1[0]))(in0)
        torch.func.grad(lambda x: fn(x, in1).sum())(in0)
        make_ours("squeeze").to("meta")(in0.to("meta"), in1.to("meta"))
        fn(in0[:0], in1[:0])


def test_not_finite(calls):
    assert not calls(3, float("nan"), 0)
