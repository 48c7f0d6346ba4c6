"""LPIPS with ImageNet's weights against published values, and against lpips 0.1.4 in float64: as recorded, and live."""

from __future__ import annotations

import functools
import json
import statistics
from pathlib import Path

import pytest
import torch

import lpips_fast
from lpips_fast.head import backends
from lpips_fast.weights.files import fingerprint
from lpips_fast.weights.published import read_trunk_weights
from tests.support.comparisons import assert_close, assert_mostly_close, assert_norms_close
from tests.support.gradients import parts_and_gradients, value_and_gradient
from tests.support.parameters import BACKENDS, REAL_NETS
from tests.support.samples import SQUARES, TWENTY, WHOLE, batches, blocks
from tests.support.tolerances import (
    GRAD_TOLERANCE,
    LARGEST_GRAD_TOLERANCE,
    REAL_BLOCK_TOLERANCE,
    REAL_GRAD_ERROR_RATIO,
    REAL_GRAD_TOLERANCE,
    REAL_JUMP_TOLERANCE,
    REAL_LOW_PRECISION_TOLERANCE,
    REAL_MAP_TOLERANCE,
    REAL_PART_TOLERANCE,
    REAL_VALUE_TOLERANCE,
    VALUE_TOLERANCE,
    WHOLE_VALUE_TOLERANCE,
)

OPTIONS = [
    (lpips, spatial, version) for lpips in (True, False) for spatial in (False, True) for version in ("0.1", "0.0")
]


ARITHMETIC = FLOAT64, WINOGRAD, DIRECT = (
    (torch.float64, "auto"),
    (torch.float32, "winograd"),
    (torch.float32, "direct"),
)

# The head's backends do not depend on the version, nor on how the trunk convolves.
CASES = (
    *((backend, "0.1", *arithmetic) for backend in backends.BACKENDS for arithmetic in (FLOAT64, WINOGRAD)),
    ("auto", "0.1", *DIRECT),
    *(("auto", "0.0", *arithmetic) for arithmetic in ARITHMETIC),
)


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden" / "lpips_0_1_4.json").read_text())


@pytest.fixture
def torch_home(shared, monkeypatch):
    """A cache of downloads that has the real weights of AlexNet and SqueezeNet."""
    monkeypatch.setenv("TORCH_HOME", str(shared / "torch_home"))


def example(shared, name, dtype=torch.float32):
    return lpips_fast.im2tensor(lpips_fast.load_image(shared / "images" / name)).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("lpips,spatial,version", OPTIONS)
@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_recorded_from_lpips(shared, golden, torch_home, net, lpips, spatial, version, dtype, backend):
    options = {"net": net, "version": version, "lpips": lpips, "spatial": spatial}
    cases = [case for case in golden["cases"] if all(case[key] == value for key, value in options.items())]
    assert len(cases) == 2
    module = lpips_fast.LPIPS(backend=backend, **options).to(dtype)
    atol, rtol = VALUE_TOLERANCE[dtype]
    for case in cases:
        in0, in1 = (example(shared, case[name], dtype) for name in ("in0", "in1"))
        in0.requires_grad_()
        value, parts = module(in0, in1, retPerLayer=True)
        found = [x.mean(dim=(1, 2, 3)) for x in (value, *parts)]
        for f, expected in zip(found, (case["value"], *case["per_layer"]), strict=True):
            assert f.tolist() == pytest.approx(expected, rel=rtol, abs=atol)
        (grad,) = torch.autograd.grad(value.sum() / (value.numel() if spatial else 1), in0)
        assert grad.norm().item() == pytest.approx(case["grad_norm"], rel=GRAD_TOLERANCE[dtype])
        assert grad.abs().max().item() == pytest.approx(case["grad_abs_max"], rel=LARGEST_GRAD_TOLERANCE[dtype])


@pytest.mark.parametrize("in1,value", (("ex_p0.png", 0.722), ("ex_p1.png", 0.138)))
def test_published_by_lpips(shared, golden, torch_home, in1, value):
    (published,) = [case for case in golden["published"] if case.get("in1") == in1]
    assert published["value"] == value
    in0, in1 = (example(shared, name) for name in (published["in0"], in1))
    assert round(lpips_fast.LPIPS(net="alex")(in0, in1).item(), 3) == value


def test_published_by_torchmetrics(golden, torch_home):
    (published,) = [case for case in golden["published"] if case["net"] == "squeeze"]
    gen = torch.Generator().manual_seed(42)
    in0, in1 = (torch.rand(2, 3, 100, 100, generator=gen) * 2 - 1 for _ in range(2))
    value = lpips_fast.LPIPS(net="squeeze")(in0, in1)
    assert [round(v, 4) for v in value.flatten().tolist()] == published["value"]


def test_first_stages_of_vgg(shared, make_ours, make_theirs, trunk_states):
    """Real weights in the layers that `shared` has, random weights above: these features are unlike those of noise."""
    real = torch.load(shared / "torch_home" / "vgg16_features_0_to_7.pth", weights_only=True)
    in0, in1 = (example(shared, name) for name in ("ex_ref.png", "ex_p0.png"))
    ours = lpips_fast.LPIPS(net="vgg", trunk_weights={**trunk_states["vgg"], **real})
    theirs = make_theirs("vgg", torch.float64)
    state = {name: tensor.clone() for name, tensor in theirs.net.state_dict().items()}
    try:
        theirs.net.load_state_dict({k: real.get(f"features.{k.partition('.')[2]}", v) for k, v in state.items()})
        value, parts = ours(in0, in1, retPerLayer=True)
        expected, expected_parts = theirs(in0.double(), in1.double(), retPerLayer=True)
    finally:
        theirs.net.load_state_dict(state)
    assert_close(value, expected, VALUE_TOLERANCE[torch.float32])
    for part, expected_part in zip(parts, expected_parts):
        assert_close(part, expected_part, VALUE_TOLERANCE[torch.float32])


# --- On the package's own images, with all of VGG16's weights, against tests/lpips/golden.jsonl ---


@pytest.fixture(scope="module")
def recorded():
    """What made the records, and the records, a line each."""
    origin, *cases = map(json.loads, Path(__file__).with_name("golden.jsonl").read_text().splitlines())
    return origin, cases


@pytest.fixture(scope="module")
def cases(recorded):
    """The records of some samples, for a net and a version."""

    def cases(net, samples, version="0.1"):
        found = {case["sample"]: case for case in recorded[1] if (case["net"], case["version"]) == (net, version)}
        return [found[sample.name] for sample in samples]

    return cases


@pytest.fixture(scope="module")
def make(real_trunk):
    """Makes our LPIPS with ImageNet's weights."""

    def make(net, dtype=torch.float32, **options):
        return lpips_fast.LPIPS(net=net, trunk_weights=real_trunk(net), **options).to(dtype)

    return make


def assert_parts_close(found, expected, dtype):
    assert [part.item() for part in found] == pytest.approx(expected, rel=REAL_PART_TOLERANCE[dtype])


def assert_recorded(found, cases, value_tolerance, block_tolerance, jump):
    """Distances, and gradients in blocks, of the squares."""
    values, gradients = found
    assert values.flatten().tolist() == pytest.approx([case["value"] for case in cases], rel=value_tolerance)
    expected, norms = in_blocks([case["gradient"] for case in cases])
    assert_mostly_close(blocks(gradients).flatten(1), expected, block_tolerance, jump, norms)


def in_blocks(records):
    """What was recorded of maps or gradients: [N, their blocks], and [N], the norms."""
    return (torch.tensor([record[key] for record in records], dtype=torch.float64) for key in ("blocks", "norm"))


def test_records_are_of_these_images_and_weights(recorded, real_trunk):
    """Otherwise make them anew: python -m tools.make_golden."""
    origin, _ = recorded
    assert origin["images"] == {sample.name: fingerprint(sample.pair()) for sample in (*SQUARES, *WHOLE)}
    for net in REAL_NETS:
        trunk = read_trunk_weights(net, real_trunk(net), progress=False)
        assert origin["trunks"][net] == fingerprint(trunk[name] for name in sorted(trunk))


@pytest.mark.parametrize("backend,version,dtype,cpu_conv", CASES, ids=str)
@pytest.mark.parametrize("net", REAL_NETS)
def test_squares(cases, make, net, version, backend, dtype, cpu_conv):
    """Distances, parts, maps and gradients."""
    try:
        backends.choose(backend, torch.device("cpu"))
    except (ValueError, RuntimeError) as error:
        pytest.skip(str(error))
    module = make(net, dtype, version=version, backend=backend, cpu_conv=cpu_conv)
    expected, (in0, in1) = cases(net, SQUARES, version), batches(SQUARES, dtype)
    tolerances = REAL_VALUE_TOLERANCE[dtype], REAL_BLOCK_TOLERANCE[dtype], REAL_JUMP_TOLERANCE[dtype]
    assert_recorded(value_and_gradient(module, in0, in1), expected, *tolerances)
    _, parts = module(in0, in1, retPerLayer=True)
    for case, *found in zip(expected, *parts, strict=True):
        assert_parts_close(found, case["parts"], dtype)
    module.spatial = True
    maps, (expected_blocks, norms) = module(in0, in1).double(), in_blocks([case["map"] for case in expected])
    assert_norms_close(blocks(maps).flatten(1), expected_blocks, REAL_MAP_TOLERANCE[dtype])
    assert maps.flatten(1).norm(dim=1).tolist() == pytest.approx(norms.tolist(), rel=REAL_MAP_TOLERANCE[dtype])


@pytest.mark.parametrize("cpu_conv", ("winograd", "direct"))
@pytest.mark.parametrize("version", ("0.1", "0.0"))
@pytest.mark.parametrize("net", REAL_NETS)
def test_whole_images(cases, make, net, version, cpu_conv):
    module = make(net, version=version, cpu_conv=cpu_conv)
    for case, sample in zip(cases(net, WHOLE, version), WHOLE, strict=True):
        value, parts = module(*sample.pair(), retPerLayer=True)
        assert value.item() == pytest.approx(case["value"], rel=WHOLE_VALUE_TOLERANCE)
        assert_parts_close(parts, case["parts"], torch.float32)


WAYS = {
    "channels_last": ({}, lambda fn, *pair: fn(*(x.contiguous(memory_format=torch.channels_last) for x in pair))),
    "features": ({}, lambda fn, in0, in1: fn(in0, fn.features(in1))),
    "grad_in_forward": ({"grad_in_forward": True, "chunk_size": 2}, lambda fn, *pair: fn(*pair)),
}


@pytest.mark.parametrize("dtype,cpu_conv", ARITHMETIC, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", REAL_NETS)
def test_ways_of_a_call(cases, make, net, way, dtype, cpu_conv):
    options, call = WAYS[way]
    fn = make(net, dtype, cpu_conv=cpu_conv, **options)
    found = value_and_gradient(functools.partial(call, fn), *batches(SQUARES, dtype))
    tolerances = REAL_VALUE_TOLERANCE[dtype], REAL_BLOCK_TOLERANCE[dtype], REAL_JUMP_TOLERANCE[dtype]
    assert_recorded(found, cases(net, SQUARES), *tolerances)


@pytest.mark.parametrize(
    "precision,grad_in_forward", (("bfloat16", False), ("bfloat16", True), ("float16", True)), ids=str
)
@pytest.mark.parametrize("net", REAL_NETS)
def test_low_precision(cases, make, net, precision, grad_in_forward):
    found = value_and_gradient(make(net, precision=precision, grad_in_forward=grad_in_forward), *batches(SQUARES))
    value_tolerance, block_tolerance = REAL_LOW_PRECISION_TOLERANCE[precision]
    assert_recorded(found, cases(net, SQUARES), value_tolerance, block_tolerance, block_tolerance)


@pytest.mark.parametrize("value,scaled", ((0.3566, False), (0.3493, True)))
def test_published_of_vgg_by_torchmetrics(make, value, scaled):
    """The examples of torchmetrics 0.7 to 0.9 and 0.10 to 0.11, of torchvision's VGG16: these are its weights.

    The first example gives images in [0, 1] as they are. The seed was set before the module was made, so the images
    come after the values that torchvision and lpips draw for a new VGG16 and its linear layers.
    """
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(123)
    models.vgg16(weights=None, init_weights=False)
    for channels in (64, 128, 256, 512, 512):
        torch.nn.Conv2d(channels, 1, 1, bias=False)
    in0, in1 = torch.rand(2, 10, 3, 100, 100)
    if scaled:
        in0, in1 = 2 * in0 - 1, 2 * in1 - 1
    with torch.no_grad():
        assert round(make("vgg")(in0, in1).mean().item(), 4) == value


# --- The same live: elementwise, and against what lpips itself gives in float32 ---


@pytest.mark.parametrize("dtype,cpu_conv", ARITHMETIC, ids=str)
@pytest.mark.parametrize("lpips", (True, False))
@pytest.mark.parametrize("net", REAL_NETS)
def test_maps_and_gradients(make, make_real_theirs, net, lpips, dtype, cpu_conv):
    module = make(net, dtype, lpips=lpips, spatial=True, cpu_conv=cpu_conv)
    in0, in1 = batches(SQUARES, dtype)
    value, parts, gradients = parts_and_gradients(module, in0, in1)
    oracle = make_real_theirs(net, torch.float64, lpips=lpips, spatial=True)
    expected, expected_parts, expected_gradients = parts_and_gradients(oracle, in0.double(), in1.double())
    for f, e in zip((value, *parts), (expected, *expected_parts), strict=True):
        assert_close(f, e, (REAL_MAP_TOLERANCE[dtype], 0))
    for f, e in zip(gradients, expected_gradients, strict=True):
        assert_mostly_close(f, e, REAL_GRAD_TOLERANCE[dtype], REAL_JUMP_TOLERANCE[dtype])


def gradients_of_twenty(module, dtype):
    return [value_and_gradient(module, *(x.to(dtype) for x in s.pair()))[1].double() for s in TWENTY]


def median_error(found, exact):
    """The median of the norms of the errors, relative to the norms of the gradients."""
    return statistics.median(((f - e).norm() / e.norm()).item() for f, e in zip(found, exact, strict=True))


@pytest.fixture(scope="module")
def exact_gradients(make_real_theirs):
    """By net, the gradients of lpips for twenty squares in float64, and the median error of its float32."""

    @functools.cache
    def exact_gradients(net):
        exact, rounded = (
            gradients_of_twenty(make_real_theirs(net, dtype), dtype) for dtype in (torch.float64, torch.float32)
        )
        return exact, median_error(rounded, exact)

    return exact_gradients


@pytest.mark.parametrize("cpu_conv", ("winograd", "direct"))
@pytest.mark.parametrize("net", REAL_NETS)
def test_median_error_of_gradients(make, exact_gradients, net, cpu_conv):
    """In float32, as a multiple of that of lpips in float32."""
    exact, error_of_lpips = exact_gradients(net)
    error = median_error(gradients_of_twenty(make(net, cpu_conv=cpu_conv), torch.float32), exact)
    assert error <= REAL_GRAD_ERROR_RATIO[net, cpu_conv] * error_of_lpips
