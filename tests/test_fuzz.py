"""The public API on inputs that hypothesis makes: the float64 oracle's result or a documented error, and no silent NaN.

`pytest --hypothesis-profile long tests/test_fuzz.py tests/test_functional.py` looks for new examples.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpips_fast import functional
from lpips_fast.diversity import mean_distance
from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import head_maps_ref
from tests.support.comparisons import assert_close, assert_gradients_close
from tests.support.features import to_float64
from tests.support.images import image
from tests.support.parameters import BACKENDS
from tests.support.strategies import dtypes, shapes, strided
from tests.support.tolerances import HEAD_VALUE_TOLERANCE, VALUE_TOLERANCE

SETTINGS = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
FEW = settings(SETTINGS, max_examples=max(20, settings().max_examples // 3))  # for tests that run networks

seeds = st.integers(0, 2**16)
bad_values = st.sampled_from((torch.nan, torch.inf, -torch.inf))

# Magnitudes of features: subnormal, too small to square, ordinary, large, too large to square, the largest. Magnitudes
# from 1e-19 to 1e-18 and from 1e18 to 1e19 are left out: the order of a sum decides whether float32 loses them.
MAGNITUDES = {
    torch.float64: (0.0, 5e-324, 1e-200, 1e-15, 1.0, 1e15, 1e150),
    torch.float32: (0.0, 1e-45, 1e-40, 1e-30, 1e-15, 1.0, 1e4, 1e15, 1e25, 3e38),
    torch.bfloat16: (0.0, 1e-40, 1e-30, 1e-15, 1.0, 1e4, 1e15, 1e25, 3e38),
    torch.float16: (0.0, 6e-8, 1e-4, 1.0, 1e3, 65504.0),
}
LARGEST_NORM = {torch.float64: 1e154, torch.float32: 1.8e19, torch.bfloat16: 1.8e19, torch.float16: torch.inf}


@st.composite
def laid_out(draw, values: Tensor) -> Tensor:
    """The values with any strides; some dimensions repeat the first value, at stride 0."""
    for d, size in enumerate(values.shape):
        if size > 1 and draw(st.integers(0, 9)) == 0:
            values = values.narrow(d, 0, 1).expand(values.shape)
    found = draw(strided(tuple(values.shape), values))
    for d, stride in enumerate(values.stride()):
        if stride == 0 and values.shape[d] > 1:
            found = found.narrow(d, 0, 1).expand(values.shape)
    return found


@st.composite
def any_features(draw):
    """feats0, feats1 and weights of a few layers: pixels of every magnitude, sometimes a value that is not finite."""
    dtype = draw(dtypes)
    n = draw(st.integers(0, 3))
    batches = draw(st.sampled_from(((n, n), (1, n), (n, 1))))
    gen = torch.Generator().manual_seed(draw(seeds))
    magnitudes = torch.tensor(MAGNITUDES[dtype], dtype=torch.float64)
    largest = torch.finfo(dtype).max
    feats0, feats1, weights = [], [], []
    for c, h, w in draw(st.lists(shapes, min_size=1, max_size=3)):
        for feats, batch in zip((feats0, feats1), batches):
            f = torch.rand(batch, c, h, w, generator=gen, dtype=torch.float64) * 1.5 + 0.5
            f *= torch.randint(2, f.shape, generator=gen) * 2 - 1
            f *= magnitudes[torch.randint(len(magnitudes), (batch, 1, h, w), generator=gen)]
            f = f.clamp(-largest, largest).to(dtype)
            if f.numel() and draw(st.integers(0, 3)) == 0:
                f.view(-1)[draw(st.integers(0, f.numel() - 1))] = draw(bad_values)
            feats.append(draw(laid_out(f)))
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        weights.append(torch.rand(c, generator=gen, dtype=torch.float64).to(acc))
    if draw(st.integers(0, 7)) == 0:
        weights[0][0] = torch.nan
    return feats0, feats1, draw(st.sampled_from((weights, None)))


def oracle_maps(feats0, feats1, weights, eps, inside):
    """The head's maps in float64, where norms beyond the accumulation type's range count as infinite, as documented."""
    lists = []
    for feats in (feats0, feats1):
        lists.append([])
        for f in to_float64(feats):
            norm = f.norm(dim=1, keepdim=True)
            beyond = norm.isfinite() & (norm > LARGEST_NORM[feats[0].dtype])
            lists[-1].append(torch.where(beyond, 0.0, f))
    flat = [torch.ones(f.shape[1]) for f in feats0] if weights is None else weights
    return head_maps_ref(HeadInput(*lists, to_float64(flat), Norm(eps, inside)))


def assert_same(found: Tensor, expected: Tensor, tolerance: tuple[float, float], what: str) -> None:
    """Close where the oracle is finite; NaN and infinite at the same places as the oracle."""
    assert torch.equal(found.isnan(), expected.isnan()), f"{what}: NaN at other places"
    infinite = expected.isinf()
    assert torch.equal(found[infinite].double(), expected[infinite]), f"{what}: infinite at other places"
    odd = infinite | expected.isnan()
    assert_close(found.masked_fill(odd, 0), expected.masked_fill(odd, 0), tolerance, what, unit=1.0)


@pytest.mark.parametrize("backend", (*BACKENDS, "cuda"))
@given(lists=any_features(), eps=st.sampled_from(((1e-10, False), (1e-8, True))))
@SETTINGS
def test_head(backend, lists, eps):
    options = {"eps": eps[0], "eps_inside_sqrt": eps[1], "backend": backend}
    expected = oracle_maps(*lists, *eps)
    tolerance = HEAD_VALUE_TOLERANCE[lists[0][0].dtype]
    found = functional.lpips_head_maps(*lists, **options)
    for layer, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert_same(f, e, tolerance, f"map {layer}")
    value = functional.lpips_head(*lists, **options)
    assert_same(value, torch.stack([e.mean(dim=(1, 2, 3)) for e in expected], dim=1), tolerance, "value")


@pytest.mark.parametrize("backend", (*BACKENDS, "cuda"))
@given(lists=any_features(), maps=st.booleans(), eps=st.sampled_from(((1e-10, False), (1e-8, True))))
@SETTINGS
def test_gradients_are_nan_only_where_the_input_is_not_finite(backend, lists, maps, eps):
    feats0, feats1, weights = lists
    leaves = [[f.detach().requires_grad_() for f in feats] for feats in (feats0, feats1)]
    head = functional.lpips_head_maps if maps else functional.lpips_head
    out = head(*leaves, weights, eps=eps[0], eps_inside_sqrt=eps[1], backend=backend)
    # The gradient at a subnormal of float16 is beyond its range; with one image against many, inf and -inf may meet.
    scale = 1e-6 if feats0[0].dtype == torch.float16 else 1.0
    loss = scale * (sum(o.sum() for o in out) if maps else out.sum())
    grads = torch.autograd.grad(loss, [*leaves[0], *leaves[1]])
    for layer, (f0, f1) in enumerate(zip(feats0, feats1, strict=True)):
        sound = torch.ones(max(len(f0), len(f1)), dtype=torch.bool)
        for f in (f0, f1):
            sound = sound & f.isfinite().flatten(1).all(1) if len(f) else sound[:0]
        if weights is not None and not weights[layer].isfinite().all():
            continue
        for grad in (grads[layer], grads[layer + len(feats0)]):
            assert not grad[sound if len(grad) == len(sound) else sound.all()[None]].isnan().any()


tensor_shapes = st.lists(st.sampled_from((0, 1, 2, 3, 31, 33)), min_size=0, max_size=6).filter(
    lambda shape: torch.Size(shape).numel() < 2**16
)
kinds = st.sampled_from((*MAGNITUDES, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool, torch.complex64))
# Mostly valid types and shapes, so that the one odd argument is reached.
anything = st.one_of(
    st.builds(lambda shape: torch.rand(shape), tensor_shapes),
    st.builds(lambda n, c, kind: torch.ones(n, c, 33, 33).to(kind), st.integers(0, 3), st.integers(0, 4), kinds),
    st.builds(lambda n, kind: torch.ones(n, 1, 33, 33).to(kind), st.integers(1, 2), kinds),
    st.just(torch.ones(1, 3, 33, 33).to_sparse()),
    st.just(torch.ones(1, 3, 33, 33, device="meta")),
    st.sampled_from((None, 1.0, "image.png", [1.0], image(1, 33, 33, seed=0).numpy())),
)
good = st.builds(lambda n, seed: image(n, 33, 33, seed=seed), st.integers(1, 2), seeds)
DOCUMENTED = (TypeError, ValueError)


def attempt(function, *arguments, **options):
    """The function's result, or None after a documented error. A warning is an error that is not documented."""
    try:
        return function(*arguments, **options)
    except DOCUMENTED as error:
        event(type(error).__name__)
        return None


@pytest.mark.filterwarnings("error")
@given(
    lists=st.tuples(
        *(st.one_of(anything, st.lists(st.one_of(good, anything), max_size=2)) for _ in range(2)),
        st.one_of(st.none(), anything, st.lists(st.one_of(st.just(torch.ones(3)), anything), max_size=2)),
    )
)
@SETTINGS
def test_head_of_anything(lists):
    found = attempt(functional.lpips_head, *lists)
    if found is not None:
        assert found.shape == (max(len(lists[0][0]), len(lists[1][0])) if len(lists[0][0]) else 0, len(lists[0]))


@pytest.fixture(scope="module")
def modules(make_ours):
    """By net: LPIPS, and LPIPS in float64 on the reference backend without the options that make it faster."""
    made = {net: (make_ours(net), make_ours(net, backend="reference").double()) for net in ("alex", "squeeze")}
    return lambda net: made[net]  # hypothesis prints a function in one line


@pytest.mark.filterwarnings("error")
@given(in0=st.one_of(good, anything), in1=st.one_of(good, anything), weight=st.one_of(st.none(), anything))
@FEW
def test_lpips_of_anything(modules, in0, in1, weight):
    found = attempt(modules("alex")[0], in0, in1, weight=weight)
    if found is not None:
        assert found.shape == (len(in1) if len(in0) == 1 else len(in0), 1, 1, 1)
        assert found.isfinite().all()


@st.composite
def images(draw):
    """Two batches of any strides; and the index of an image with a value that is not finite, or None."""
    n = draw(st.integers(1, 3))
    batches = draw(st.sampled_from(((n, n), (1, n), (n, 1))))
    h, w = draw(st.integers(31, 40)), draw(st.integers(31, 40))
    pair = [image(b, h, w, seed=draw(seeds), channels=draw(st.sampled_from((1, 3)))) for b in batches]
    pair[0] *= draw(st.sampled_from((1.0, 1.0, 0.0, 1e-40, 1e-3, 1e3)))
    bad = None
    if draw(st.integers(0, 3)) == 0:
        place = tuple(draw(st.integers(0, size - 1)) for size in pair[0].shape)
        pair[0][place] = draw(bad_values)
        bad = place[0]
    return [draw(strided(tuple(x.shape), x)) for x in pair], bad


@st.composite
def pixel_weights(draw, n: int, h: int, w: int):
    gen = torch.Generator().manual_seed(draw(seeds))
    weight = torch.rand(draw(st.sampled_from((1, n))), 1, h, w, generator=gen)
    kind = draw(st.sampled_from(("any", "mask", "none", "half")))
    if kind in ("mask", "none"):
        weight = weight > (0.7 if kind == "mask" else 1)
    return weight.half() if kind == "half" else weight


@given(
    case=images(),
    data=st.data(),
    net=st.sampled_from(("alex", "squeeze")),
    options=st.fixed_dictionaries(
        {
            "chunk_size": st.sampled_from((None, 1, 2, "auto")),
            "grad_in_forward": st.booleans(),
            "spatial": st.booleans(),
        }
    ),
    normalize=st.booleans(),
    ret_per_layer=st.booleans(),
    needs=st.tuples(st.booleans(), st.booleans()),
)
@FEW
def test_lpips(modules, case, data, net, options, normalize, ret_per_layer, needs):
    """Options that make it faster or smaller change nothing; a value that is not finite spoils its own image only."""
    (in0, in1), bad = case
    n = max(len(in0), len(in1))
    ours, oracle = modules(net)
    spatial = options["spatial"]
    options["grad_in_forward"] &= not spatial
    weight = None if spatial or data.draw(st.booleans()) else data.draw(pixel_weights(n, *in0.shape[2:]))
    results = []
    for module, dtype, own in ((ours, torch.float32, options), (oracle, torch.float64, {"spatial": spatial})):
        for name, value in own.items():
            setattr(module, name, value)
        leaves = [x.detach().to(dtype).requires_grad_(need) for x, need in zip((in0, in1), needs)]
        out = module(*leaves, ret_per_layer, normalize, weight=weight)
        value, parts = out if ret_per_layer else (out, [])
        wanted = [x for x in leaves if x.requires_grad]
        results.append((value, parts, torch.autograd.grad(value.sum(), wanted) if wanted else ()))
    (value, parts, grads), (expected, expected_parts, expected_grads) = results
    spoiled = torch.zeros(n, dtype=torch.bool)
    if bad is not None:
        spoiled[slice(None) if len(in0) == 1 else bad] = True
    for f, e in zip((value, *parts), (expected, *expected_parts), strict=True):
        # Winograd's transforms spread a NaN over a tile, so more values may be NaN than in the oracle.
        assert (f.isnan() | ~e.isnan()).all()
        assert f[spoiled].isnan().flatten(1).any(1).all()
        assert_close(f[~spoiled], e[~spoiled], VALUE_TOLERANCE[torch.float32])
    if bad is None:
        assert all(g.isfinite().all() for g in grads)
        # In an image of one colour all pools are tied; where all weights are 0 the gradient is 0 and has no direction.
        if grads and in0.abs().max() > 1e-2 and (weight is None or weight.flatten(1).any(1).all()):
            assert_gradients_close(grads, expected_grads, torch.float32)


@given(
    n=st.integers(0, 4), m=st.one_of(st.none(), st.integers(0, 3)), block=st.integers(1, 5), seed=seeds, data=st.data()
)
@FEW
def test_pairwise_and_embed(modules, n, m, block, seed, data):
    ours, oracle = modules("alex")
    ours.spatial = oracle.spatial = False
    x = data.draw(strided((n, 3, 32, 33), image(n, 32, 33, seed=seed) if n else torch.zeros(0, 3, 32, 33)))
    y = None if m is None else image(m, 32, 33, seed=seed + 1) if m else torch.zeros(0, 3, 32, 33)
    others = x if y is None else y
    bad = n and data.draw(st.integers(0, 3)) == 0
    if bad:
        x[0, 1, 2, 3] = torch.nan
    found = ours.pairwise(x, y, block=block)
    assert found.shape == (n, len(others))
    with torch.no_grad():
        expected = (
            torch.stack([oracle(x.double(), o[None].double()).view(n) for o in others], 1) if len(others) else None
        )
    embeddings = ours.embed(x)
    if not n or expected is None:
        assert not embeddings.numel() or n
        return
    spoiled = expected.isnan()
    diagonal = torch.eye(n, len(others), dtype=torch.bool) if y is None else torch.zeros_like(spoiled)
    assert (found[diagonal] == 0).all()  # as documented, whatever the image
    assert torch.equal(found.isnan(), spoiled & ~diagonal)
    assert_close(found[~spoiled], expected[~spoiled], VALUE_TOLERANCE[torch.float32])
    squares = (embeddings[:, None] - ours.embed(others)[None]).square().sum(-1)
    assert_close(squares[~spoiled], expected[~spoiled], VALUE_TOLERANCE[torch.float32])
    estimated = ours.pairwise(x, y, sketch=block)
    assert (estimated[diagonal] == 0).all()
    assert torch.equal(estimated.isnan(), spoiled & ~diagonal)
    assert (estimated[~spoiled] >= 0).all()
    if y is not None or n > 1:
        mean = torch.tensor(mean_distance(ours, x, y, sketch=block).mean)
        if bad:
            assert mean.isnan()
        else:
            assert_close(mean, expected[~diagonal].mean(), VALUE_TOLERANCE[torch.float32])


@pytest.fixture(scope="module")
def metrics(trunk_states):
    """By reduction: the metric, and its network in float64 on the reference backend."""
    metric = pytest.importorskip("lpips_fast.metric")
    trunk = {"trunk_weights": trunk_states["alex"]}
    oracle = metric.Network(net="alex", backend="reference", **trunk).double()
    made = {
        reduction: metric.LearnedPerceptualImagePatchSimilarity("alex", reduction, **trunk)
        for reduction in ("mean", "sum", "none")
    }
    return lambda reduction: (made[reduction], oracle)


@given(
    batches=st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any),
    reduction=st.sampled_from(("mean", "sum", "none")),
    normalize=st.booleans(),
    bad=st.one_of(st.none(), bad_values),
    seed=seeds,
)
@FEW
def test_metric(metrics, batches, reduction, normalize, bad, seed):
    """The oracle's numbers for any split into batches. Images out of range are refused and change no state."""
    ours, oracle = metrics(reduction)
    ours.reset()
    ours.normalize = normalize
    expected = []
    for i, n in enumerate(batches):
        x, y = (image(n, 32, 35, seed=seed + 2 * i + k) for k in (0, 1))
        if normalize:
            x, y = ((t + 1) / 2 for t in (x, y))
        if n and bad is not None and bad != torch.inf:  # torchmetrics takes any value above without normalize
            spoiled = x.clone()
            spoiled[-1, 1, 2, 3] = bad
            with pytest.raises(ValueError, match="normalized"):
                ours.update(spoiled, y)
        ours.update(x, y)
        with torch.no_grad():
            expected.append(oracle(x.double(), y.double(), normalize=normalize).flatten())
    reduced = {"mean": torch.mean, "sum": torch.sum, "none": lambda t: t}[reduction](torch.cat(expected))
    found = ours.compute().reshape(reduced.shape)  # torchmetrics leaves one value without a dimension
    assert_close(found, reduced, VALUE_TOLERANCE[torch.float32])
