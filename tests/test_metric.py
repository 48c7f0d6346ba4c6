"""The metric against that of torchmetrics on the same weights, and the requirements of torchmetrics' own tests."""

from __future__ import annotations

import functools
import gc
import pickle
import warnings
import weakref

import pytest
import torch

from tests.support.tolerances import (
    FLOAT32_GRAD_TOLERANCE,
    METRIC_FLOAT64_GRAD_TOLERANCE,
    METRIC_FLOAT64_TOLERANCE,
    METRIC_TOLERANCE,
    REAL_GRAD_TOLERANCE,
    REAL_JUMP_TOLERANCE,
    REAL_VALUE_TOLERANCE,
    REORDERED_LOW_PRECISION_TOLERANCE,
    REORDERED_TOLERANCE,
    ROUNDED_GRAD_TOLERANCE,
    ROUNDING_TOLERANCE,
    SMALL_NET_LOW_PRECISION_TOLERANCE,
)

pytest.importorskip("torchmetrics")

import torchmetrics
from torchmetrics import MetricCollection
from torchmetrics.functional.image import lpips as theirs_functional
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Theirs
from torchmetrics.wrappers import FeatureShare

from lpips_fast import metric
from lpips_fast.head.operators import Norm
from lpips_fast.metric import LearnedPerceptualImagePatchSimilarity as Ours
from lpips_fast.metric import learned_perceptual_image_patch_similarity as ours_functional
from tests.support.comparisons import assert_mostly_close
from tests.support.gradients import value_and_gradient
from tests.support.parameters import NETS
from tests.support.samples import SQUARES, batches

REDUCTIONS = ("mean", "sum", "none", None)
SHORT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _batches(normalize, n_batches=2, n=2, size=33):
    gen = torch.Generator().manual_seed(0)
    batches = torch.rand(n_batches, 2, n, 3, size, size, generator=gen)
    return batches if normalize else 2 * batches - 1


@pytest.fixture(scope="module")
def weights(trunk_states, cached_trunk, torchvision_features):
    """The trunks of both packages get these weights instead of ImageNet's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs_functional, "_get_tv_model_features", torchvision_features)
        patch.setattr("lpips_fast.weights.published.provide", cached_trunk)
        metric._kept_network.cache_clear()
        yield trunk_states
    metric._kept_network.cache_clear()


@pytest.fixture(scope="module")
def make(weights):
    """Makes a metric: a copy of the one metric that is made for a class and its arguments."""
    made = functools.cache(lambda kind, arguments: kind(**dict(arguments)))

    def make(kind, **arguments):
        return made(kind, tuple(arguments.items())).clone()

    return make


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("normalize", (False, True))
def test_numbers_are_torchmetrics(make, net, normalize):
    for reduction in REDUCTIONS:
        ours = make(Ours, net_type=net, normalize=normalize)
        theirs = make(Theirs, net_type=net, normalize=normalize)
        ours = Ours(net_type=net, reduction=reduction, normalize=normalize) if reduction != "mean" else ours
        theirs = Theirs(net_type=net, reduction=reduction, normalize=normalize) if reduction != "mean" else theirs
        for img1, img2 in _batches(normalize):
            found, expected = ours(img1, img2), theirs(img1, img2)
            torch.testing.assert_close(found, expected, **METRIC_TOLERANCE)
            found = ours_functional(img1, img2, net, reduction, normalize)
            expected = expected if reduction is not None else theirs_functional._lpips_compute(expected, None)
            torch.testing.assert_close(found, expected, **METRIC_TOLERANCE)
        torch.testing.assert_close(ours.compute(), theirs.compute(), **METRIC_TOLERANCE)
        ours.reset()
        theirs.reset()
        for img1, img2 in _batches(normalize, 3)[1:]:
            ours.update(img1, img2)
            theirs.update(img1, img2)
        torch.testing.assert_close(ours.compute(), theirs.compute(), **METRIC_TOLERANCE)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("n1, n2", ((1, 1), (1, 3), (3, 1)))
def test_shapes_are_torchmetrics(make, reduction, n1, n2):
    (img1, img2), *_ = _batches(True, n=3)
    img1, img2 = img1[:n1], img2[:n2]
    found, expected = make(Ours, reduction=reduction)(img1, img2), make(Theirs, reduction=reduction)(img1, img2)
    torch.testing.assert_close(found, expected, **METRIC_TOLERANCE)
    expected = theirs_functional.learned_perceptual_image_patch_similarity(img1, img2, "alex", reduction)
    torch.testing.assert_close(ours_functional(img1, img2, "alex", reduction), expected, **METRIC_TOLERANCE)


@pytest.fixture
def real_weights(request, net):
    """The file of a net's ImageNet weights; SqueezeNet's is in `shared` alone."""
    if net != "squeeze":
        return request.getfixturevalue("real_trunk")(net)
    (file,) = request.getfixturevalue("shared").glob("torch_home/hub/checkpoints/squeezenet*")
    return file


@pytest.mark.parametrize("normalize", (False, True))
@pytest.mark.parametrize("net", NETS)
def test_numbers_are_torchmetrics_on_real_weights(make, real_weights, net, normalize):
    ours, theirs = Ours(net, normalize=normalize, trunk_weights=real_weights), make(Theirs, net_type=net)
    theirs.normalize = normalize
    theirs.load_state_dict(ours.state_dict())
    img1, img2 = batches(SQUARES)
    if normalize:
        img1, img2 = (img1 + 1) / 2, (img2 + 1) / 2
    (value, grad), (expected, expected_grad) = (value_and_gradient(fn, img1, img2) for fn in (ours, theirs))
    torch.testing.assert_close(value, expected, rtol=REAL_VALUE_TOLERANCE[torch.float32], atol=0)
    tolerances = REAL_GRAD_TOLERANCE[torch.float32], REAL_JUMP_TOLERANCE[torch.float32]
    assert_mostly_close(grad, expected_grad.double(), *tolerances)


def test_tiny_features_show_where_the_eps_is(make):
    ours, theirs = make(Ours), make(Theirs)
    for m in (ours, theirs):
        for p in list(m.net.net.parameters())[:2]:
            p.data.mul_(1e-5)
    (img1, img2), *_ = _batches(False)
    expected = theirs(img1, img2)
    torch.testing.assert_close(ours(img1, img2), expected, **METRIC_TOLERANCE)
    torch.testing.assert_close(ours.net.pairwise(img1, img2).diag().mean(), expected, **METRIC_TOLERANCE)
    ours.net.norm = Norm()
    outside = ours(img1, img2)
    assert abs(outside - expected) > 1e-2 * expected, "the eps must matter here for the test to be one"


def test_images_in_another_range(make):
    """torchmetrics checks only the lower end of [-1, 1]."""
    (img1, img2), *_ = _batches(False)
    with pytest.warns(UserWarning, match="0 to 255") as found:
        make(Ours).update(img1.abs() * 255, img2)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(Ours, check_range=False).update(img1.abs() * 255, img2)


def test_keys_do_not_depend_on_the_taps_in_use(make):
    ours = make(Ours, net_type="squeeze")
    keys = list(ours.net.state_dict())
    ours.net.L = 3
    assert list(ours.net.state_dict()) == keys
    ours.net.load_state_dict(ours.net.state_dict(), strict=True)


def test_not_persistent(make):
    """The metric's checkpoint lacks the network's weights, and a checkpoint that has them loads."""
    ours, whole = make(Ours, persistent=False), make(Ours)
    assert not ours.state_dict()
    assert not any(ours.load_state_dict({}, strict=True))
    assert not any(ours.load_state_dict(whole.state_dict(), strict=True))
    (img1, img2), *_ = _batches(False)
    assert torch.equal(ours(img1, img2), whole(img1, img2))
    ours.persistent(True)  # torchmetrics' method, for the states
    assert sorted(ours.state_dict()) == ["count", "total"]
    assert not any(ours.load_state_dict(ours.state_dict(), strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_flow_through_forward_and_functional(make, reduction):
    (img1, img2), *_ = _batches(False)

    def gradients(call):
        inputs = [img1.clone().requires_grad_(), img2.clone().requires_grad_()]
        call(*inputs).sum().backward()
        return torch.stack([x.grad for x in inputs])

    expected = gradients(make(Theirs, reduction=reduction))
    allowed = FLOAT32_GRAD_TOLERANCE * expected.norm()
    assert (gradients(make(Ours, reduction=reduction)) - expected).norm() <= allowed
    assert (gradients(functools.partial(ours_functional, reduction=reduction)) - expected).norm() <= allowed


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_used_as_a_loss_no_state_keeps_a_graph(make, reduction):
    ours = make(Ours, reduction=reduction)
    images = []
    for img1, img2 in _batches(False, 3):
        img1 = img1.clone().requires_grad_()
        ours(img1, img2).sum().backward()
        images.append(weakref.ref(img1))
    del img1
    gc.collect()
    assert [image() for image in images] == [None] * 3
    assert not ours.compute().requires_grad
    ours.update(torch.zeros(1, 3, 33, 33, requires_grad=True), img2[:1])
    assert not ours.compute().requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated", "ignore:This property will be removed")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_part_of_a_scripted_module(make, reduction):
    """torchmetrics' tests require this of every metric."""
    torch.jit.script(make(Ours, reduction=reduction))


@pytest.mark.parametrize("reduction", ("mean", "sum"))
def test_the_state_of_mean_and_sum_is_bounded(make, reduction):
    ours = make(Ours, reduction=reduction)
    (img1, img2), *_ = _batches(False, 1)
    sizes = set()
    for _ in range(3):
        ours(img1, img2)
        ours.update(img1, img2)
        sizes.add(sum(state.numel() for state in ours.metric_state.values()))
    assert sizes == {2}


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_other_types(make, dtype):
    """torchmetrics' test of half precision: set_dtype, then a batch. Also such images with a float32 network."""
    (img1, img2), *_ = _batches(True)
    expected = make(Theirs, normalize=True)(img1, img2)
    ours = make(Ours, normalize=True).set_dtype(dtype)
    found = ours(img1.to(dtype), img2.to(dtype))
    torch.testing.assert_close(found.float(), expected, atol=0, rtol=SMALL_NET_LOW_PRECISION_TOLERANCE)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for _ in range(3):
        ours.update(img1.to(dtype), img2.to(dtype))
    torch.testing.assert_close(ours.compute(), found, atol=0, rtol=REORDERED_TOLERANCE)
    found = ours_functional(img1.to(dtype), img2.to(dtype), normalize=True)
    torch.testing.assert_close(found.float(), expected, atol=0, rtol=SMALL_NET_LOW_PRECISION_TOLERANCE)
    if dtype != torch.float64:
        found = make(Ours, normalize=True)(img1.to(dtype), img2.to(dtype))
        expected = make(Theirs, normalize=True)(img1.to(dtype), img2.to(dtype))  # torchmetrics normalizes in that type
        torch.testing.assert_close(found, expected, atol=0, rtol=REORDERED_LOW_PRECISION_TOLERANCE)


@pytest.mark.parametrize("dtype1", SHORT_DTYPES)
@pytest.mark.parametrize("dtype2", SHORT_DTYPES)
def test_two_types(make, dtype1, dtype2):
    """The distance is that of the values of both images in the wider type."""
    img1, img2 = (img.to(dtype) for img, dtype in zip(_batches(False)[0], (dtype1, dtype2), strict=True))
    expected = make(Theirs)(img1.float(), img2.float())
    torch.testing.assert_close(make(Ours)(img1, img2), expected, **METRIC_TOLERANCE)
    if torch.promote_types(dtype1, dtype2) == torch.float32:
        torch.testing.assert_close(ours_functional(img1, img2), expected, **METRIC_TOLERANCE)


def test_counts_beyond_half_precision(make):
    ours = make(Ours).set_dtype(torch.float16)
    ours.total, ours.count = ours.total + 30_000.0, ours.count + 100_001
    ours.set_dtype(torch.float16)
    assert ours.count.item() == 100_001
    ours._update_count = 1
    assert ours.compute().item() == pytest.approx(30_000 / 100_001, rel=ROUNDING_TOLERANCE)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pickling_and_copying_keep_the_state(make, reduction):
    ours = make(Ours, reduction=reduction)
    (img1, img2), more = _batches(False)
    ours.update(img1, img2)
    for copy in (pickle.loads(pickle.dumps(ours)), ours.clone()):
        assert torch.equal(copy.compute(), ours.compute())
        copy.update(*more)
        assert not torch.equal(copy.compute(), ours.compute())


@pytest.mark.parametrize("net", NETS)
def test_state_dicts_load_both_ways(make, net):
    ours, theirs = make(Ours, net_type=net), make(Theirs, net_type=net)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for p in theirs.parameters():
        p.data.mul_(1.25)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    (img1, img2), *_ = _batches(False)
    torch.testing.assert_close(ours(img1, img2), theirs(img1, img2), **METRIC_TOLERANCE)
    make(Theirs, net_type=net).load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_state_dicts_from_before_0_12_load(make, make_theirs, net):
    """Before 0.12 the network was that of lpips, under the name `net`."""
    ours = make(Ours, net_type=net)
    expected = ours.state_dict()
    old = {f"net.{name}": tensor for name, tensor in make_theirs(net).state_dict().items()}
    ours.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in expected.items()})
    torch.nn.ModuleDict({"val": ours}).load_state_dict({f"val.{name}": tensor for name, tensor in old.items()})
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert "net.scaling_layer.shift" in old  # the given state is not changed
    ours.half().load_state_dict({name: tensor.half() for name, tensor in old.items()}, strict=True)
    old["net.scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    with pytest.raises(RuntimeError, match=r"net\.scaling_layer\.shift"):
        ours.load_state_dict(old, strict=True)


def test_persistent_state_is_kept(make):
    ours, other = make(Ours), make(Ours)
    (img1, img2), *_ = _batches(False)
    for m in (ours, other):
        m.persistent(True)
    ours.update(img1, img2)
    other.load_state_dict(ours.state_dict())
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert torch.equal(other.compute(), ours.compute())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_merging_states(make, reduction):
    one, other, both = (make(Ours, reduction=reduction) for _ in range(3))
    first, second = _batches(False)
    other.update(*first)
    one.update(*second)
    both.update(*first)
    both.update(*second)
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), both.compute())


def test_in_collections(make):
    (img1, img2), *_ = _batches(False)
    expected = make(Theirs)(img1, img2)
    metrics = {"a": make(Ours), "b": make(Ours, reduction="sum")}
    for collection in (MetricCollection(metrics), FeatureShare({"a": make(Ours), "b": make(Ours, reduction="sum")})):
        found = collection(img1, img2)
        torch.testing.assert_close(found["a"], expected, **METRIC_TOLERANCE)
        torch.testing.assert_close(found["b"], 2 * expected, **METRIC_TOLERANCE)


def test_class_attributes_are_torchmetrics():
    names = ("is_differentiable", "higher_is_better", "full_state_update", "feature_network")
    for name in (*names, "plot_lower_bound", "plot_upper_bound"):
        assert getattr(Ours, name) == getattr(Theirs, name), name


def test_plot(make):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    ours = make(Ours)
    (img1, img2), *_ = _batches(False)
    value = ours(img1, img2)
    for figure, axes in (ours.plot(), ours.plot([value, 2 * value])):
        assert axes.figure is figure
        matplotlib.pyplot.close(figure)


def test_training_mode_of_a_parent_changes_nothing(make):
    parent = torch.nn.ModuleDict({"metric": make(Ours)}).train()
    (img1, img2), *_ = _batches(False)
    assert torch.equal(parent["metric"](img1, img2), make(Ours)(img1, img2))
    assert not any(p.requires_grad for p in parent.parameters())


def test_error_on_wrong_init():
    with pytest.raises(ValueError, match="Argument `net_type` must be one"):
        Ours(net_type="resnet")
    with pytest.raises(ValueError, match="Argument `reduction` must be one"):
        Ours(reduction="median")
    with pytest.raises(ValueError, match="Argument `normalize` should be an bool but got 1"):
        Ours(normalize=1)
    with pytest.raises(ValueError, match="Unexpected keyword arguments"):
        Ours(reduce="mean")
    x = torch.zeros(1, 3, 33, 33)
    with pytest.raises(ValueError, match="Argument `net_type` must be one"):
        ours_functional(x, x, net_type="resnet")
    with pytest.raises(ValueError, match="Invalid reduction type: median"):
        ours_functional(x, x, reduction="median")


@pytest.mark.parametrize(
    "img1, img2, normalize",
    (
        (torch.rand(1, 1, 28, 28), torch.rand(1, 3, 28, 28), False),
        (torch.rand(1, 3, 28, 28), torch.rand(1, 1, 28, 28), False),
        (torch.rand(3, 28, 28), torch.rand(1, 3, 28, 28), False),
        (torch.rand(1, 3, 28, 28) - 2, torch.rand(1, 3, 28, 28), False),
        (torch.rand(1, 3, 28, 28), torch.rand(1, 3, 28, 28) - 2, False),
        (torch.rand(1, 3, 28, 28) - 0.5, torch.rand(1, 3, 28, 28), True),
        (torch.rand(1, 3, 28, 28), torch.rand(1, 3, 28, 28) + 0.5, True),
        (torch.rand(1, 3, 28, 28), torch.full((1, 3, 28, 28), torch.nan), False),
        (torch.full((1, 3, 28, 28), torch.nan), torch.rand(1, 3, 28, 28), True),
    ),
)
def test_error_on_wrong_update(make, img1, img2, normalize):
    message = r"Expected both input arguments to be normalized tensors .* expected to be in the \[(0|-1), 1\] range"
    ours = make(Ours, normalize=normalize)
    for kind in (ours, make(Theirs, normalize=normalize)):
        with pytest.raises(ValueError, match=message):
            kind(img1, img2)
    with pytest.raises(ValueError, match=message):
        ours_functional(img1, img2, normalize=normalize)
    ours.reset()
    with pytest.raises(ValueError, match=message):
        ours.update(img1, img2)
    assert ours.count == 0, "what was refused must not be in the state"


def test_errors_name_the_images(make, weights):
    ours, x, small = make(Ours), torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 20, 20)
    for call in (ours, ours.update, ours_functional):
        for bad, kind in ((None, TypeError), (x.numpy(), TypeError), (small, ValueError)):
            with pytest.raises(kind, match="img1"):
                call(bad, bad)
            with pytest.raises(kind, match="img2"):
                call(x, bad)
    with pytest.raises(TypeError, match=r"img1 must be floating point, got torch\.int64"):
        ours_functional(x.long(), x.long())


def test_a_reset_stays_on_the_device(make):
    """The values that it resets to are on the device already: a copy from elsewhere would wait for the device."""
    ours = make(Ours).to("meta")
    assert {ours._defaults[name].device.type for name in ("total", "count")} == {"meta"}


def test_above_one_is_refused_only_when_normalizing(make):
    """torchmetrics checks the upper end only with `normalize`."""
    (img1, img2), *_ = _batches(True)
    torch.testing.assert_close(make(Ours)(3 * img1, img2), make(Theirs)(3 * img1, img2), **METRIC_TOLERANCE)


def test_no_samples(make):
    for reduction in REDUCTIONS:
        ours = make(Ours, reduction=reduction)
        with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ValueError, match="No samples"):
            ours.compute()


def test_an_empty_batch_adds_nothing(make):
    ours = make(Ours)
    (img1, img2), *_ = _batches(False)
    ours.update(img1, img2)
    expected = ours.compute()
    ours.update(img1[:0], img2[:0])
    assert torch.equal(ours.compute(), expected)


def test_functional_makes_its_network_once(weights):
    metric._kept_network.cache_clear()
    (img1, img2), *_ = _batches(False)
    with torch.inference_mode():
        ours_functional(img1, img2)
    ours_functional(img1.clone().requires_grad_(), img2).backward()  # the kept network must allow gradients
    assert metric._kept_network.cache_info().misses == 1
    ours_functional(img1.double(), img2.double())
    assert metric._kept_network.cache_info().misses == 2


def _networks(**arguments):
    """The networks of both packages, in float64."""
    return tuple(kind(**arguments).double() for kind in (metric.Network, theirs_functional._NoTrainLpips))


def _images(*shapes):
    gen = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=gen, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("resizes", (False, True))
@pytest.mark.parametrize("spatial", (False, True))
@pytest.mark.parametrize("net", NETS)
def test_network_is_torchmetrics(weights, net, spatial, resizes):
    side = 16 if net == "vgg" else 32
    h, w = side + 1, side + 9
    cases = [((2, 3, h, w), (2, 3, h, w)), ((1, 3, h, w), (2, 1, h, w)), ((2, 1, h, w), (1, 3, h, w))]
    cases.append(((0, 3, h, w), (0, 3, h, w)))
    if not spatial:
        cases.append(((3, h, w), (2, 3, h, w)))
    if resizes:  # by area, bilinearly to larger and to smaller, not at all; and images of two sizes
        cases += [((1, 3, h, w), (2, 3, 9, 20)), ((1, 3, 9, w), (1, 3, side + 4, side + 4))]
    ours, theirs = _networks(net=net, spatial=spatial, resize=side + 4 if resizes else None)
    for shapes in cases:
        in0, in1 = _images(*shapes)
        for normalize in (False, True):
            found, expected = (net(in0, in1, retperlayer=True, normalize=normalize) for net in (ours, theirs))
            torch.testing.assert_close(found, expected, **METRIC_FLOAT64_TOLERANCE)
    torch.testing.assert_close(ours(in0, in1, True, True), expected, **METRIC_FLOAT64_TOLERANCE)
    torch.testing.assert_close(ours(in0, in1, normalize=True), expected[0], **METRIC_FLOAT64_TOLERANCE)


@pytest.mark.parametrize("resize", (None, 40))
@pytest.mark.parametrize("spatial", (False, True))
def test_gradients_through_the_network_are_torchmetrics(weights, spatial, resize):
    gradients = []
    for net in _networks(net="squeeze", spatial=spatial, resize=resize):
        images = [x.requires_grad_() for x in _images((2, 3, 36, 50), (1, 1, 36, 50))]
        value, parts = net(*images, retperlayer=True, normalize=True)
        (value.square().sum() + parts[2].sum()).backward()
        gradients.append([x.grad for x in images])
    torch.testing.assert_close(*gradients, **METRIC_FLOAT64_GRAD_TOLERANCE)


def test_the_network_takes_torchmetrics_positions_and_has_its_attributes(weights, tmp_path):
    file = tmp_path / "linear.pth"
    torch.save({f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 192, 384, 256, 256))}, file)
    arguments = True, "alex", True, False, False, True, str(file), True, 40
    ours, theirs = metric.Network(*arguments), theirs_functional._NoTrainLpips(*arguments)
    names = "pnet_type", "pnet_tune", "pnet_rand", "spatial", "resize", "chns", "L", "training"
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    modules = [{name.split(".")[0] for name, _ in net.named_modules()} for net in (ours, theirs)]
    assert modules[0] == modules[1] - {"lins"}  # `lins` lists lin0 to lin4, which are registered only once here
    assert [getattr(ours, f"lin{k}") is lin for k, lin in enumerate(ours.lins)] == [True] * 5
    in0, in1 = (x.float() for x in _images((1, 3, 64, 64), (1, 3, 64, 64)))
    torch.testing.assert_close(ours(in0, in1), theirs(in0, in1), **METRIC_TOLERANCE)
    scaled = ours.scaling_layer(in0)
    assert torch.equal(scaled, theirs.scaling_layer(in0))
    for name in ("relu1", "relu5"):
        torch.testing.assert_close(getattr(ours.net(scaled), name), getattr(theirs.net(scaled), name))
    for net in (ours, theirs):  # people change these attributes later
        net.spatial, net.resize = False, None
    torch.testing.assert_close(ours(in0, in1), theirs(in0, in1), **METRIC_TOLERANCE)


def test_a_random_network(weights):
    """As in torchmetrics, it needs no files, and the linear weights are random, too."""
    one, other = (metric.Network(False, "squeeze", pnet_rand=True) for _ in range(2))
    for name in ("net.slice1.0.weight", "lin0.model.1.weight"):
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize("use_dropout", (False, True))
def test_the_network_never_drops_out(weights, use_dropout):
    """torchmetrics' network does not drop out either, after its first `.train()`."""
    ours = metric.Network(net="squeeze", eval_mode=False, use_dropout=use_dropout)
    theirs = theirs_functional._NoTrainLpips(net="squeeze", use_dropout=use_dropout)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    in0, in1 = (x.float() for x in _images((1, 3, 40, 40), (1, 3, 40, 40)))
    for net in (ours, ours.train(), torch.nn.Sequential(ours).train()[0]):
        assert not net.training
        torch.testing.assert_close(net(in0, in1), theirs(in0, in1), **METRIC_TOLERANCE)
    assert not any(p.requires_grad for p in ours.parameters())


def test_a_network_to_tune(weights):
    gradients = []
    for net in _networks(net="squeeze", pnet_tune=True):
        net.train(True)
        net(*_images((2, 3, 40, 40), (2, 3, 40, 40))).sum().backward()
        gradients.append({name.replace("slices.0.", "slice1."): p.grad for name, p in net.named_parameters()})
    ours, theirs = gradients
    for name in ("net.slice1.0.weight", "net.slice1.0.bias", *(f"lin{k}.model.1.weight" for k in range(7))):
        torch.testing.assert_close(ours[name], theirs[name], **METRIC_FLOAT64_GRAD_TOLERANCE)
    assert all(gradient is not None for gradient in ours.values())


@pytest.mark.parametrize("dtype0", SHORT_DTYPES)
@pytest.mark.parametrize("dtype1", SHORT_DTYPES)
def test_the_network_promotes_images(weights, dtype0, dtype1):
    ours, theirs = metric.Network(net="squeeze"), theirs_functional._NoTrainLpips(net="squeeze")
    images = [x.to(d) for x, d in zip(_images((2, 3, 40, 40), (2, 3, 40, 40)), (dtype0, dtype1), strict=True)]
    found, expected = [], []
    for net, values in ((ours, found), (theirs, expected)):
        leaves = [x.clone().requires_grad_() for x in images]
        value = net(*leaves)
        value.sum().backward()
        values += [value, *(leaf.grad for leaf in leaves)]
    torch.testing.assert_close(found[0], expected[0], **METRIC_TOLERANCE)
    for ours_grad, theirs_grad, dtype in zip(found[1:], expected[1:], (dtype0, dtype1), strict=True):
        assert ours_grad.dtype == dtype
        assert (ours_grad.float() - theirs_grad.float()).norm() <= ROUNDED_GRAD_TOLERANCE * theirs_grad.float().norm()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_metric_of_maps(make, reduction):
    """A network that gives maps: the metric reduces the maps."""
    ours, theirs = make(Ours, reduction=reduction), make(Theirs, reduction=reduction)
    ours.net.spatial = theirs.net.spatial = True
    (img1, img2), *_ = _batches(False)
    torch.testing.assert_close(ours(img1, img2), theirs(img1, img2), **METRIC_TOLERANCE)
    torch.testing.assert_close(ours.compute(), theirs.compute(), **METRIC_TOLERANCE)


@pytest.mark.parametrize("resize", (0, -1, True, 64.0, "64"))
def test_bad_resize(weights, resize):
    with pytest.raises(ValueError, match=r"resize must be None or a number of pixels from 1, got "):
        metric.Network(resize=resize)


def test_errors_of_the_network(weights):
    ours, x = metric.Network(net="alex", resize=40), torch.zeros(1, 3, 40, 40)
    with pytest.raises(TypeError, match=r"retperlayer must be True or False, got the string 'no'"):
        ours(x, x, retperlayer="no")
    with pytest.raises(TypeError, match="eval_mode must be True or False"):
        metric.Network(eval_mode="no")
    for bad, kind in (
        (None, TypeError),
        (x.byte(), TypeError),
        (x.to_sparse(), TypeError),
        (x[0, 0, 0], ValueError),
        (x[None], ValueError),
        (x[:, :2], ValueError),
        (x[:, :, :0], ValueError),
    ):
        for images, name in (((bad, x), "in0"), ((x, bad), "in1")):
            with pytest.raises(kind, match=f"^{name} "):
                ours(*images)
    ours.resize = 30
    with pytest.raises(ValueError, match="in0 must have sides of at least 31 pixels for net 'alex', got 30 x 30"):
        ours(x, x)
    ours.resize = None
    with pytest.raises(ValueError, match=r"in0 and in1 must have one size, got \[40, 40\] and \[40, 39\]"):
        ours(x, x[..., :39])
    with pytest.raises(ValueError, match=r"in0 and in1 must have one batch size, or 1, got 2 and 3"):
        ours(x.expand(2, -1, -1, -1), x.expand(3, -1, -1, -1))


def _worker(rank, folder, states):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    net = metric.Network(trunk_weights=states)
    batches = _batches(False, 5)
    found = {}
    for reduction in REDUCTIONS:
        ours = Ours(reduction=reduction, trunk_weights=states)
        ours.net = net
        for ours.dist_sync_on_step in (False, True):
            ours.reset()
            steps = [ours(*batches[i]) for i in range(rank, 4, 2)]
            found[reduction, ours.dist_sync_on_step] = (torch.stack(steps), ours.compute())
        ours.reset()
        for i in range(rank, 5, 2):
            ours.update(*batches[i])
        found[reduction, "uneven"] = ours.compute()
        ours.reset()
        if rank == 0:
            ours.update(*batches[0])
        ours._update_count = 1  # avoids a warning of torchmetrics
        found[reduction, "none on rank 1"] = ours.compute()
    found["expected"] = torch.stack([net(*batch).flatten() for batch in batches])
    torch.save(found, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(trunk_states, tmp_path):
    states = trunk_states["alex"]
    torch.multiprocessing.spawn(_worker, (str(tmp_path), states), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    scores = ranks[0]["expected"]  # [5 batches, 2 images], batch i on rank i % 2
    for reduction in REDUCTIONS:
        reduce = {"mean": torch.mean, "sum": torch.sum}.get(reduction, torch.flatten)
        for rank, found in enumerate(ranks):
            steps, value = found[reduction, False]
            torch.testing.assert_close(value, reduce(scores[:4]))
            torch.testing.assert_close(steps, torch.stack([reduce(scores[i]) for i in (rank, rank + 2)]))
            steps, value = found[reduction, True]
            torch.testing.assert_close(value, reduce(scores[:4]))
            torch.testing.assert_close(steps, torch.stack([reduce(scores[i : i + 2]) for i in (0, 2)]))
            torch.testing.assert_close(found[reduction, "uneven"], reduce(scores))
            torch.testing.assert_close(found[reduction, "none on rank 1"], reduce(scores[0]))


def test_range_check_on_a_gpu_does_not_wait(make):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ours = make(Ours).cuda()
    img1, img2 = _batches(False)[0].cuda()
    ours.update(img1, img2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.update(img1, img2)
        ours(img1, img2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(ValueError, match="Expected both input arguments"):
        ours.update(img1 - 2, img2)
    assert ours.count == 6


def test_what_torchmetrics_has_only_of_late_is_not_needed(make, monkeypatch):
    monkeypatch.delattr(torchmetrics.Metric, "dtype")
    for reduction in REDUCTIONS:
        make(Ours, reduction=reduction)(*_batches(False)[0])


def test_supported_torchmetrics():
    assert tuple(map(int, torchmetrics.__version__.split(".")[:2])) >= (1, 0)
