"""The contract of operators.py: every backend against the float64 reference, from the public functions inwards."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from lpips_fast import functional
from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import head_maps_ref, head_ref
from tests.support.comparisons import assert_all_close, assert_close
from tests.support.features import LAYOUTS, SHAPES, features, in_layout, to_float64
from tests.support.tolerances import HEAD_GRAD_TOLERANCE, HEAD_VALUE_TOLERANCE

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
EPS = ((1e-10, False), (1e-8, True))


def on_cpu_for_gpu(backend, device):
    """Whether a GPU's kernels run on the CPU: Triton's in its interpreter, CUDA's in the emulator."""
    return backend in ("triton", "cuda") and device == "cpu"


def skip_in_interpreter(backend, device, large):
    """Triton's interpreter is slow: it runs the odd shapes in every combination, and those of the nets in a few."""
    if backend == "triton" and device == "cpu" and large:
        pytest.skip("the odd shapes are enough for the interpreter")


def run(feats0, feats1, weights, maps, backend, eps, inside, needs=(True, True, True), seed=1):
    """The values, and the gradients of sum(g * value) for a random g to the lists that `needs` asks for."""
    lists = [[t.detach().requires_grad_(need) for t in ts] for ts, need in zip((feats0, feats1, weights), needs)]
    function = functional.lpips_head_maps if maps else functional.lpips_head
    out = function(*lists, eps=eps, eps_inside_sqrt=inside, backend=backend)
    outs = out if maps else [out]
    gen = torch.Generator().manual_seed(seed)
    loss = sum((torch.randn(o.shape, generator=gen, dtype=torch.float64).to(o) * o).sum() for o in outs)
    wanted = [t for ts, need in zip(lists, needs) if need for t in ts]
    grads = list(torch.autograd.grad(loss, wanted)) if wanted else []
    return outs, grads


def check_against_oracle(backend, feats0, feats1, weights, *, maps=False, eps=1e-10, inside=False, needs=(True,) * 3):
    dtype = feats0[0].dtype
    outs, grads = run(feats0, feats1, weights, maps, backend, eps, inside, needs)
    oracle = [to_float64(ts) for ts in (feats0, feats1, weights)]
    outs_ref, grads_ref = run(*oracle, maps, "reference", eps, inside, needs)
    for layer, (o, r) in enumerate(zip(outs, outs_ref, strict=True)):
        assert o.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(o, r, HEAD_VALUE_TOLERANCE[dtype], f"value {layer}")
    assert_gradients_close(grads, grads_ref, len(feats0), needs)
    return outs, grads


def assert_gradients_close(grads, expected, n_layers, needs):
    names = [f"d_{name}" for name, need in zip(("feats0", "feats1", "weights"), needs) if need]
    for i, name in enumerate(names):
        kind = slice(i * n_layers, (i + 1) * n_layers)
        assert_all_close(grads[kind], expected[kind], HEAD_GRAD_TOLERANCE, name)


@pytest.mark.parametrize("maps", (False, True), ids=("mean", "maps"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("net", SHAPES)
def test_value_and_gradients(backend, device, net, layout, dtype, maps):
    many = net in ("squeeze", "wide")
    skip_in_interpreter(backend, device, net != "odd" and (dtype != torch.float32 or maps or many))
    check_against_oracle(backend, *features(net, dtype, layout=layout, device=device), maps=maps)


@pytest.mark.parametrize("eps,inside", ((1e-8, True), (1e-3, False), (1e-3, True), (0.0, False)))
@pytest.mark.parametrize("maps", (False, True), ids=("mean", "maps"))
def test_eps(backend, device, maps, eps, inside):
    case = features("odd", torch.float32, device=device)
    check_against_oracle(backend, *case, maps=maps, eps=eps, inside=inside)


@pytest.mark.parametrize("layouts", (("nchw", "channels_last"), ("channels_last", "expanded"), ("sliced", "nchw")))
def test_two_layouts(backend, device, layouts):
    feats0, feats1, weights = features("alex", torch.float32, device=device)
    feats0, feats1 = ([in_layout(f, layout) for f in fs] for fs, layout in zip((feats0, feats1), layouts))
    check_against_oracle(backend, feats0, feats1, weights)


# Views that miss by one thing what accesses of whole vectors need, and sizes at which a short way ends: elements before
# the first; N, C, H and W; strides.
VIEWS = {
    "offset": (1, (2, 16, 4, 8), (512, 32, 8, 1)),
    "image stride": (0, (2, 16, 4, 8), (513, 32, 8, 1)),
    "plane stride": (0, (2, 16, 4, 8), (528, 33, 8, 1)),
    "rows": (0, (2, 16, 4, 8), (1024, 64, 16, 1)),
    "pixels": (0, (2, 16, 3, 5), (256, 16, 5, 1)),
    "one column": (0, (2, 8, 5, 1), (40, 5, 1, 1)),
    "one channel": (0, (1, 1, 3, 5), (15, 15, 5, 1)),
    "many tiles": (0, (1, 2, 190, 190), (72200, 36100, 190, 1)),
    "channels-last, offset": (1, (2, 16, 4, 8), (512, 1, 128, 16)),
    "channels-last, image stride": (0, (2, 16, 4, 8), (513, 1, 128, 16)),
    "channels-last, pixel stride": (0, (2, 16, 4, 8), (1024, 1, 136, 17)),
    "channels-last, rows": (0, (2, 16, 4, 8), (1024, 1, 136, 16)),
    "channels-last, channels": (0, (2, 13, 4, 8), (512, 1, 128, 16)),
    "channels-last, weights": (0, (2, 16, 4, 8), (512, 1, 128, 16)),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_views(backend, device, view, dtype):
    offset, shape, strides = VIEWS[view]
    gen = torch.Generator().manual_seed(0)
    size = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))
    memory = [torch.full((size,), torch.nan, dtype=dtype, device=device) for _ in range(2)]
    feats = [[m.as_strided(shape, strides, offset).copy_(torch.randn(shape, generator=gen))] for m in memory]
    first = view.endswith("weights")
    weights = [torch.rand(shape[1] + first, generator=gen)[first:].to(device)]
    moves = shape[1] > 1  # the normalised value of one channel is its sign, whose gradient is rounding
    check_against_oracle(backend, *feats, weights, needs=(moves, moves, True))


@pytest.mark.parametrize("needs", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("net,layout", (("odd", "nchw"), ("wide", "channels_last"), ("vgg", "channels_last")))
def test_only_gradients_asked_for(backend, device, net, layout, dtype, needs, monkeypatch):
    skip_in_interpreter(backend, device, net != "odd")
    needs = tuple(map(bool, needs))
    asked = []
    if backend != "reference":
        op = getattr(torch.ops.lpips_fast, f"head_bwd_{backend}")
        spy = lambda *args: (asked.append(args[-3:]), op(*args))[1]  # noqa: E731
        monkeypatch.setattr(torch.ops.lpips_fast, f"head_bwd_{backend}", spy)
    check_against_oracle(backend, *features(net, dtype, layout=layout, device=device), needs=needs)
    assert asked == ([needs] if backend != "reference" and any(needs) else [])


@pytest.mark.parametrize("batch", (0, 1, 3))
@pytest.mark.parametrize("maps", (False, True), ids=("mean", "maps"))
def test_batch_sizes(backend, device, maps, batch):
    check_against_oracle(backend, *features("odd", torch.float32, batch=batch, device=device), maps=maps)


@pytest.mark.parametrize("which", (0, 1))
def test_one_against_many(backend, device, which):
    feats0, feats1, weights = features("odd", torch.float32, batch=3, device=device)
    if which == 0:
        feats0 = [f[:1].clone() for f in feats0]
    else:
        feats1 = [f[:1].clone() for f in feats1]
    outs, grads = check_against_oracle(backend, feats0, feats1, weights)
    assert outs[0].shape == (3, len(SHAPES["odd"]))
    assert grads[len(feats0) * which].shape[0] == 1


def test_weights_none_are_ones(backend, device):
    feats0, feats1, weights = features("odd", torch.float32, device=device)
    ones = [torch.ones_like(w) for w in weights]
    expected = functional.lpips_head(feats0, feats1, ones, backend=backend)
    assert torch.equal(functional.lpips_head(feats0, feats1, None, backend=backend), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("net", SHAPES)
def test_two_runs_agree_to_the_bit(backend, device, net, layout):
    skip_in_interpreter(backend, device, net != "odd")
    case = features(net, torch.float32, batch=3, layout=layout, device=device)
    first, second = (run(*case, False, backend, 1e-10, False) for _ in range(2))
    for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert torch.equal(a, b)


def test_inputs_are_only_read(backend, device):
    """torch makes a lazy copy a real one as soon as its memory is asked for to be written."""
    if backend == "triton":
        pytest.skip("Triton asks for all memory alike")
    lists = [[torch._lazy_clone(t) for t in ts] for ts in features("odd", torch.float32, device=device)]
    for maps in (False, True):
        run(*lists, maps, backend, 1e-10, False)
    assert all(torch._C._is_cow_tensor(t) for ts in lists for t in ts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
def test_identical_images_are_at_distance_zero(backend, device, layout, dtype):
    feats0, _, weights = features("vgg", dtype, layout=layout, device=device)
    outs, grads = run(feats0, feats0, weights, False, backend, 1e-10, False)
    assert torch.equal(outs[0], torch.zeros_like(outs[0]))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
def test_zero_norm_has_zero_gradient(backend, device, layout, dtype):
    feats0, feats1, weights = features("odd", dtype, layout=layout, device=device)
    feats0 = [torch.zeros_like(f) for f in feats0]
    with torch.autograd.detect_anomaly(check_nan=True):
        outs, grads = run(feats0, feats1, weights, False, backend, 1e-10, False)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads[: len(feats0)])
    assert all(g.isfinite().all() for g in grads)
    assert outs[0].isfinite().all()


@pytest.mark.parametrize("scale", (1e-15, 1e-9, 1e9, 1e15))
@pytest.mark.parametrize("inside", (False, True))
def test_tiny_and_huge_features(backend, device, inside, scale):
    feats0, feats1, weights = features("odd", torch.float32, device=device)
    feats0, feats1 = ([f * scale for f in fs] for fs in (feats0, feats1))
    check_against_oracle(backend, feats0, feats1, weights, inside=inside)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
def test_nan_in_nan_out(backend, device, layout, bad):
    feats0, feats1, weights = features("odd", torch.float32, batch=3, layout=layout, device=device)
    feats0 = [f.clone() for f in feats0]
    for f in feats0:
        f[1, 0, 0, 0] = bad
    outs, grads = run(feats0, feats1, weights, False, backend, 1e-10, False)
    assert outs[0][1].isnan().all()
    assert outs[0][[0, 2]].isfinite().all()
    for g in grads[: 2 * len(feats0)]:
        assert g[[0, 2]].isfinite().all()


@pytest.mark.parametrize("layout", ("nchw", "channels_last", "planes"))
def test_more_than_2_31_elements_apart(backend, device, layout):
    """The second image, or the ninth plane, is 2^31 elements away; memory between is reserved and never touched."""
    if device != "cpu":
        pytest.skip("a GPU does not reserve memory lazily; see the expanded view below")
    n, c, h, w, gap = (1, 9, 2, 4, 2**31 // 8) if layout == "planes" else (2, 8, 5, 4, 2**31 + 64)
    strides = {"nchw": (gap, h * w, w, 1), "channels_last": (gap, 1, w * c, c), "planes": (0, gap, w, 1)}[layout]
    storage = torch.empty(2**31 + 64 + c * h * w, dtype=torch.float16)
    far = storage.as_strided((n, c, h, w), strides)
    gen = torch.Generator().manual_seed(0)
    far.copy_(torch.rand(n, c, h, w, generator=gen))
    near = torch.rand(n, c, h, w, generator=gen).half()
    check_against_oracle(backend, [far], [near], [torch.rand(c, generator=gen)])


def test_more_than_2_31_elements_expanded(backend, device):
    if backend == "reference" or on_cpu_for_gpu(backend, device):
        pytest.skip("would need the memory, or take minutes in the emulator and hours in Triton's interpreter")
    n, c, h, w = 1100, 64, 176, 176
    assert n * c * h * w > 2**31
    gen = torch.Generator().manual_seed(0)
    f0, f1 = (torch.rand(1, c, h, w, generator=gen).half().to(device) for _ in range(2))
    weight = torch.rand(c, generator=gen).to(device)
    out = functional.lpips_head([f0.expand(n, c, h, w)], [f1.expand(n, c, h, w)], [weight], backend=backend)
    expected = head_ref(HeadInput([f0.double()], [f1.double()], [weight.double()], Norm()))
    assert_close(out, expected.expand(n, 1), HEAD_VALUE_TOLERANCE[torch.float16], "value")


def test_gradcheck(backend, device):
    gen = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 2, 3), (2, 5, 1, 2))
    feats = [[torch.randn(s, generator=gen, dtype=torch.float64).to(device) for s in shapes] for _ in range(2)]
    weights = [torch.rand(s[1], generator=gen, dtype=torch.float64).to(device) for s in shapes]
    fast = on_cpu_for_gpu(backend, device)  # the whole Jacobians take a minute in the emulator, more in the interpreter
    leaves = [t.requires_grad_() for ts in (*feats, weights) for t in ts]
    for eps, inside in ((1e-10, False), (0.1, False), (0.1, True)):
        for maps in (False, True):

            def function(a0, a1, b0, b1, w0, w1, eps=eps, inside=inside, maps=maps):
                head = functional.lpips_head_maps if maps else functional.lpips_head
                out = head([a0, a1], [b0, b1], [w0, w1], eps=eps, eps_inside_sqrt=inside, backend=backend)
                return tuple(out) if maps else out

            assert torch.autograd.gradcheck(function, leaves, fast_mode=fast)
            assert torch.autograd.gradgradcheck(function, leaves, fast_mode=fast)


@pytest.mark.parametrize("net", ("odd", "alex"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(backend, device, layout, net):
    """The three operators pass torch's checks of schema, fakes (with their strides), dispatch and tracing."""
    if backend == "reference":
        pytest.skip("the reference is plain torch and has no operator")
    if on_cpu_for_gpu(backend, device) and net != "odd":
        pytest.skip("the odd shapes are enough on the CPU")
    feats0, feats1, weights = features(net, torch.float32, layout=layout, device=device)
    inputs = HeadInput(feats0, feats1, weights, Norm())
    operands, maps = inputs.operands(), head_maps_ref(inputs)
    lpips = torch.ops.lpips_fast
    torch.library.opcheck(getattr(lpips, f"head_fwd_{backend}"), operands)
    torch.library.opcheck(getattr(lpips, f"head_maps_fwd_{backend}"), operands)
    bwd = getattr(lpips, f"head_bwd_{backend}")
    torch.library.opcheck(bwd, (maps, *operands, False, True, True, True))
    torch.library.opcheck(bwd, ([head_ref(inputs)], *operands, True, True, False, True))


@pytest.mark.parametrize("maps", (False, True), ids=("mean", "maps"))
def test_compiled_in_one_graph(backend, device, maps, monkeypatch):
    """torch.compile takes the whole head, forward and backward, and the compiled backward calls the fused operator."""
    case = features("odd", torch.float32, device=device)
    eager = run(*case, maps, backend, 1e-10, False)
    torch._dynamo.reset()
    graphs = []

    def compiler(graph, example_inputs):
        graphs.append(graph)
        return graph

    name = "lpips_head_maps" if maps else "lpips_head"
    monkeypatch.setattr(
        functional,
        name,
        torch.compile(getattr(functional, name), fullgraph=True, backend=aot_autograd(fw_compiler=compiler)),
    )
    outs, grads = run(*case, maps, backend, 1e-10, False)
    for layer, (o, r) in enumerate(zip(outs, eager[0], strict=True)):
        assert_close(o, r, HEAD_VALUE_TOLERANCE[torch.float32], f"value {layer}")
    assert_gradients_close(grads, eager[1], len(case[0]), (True, True, True))
    forward, backward = (str(g.graph) for g in graphs)
    if backend != "reference":
        assert f"lpips_fast.head{'_maps' if maps else ''}_fwd_{backend}" in forward
        assert f"lpips_fast.head_bwd_{backend}" in backward
