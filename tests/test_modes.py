"""The modes in which other people's code runs a module; in each the result is that of plain eager mode.

In test_module.py: torch.compile (default), deepcopy, pickle, state_dict, types, inference_mode, no_grad. In
test_training.py: autocast, GradScaler, DDP, activation checkpointing, torch.compile with the model around. Here: the
others. Those that need a GPU, or several, are skipped where there is none.
"""

from __future__ import annotations

import copy
import operator
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.export.passes import move_to_device_pass
from torch.fx.experimental import _config
from torch.fx.experimental.proxy_tensor import make_fx

import lpips_fast
from tests.support.comparisons import assert_close, assert_value_and_gradient_close
from tests.support.gradients import value_and_gradient
from tests.support.images import MIN_SIZE, noise, pair
from tests.support.parameters import CUDA, NETS, TWO_GPUS
from tests.support.tolerances import VALUE_TOLERANCE


@pytest.fixture(scope="module")
def module(make_ours):
    """Changed by no test."""
    return make_ours("squeeze")


@pytest.fixture(scope="module")
def expected(module):
    return value_and_gradient(module, *pair(2, 40, 40))


class TestCompile:
    @pytest.mark.parametrize("grad_in_forward", (False, True))
    def test_batch_sizes_share_a_graph(self, make_ours, grad_in_forward):
        """One for the first batch size, and one for all others."""
        module = make_ours("squeeze", grad_in_forward=grad_in_forward)
        from torch._dynamo.testing import CompileCounterWithBackend

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(module, fullgraph=True, backend=counter)
        for n in (2, 3, 5):
            in0, in1 = pair(n, 33, 33)
            assert_value_and_gradient_close(
                value_and_gradient(compiled, in0, in1), value_and_gradient(module, in0, in1)
            )
        assert counter.frame_count <= 2

    @pytest.mark.parametrize("no_grad", (False, True))
    def test_without_gradients(self, module, no_grad):
        """As a metric, in one graph."""
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        in0, in1 = pair(2, 33, 33)
        with torch.set_grad_enabled(not no_grad):
            assert_close(compiled(in0, in1), module(in0, in1).double(), VALUE_TOLERANCE[torch.float32])

    @CUDA
    @pytest.mark.parametrize("grad_in_forward", (False, True))
    def test_reduce_overhead(self, make_ours, grad_in_forward):
        fn = make_ours("squeeze", grad_in_forward=grad_in_forward).cuda()
        in0, in1 = (x.cuda() for x in pair(2, 40, 40))
        expected = value_and_gradient(fn, in0, in1)
        torch._dynamo.reset()
        compiled = torch.compile(fn, mode="reduce-overhead", fullgraph=True)
        for _ in range(4):  # warm up, record, replay
            assert_value_and_gradient_close(value_and_gradient(compiled, in0, in1), expected)


def value64(fn, *images):
    """The distances in float64, by plain torch."""
    return copy.deepcopy(fn).double()(*(x.double() for x in images))


def operators(program):
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


ANY_BATCH = {name: {0: torch.export.Dim("n", min=1)} for name in ("in0", "in1")}
ANY_SIZE = {name: dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) for name in ("in0", "in1")}


class TestExport:
    @pytest.mark.parametrize("net,strict", (*((net, False) for net in NETS), ("alex", True)))
    def test_records_torchs_operators_alone(self, make_ours, net, strict):
        """With no device in them; for any batch size and layout."""
        fn = make_ours(net)
        program = torch.export.export(fn, pair(2, 40, 48), dynamic_shapes=ANY_BATCH, strict=strict)
        for node in operators(program):
            assert node.target is operator.getitem or node.target.namespace == "aten", node.target
            assert "device" not in node.kwargs, node
        for n in (1, 3):
            images = pair(n, 40, 48)
            channels_last = [x.to(memory_format=torch.channels_last) for x in images]
            for given in (images, channels_last):
                assert_close(program.module()(*given), value64(fn, *images), VALUE_TOLERANCE[torch.float32])

    @pytest.mark.parametrize(
        "options",
        (
            {"spatial": True},
            {"lpips": False},
            {"chunk_size": 1},
            {"grad_in_forward": True},
            {"cpu_conv": "winograd"},
            {"eval_mode": False},
        ),
        ids=str,
    )
    def test_options(self, make_ours, options):
        """None of which records other operators, or one batch size alone; exported of a channels-last pair."""
        fn = make_ours("squeeze", **options).eval()
        images = [x.to(memory_format=torch.channels_last).requires_grad_() for x in pair(2, 40, 48)]
        program = torch.export.export(fn, tuple(images), dynamic_shapes=ANY_BATCH)
        assert {node.target.namespace for node in operators(program) if node.target is not operator.getitem} == {"aten"}
        images = pair(3, 40, 48)
        assert_close(program.module()(*images), value64(fn, *images), VALUE_TOLERANCE[torch.float32])

    def test_draft(self, module):
        program = torch.export.draft_export(module, pair(2, 40, 48))
        assert {node.target.namespace for node in operators(program) if node.target is not operator.getitem} == {"aten"}

    @pytest.mark.skipif(torch.__version__ < (2, 14), reason="2.11 fixes which sizes are odd at a pool")
    @pytest.mark.parametrize("net", ("alex", "squeeze"))
    def test_any_size(self, make_ours, net):
        """Higher than wide, too, where the example was not."""
        fn = make_ours(net)
        program = torch.export.export(fn, pair(2, 64, 72), dynamic_shapes=ANY_SIZE)
        for size in ((3, 64, 72), (2, 81, 50), (4, 48, 81)):
            images = pair(*size)
            assert_close(program.module()(*images), value64(fn, *images), VALUE_TOLERANCE[torch.float32])

    @pytest.mark.skipif(torch.__version__ < (2, 14), reason="as above")
    @pytest.mark.parametrize("net", NETS)
    def test_down_to_the_smallest_size(self, make_ours, net):
        """And to one pair, with the setting that the documents name; torch itself excludes taps of one pixel."""
        fn, smallest = make_ours(net), MIN_SIZE[net]
        with _config.patch(backed_size_oblivious=True):
            program = torch.export.export(fn, pair(2, 64, 72), dynamic_shapes=ANY_SIZE)
        for size in ((1, smallest, smallest), (3, smallest, 40), (2, 81, 50)):
            images = pair(*size)
            assert_close(program.module()(*images), value64(fn, *images), VALUE_TOLERANCE[torch.float32])
        with pytest.raises(AssertionError, match=f">= {smallest}"):
            program.module()(*pair(1, 40, smallest - 1))

    @pytest.mark.skipif(torch.__version__ < (2, 14), reason="as above")
    def test_smallest_sizes_of_the_documents(self, make_ours):
        """Without that setting, as docs/training.md has them."""
        for net, size in (("alex", 47), ("squeeze", 33), ("vgg", 32)):
            program = torch.export.export(make_ours(net), pair(2, 64, 72), dynamic_shapes=ANY_SIZE).module()
            assert program(*pair(2, size, 64)).shape == (2, 1, 1, 1)
            with pytest.raises(AssertionError, match="Guard failed"):
                program(*pair(2, size - 1, 64))

    def test_one_against_many(self, module):
        in0, in1 = pair(4, 40, 48)
        shapes = {"in0": {0: torch.export.Dim("n", min=2)}, "in1": None}
        program = torch.export.export(module, (in0[:2], in1[:1]), dynamic_shapes=shapes)
        assert_close(program.module()(in0, in1[:1]), value64(module, in0, in1[:1]), VALUE_TOLERANCE[torch.float32])

    def test_runs_where_the_package_is_not(self, module, tmp_path):
        program = torch.export.export(module, pair(2, 40, 48), dynamic_shapes=ANY_BATCH)
        torch.export.save(program, tmp_path / "lpips.pt2")
        images = pair(3, 40, 48)
        torch.save(images, tmp_path / "images.pt")
        script = """
import sys, torch
sys.modules["lpips_fast"] = None  # importing it fails
torch.save(torch.export.load("lpips.pt2").module()(*torch.load("images.pt")), "value.pt")
"""
        subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
        found = torch.load(tmp_path / "value.pt")
        assert_close(found, value64(module, *images), VALUE_TOLERANCE[torch.float32])

    @pytest.mark.parametrize("device", ("meta", pytest.param("cuda", marks=CUDA)))
    def test_moved_to_another_device(self, module, device):
        program = torch.export.export(module, pair(2, 40, 48), dynamic_shapes=ANY_BATCH)
        moved = move_to_device_pass(program, device)
        images = pair(3, 40, 48)
        found = moved.module()(*(x.to(device) for x in images))
        assert found.device.type == device
        if device != "meta":
            assert_close(found, value64(module, *images), VALUE_TOLERANCE[torch.float32])

    @pytest.mark.skipif(lpips_fast.backends()["cpu"] is not None, reason="needs the compiled library")
    def test_torch_compile_keeps_the_kernels(self, module):
        """Also after an export."""
        images = pair(2, 40, 48)
        torch.export.export(module, images)
        graphs = []
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(module, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)(*images)
        (graph,) = graphs
        assert torch.ops.lpips_fast.head_fwd_cpu in {node.target for node in graph.graph.nodes}

    @pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
    )
    @pytest.mark.parametrize("dynamo", (True, False))
    @pytest.mark.parametrize("spatial", (False, True))
    def test_onnx(self, make_ours, tmp_path, spatial, dynamo):
        """By torch.export, and by torch.jit for any size, too; computed by ONNX's own evaluator."""
        pytest.importorskip("onnxscript")
        evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
        fn = make_ours("squeeze", spatial=spatial)
        axes = {name: {0: "n", 2: "height", 3: "width"} for name in ("in0", "in1")}
        how = {"dynamic_shapes": ANY_BATCH} if dynamo else {"input_names": ["in0", "in1"], "dynamic_axes": axes}
        file = str(tmp_path / "lpips.onnx")
        torch.onnx.export(fn, pair(2, 40, 40), file, dynamo=dynamo, verbose=False, **how)
        images = pair(3, 40, 40) if dynamo else pair(3, 48, 33)
        given = {name: x.numpy() for name, x in zip(("in0", "in1"), images)}
        (found,) = evaluator(file).run(None, given)
        assert_close(torch.from_numpy(found), value64(fn, *images), VALUE_TOLERANCE[torch.float32])

    @pytest.mark.skipif(torch.__version__ < (2, 14), reason="2.11 fixes which sizes are odd at a pool")
    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
    def test_onnx_of_any_size(self, module, tmp_path):
        """By torch.export; down to the smallest."""
        pytest.importorskip("onnxscript")
        evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
        file = str(tmp_path / "lpips.onnx")
        with _config.patch(backed_size_oblivious=True):
            torch.onnx.export(module, pair(2, 64, 72), file, dynamo=True, verbose=False, dynamic_shapes=ANY_SIZE)
        for size in ((1, 17, 17), (3, 48, 33)):
            images = pair(*size)
            (found,) = evaluator(file).run(None, {name: x.numpy() for name, x in zip(("in0", "in1"), images)})
            assert_close(torch.from_numpy(found), value64(module, *images), VALUE_TOLERANCE[torch.float32])

    def test_openvino(self, module):
        openvino = pytest.importorskip("openvino")
        program = torch.export.export(module, pair(2, 40, 40), dynamic_shapes=ANY_BATCH)
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(openvino.convert_model(program), "CPU", exact)
        images = pair(3, 40, 40)
        found = torch.from_numpy(compiled([x.numpy() for x in images])[0])
        assert_close(found, value64(module, *images), VALUE_TOLERANCE[torch.float32])


class Weighted(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, in0, in1, weight):
        return self.fn(in0, in1, weight=weight)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit")
class TestTrace:
    """By torch.jit, before the module's first use."""

    @pytest.mark.parametrize("options", ({}, {"chunk_size": 1}, {"grad_in_forward": True}, {"spatial": True}), ids=str)
    @pytest.mark.parametrize("batches", ((2, 2), (1, 1), (2, 1)), ids=str)
    def test_takes_other_sizes(self, make_ours, options, batches):
        """Whichever batch was of 1, as with lpips; a chunk of pairs at a time would be recorded for so many."""
        fn = make_ours("squeeze", **options)
        traced = torch.jit.trace(fn, [x[:n] for x, n in zip(pair(2, 40, 40), batches)])
        for n0, n1 in ((3, 3), (1, 1), (3, 1), (1, 3)):
            in0, in1 = pair(3, 48, 33)
            assert_value_and_gradient_close(
                value_and_gradient(traced, in0[:n0], in1[:n1]), value_and_gradient(fn, in0[:n0], in1[:n1])
            )

    @pytest.mark.parametrize("n", (1, 2))
    def test_weight(self, make_ours, n):
        fn = Weighted(make_ours("squeeze"))
        traced = torch.jit.trace(fn, (*pair(n, 40, 40), torch.rand(n, 1, 40, 40)))
        for n0, n1 in ((3, 3), (1, 3), (3, 1)):
            in0, in1 = pair(3, 48, 33)
            given = in0[:n0], in1[:n1], torch.rand(3, 1, 48, 33)
            assert_close(traced(*given), fn(*given).double(), VALUE_TOLERANCE[torch.float32])

    @pytest.mark.parametrize("net", NETS)
    def test_an_image_too_small_is_an_error(self, make_ours, net):
        """torch's, for the trace has none of the checks."""
        traced = torch.jit.trace(make_ours(net), pair(2, 40, 40))
        with pytest.raises(RuntimeError, match=r"small|size"):
            traced(*pair(2, MIN_SIZE[net] - 1, 40))


class TestFunc:
    @pytest.fixture(params=("plain", "gradient in forward", "reference"))
    def transformed(self, request, make_ours):
        options = {"plain": {}, "gradient in forward": {"grad_in_forward": True}, "reference": {"backend": "reference"}}
        return make_ours("squeeze", **options[request.param]), *pair(2, 40, 40)

    def test_grad_and_vjp(self, transformed, expected):
        fn, in0, in1 = transformed
        value, vjp = torch.func.vjp(lambda x: fn(x, in1), in0)
        (grad,) = vjp(torch.ones_like(value))
        assert_value_and_gradient_close((value, grad), expected)
        assert_value_and_gradient_close((value, torch.func.grad(lambda x: fn(x, in1).sum())(in0)), expected)

    def test_functional_call(self, make_ours, expected):
        fn = make_ours("squeeze")
        doubled = {name: 2 * p for name, p in fn.named_parameters() if name.startswith("lin")}
        value = torch.func.functional_call(fn, doubled, pair(2, 40, 40))
        assert_close(value, 2 * expected[0].double(), VALUE_TOLERANCE[torch.float32])

    def test_vmap(self, transformed, expected):
        """Of pairs one by one, and of their gradients; one image for all."""
        fn, in0, in1 = transformed
        gradient = torch.func.vmap(torch.func.grad(lambda x, y: fn(x[None], y[None]).sum()))(in0, in1)
        value = torch.func.vmap(fn)(in0[:, None], in1[:, None])
        assert_value_and_gradient_close((value[:, 0], gradient), expected)
        value = torch.func.vmap(fn, (0, None))(in0[:, None], in1[:1])
        assert_close(value[:, 0], fn(in0, in1[:1]).double(), VALUE_TOLERANCE[torch.float32])
        x = in0.clone().requires_grad_()
        torch.func.vmap(fn)(x[:, None], in1[:, None]).sum().backward()
        assert_value_and_gradient_close((value, x.grad), (value, expected[1]))

    def test_forward_mode(self, transformed, expected):
        fn, in0, in1 = transformed
        direction = pair(2, 40, 40)[1] - 0.1
        wanted = (expected[1] * direction).double().sum(dim=(1, 2, 3))
        _, found = torch.func.jvp(lambda x: fn(x, in1).flatten(), (in0,), (direction,))
        assert_close(found, wanted, (1e-4, 0))
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(fn(forward_ad.make_dual(in0, direction), in1)).tangent
        assert_close(found.flatten(), wanted, (1e-4, 0))

    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of is_grads_batched
    def test_jacobian(self, transformed, expected):
        """Several gradients taken back at once: by vmap, and by autograd's own means."""
        fn, in0, in1 = transformed
        x = in0.clone().requires_grad_()
        (found,) = torch.autograd.grad(fn(x, in1).flatten(), x, torch.eye(2), is_grads_batched=True)
        for jacobian in (found, torch.func.jacrev(lambda x: fn(x, in1).flatten())(in0)):
            each = torch.stack((jacobian[0, 0], jacobian[1, 1]))
            assert_value_and_gradient_close((each, each), (expected[1], expected[1]))
            assert jacobian[0, 1].abs().max() == jacobian[1, 0].abs().max() == 0

    def test_hessian(self, make_ours):
        """Along a direction, forwards over backwards and twice backwards, against double backward."""
        fn = make_ours("squeeze", backend="auto").double()
        in0, in1 = pair(1, 24, 24, dtype=torch.float64)
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def along(t):
            return fn(in0 + t * (in1 - 0.1), in1).sum()

        (first,) = torch.autograd.grad(along(t), t, create_graph=True)
        (wanted,) = torch.autograd.grad(first, t)
        for transform in (torch.func.hessian(along), torch.func.jacrev(torch.func.jacrev(along))):
            torch.testing.assert_close(transform(t.detach()), wanted)


class TestDevices:
    def test_meta(self, module):
        fn = copy.deepcopy(module).to("meta")
        in0, in1 = (x.to("meta") for x in pair(2, 40, 40))
        value, grad = value_and_gradient(fn, in0, in1)
        assert value.device.type == grad.device.type == "meta"
        assert (value.shape, grad.shape) == ((2, 1, 1, 1), in0.shape)

    def test_made_on_meta_and_filled_later(self, module, expected):
        with torch.device("meta"):
            fn = lpips_fast.LPIPS(net="squeeze", pnet_rand=True)
        assert {t.device.type for t in (*fn.parameters(), *fn.buffers())} == {"meta"}
        fn.to_empty(device="cpu").load_state_dict(module.state_dict())
        assert_value_and_gradient_close(value_and_gradient(fn, *pair(2, 40, 40)), expected)

    @CUDA
    def test_made_on_a_gpu(self, trunk_states, expected):
        with torch.device("cuda"):
            fn = lpips_fast.LPIPS(net="squeeze", trunk_weights=trunk_states["squeeze"])
        assert {t.device.type for t in (*fn.parameters(), *fn.buffers())} == {"cuda"}
        assert_value_and_gradient_close(
            value_and_gradient(fn, *(x.cuda() for x in pair(2, 40, 40))), expected, factor=100
        )  # TF32

    @CUDA
    def test_stream_other_than_the_default(self, make_ours):
        fn = make_ours("squeeze").cuda()
        in0, in1 = (x.cuda() for x in pair(2, 40, 40))
        expected = value_and_gradient(fn, in0, in1)
        stream = torch.cuda.Stream()
        late0, late1 = torch.zeros_like(in0), torch.zeros_like(in1)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**8)  # work on another stream would not wait for it, and see zeros
            late0.copy_(in0)
            late1.copy_(in1)
            found = value_and_gradient(fn, late0, late1)
        stream.synchronize()
        assert_value_and_gradient_close(found, expected)

    @CUDA
    @pytest.mark.parametrize("grad_in_forward", (False, True))
    def test_autocast_and_grad_scaler_on_a_gpu(self, make_ours, grad_in_forward):
        fn = make_ours("squeeze", grad_in_forward=grad_in_forward).cuda()
        in0, in1 = (x.cuda() for x in pair(2, 40, 40))
        expected, expected_grad = value_and_gradient(fn, in0, in1)
        for dtype in (torch.float16, torch.bfloat16):
            pred = in0.clone().requires_grad_()
            optimizer, scaler = torch.optim.SGD([pred], lr=1.0), torch.amp.GradScaler("cuda", init_scale=2.0**12)
            with torch.autocast("cuda", dtype=dtype):
                value = fn(pred, in1)
            scaler.scale(value.sum()).backward()
            scaler.unscale_(optimizer)
            assert value.dtype == torch.float32
            assert_close(value, expected, (0, 0.05))
            assert nn.functional.cosine_similarity(pred.grad.flatten(), expected_grad.flatten(), dim=0) > 0.8

    @TWO_GPUS
    def test_data_parallel(self, make_ours):
        fn = make_ours("squeeze").cuda()
        in0, in1 = (x.cuda() for x in pair(3, 40, 40))
        assert_value_and_gradient_close(
            value_and_gradient(nn.DataParallel(fn, [0, 1]), in0, in1), value_and_gradient(fn, in0, in1)
        )

    @TWO_GPUS
    def test_second_gpu(self, make_ours):
        """While the first is the current one."""
        results = []
        for device in ("cuda:0", "cuda:1"):
            fn = make_ours("squeeze").to(device)
            results.append(value_and_gradient(fn, *(x.to(device) for x in pair(2, 40, 40))))
            assert results[-1][1].device == torch.device(device)
        assert_value_and_gradient_close(results[1], results[0])


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_deterministic_algorithms(make_ours, expected, grad_in_forward):
    torch.use_deterministic_algorithms(True)
    try:
        assert_value_and_gradient_close(
            value_and_gradient(make_ours("squeeze", grad_in_forward=grad_in_forward), *pair(2, 40, 40)), expected
        )
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_at_once(make_ours):
    """Each has the first use of the module, which keeps what it makes of its weights."""
    for _ in range(5):
        fn, barrier, found = make_ours("squeeze"), threading.Barrier(4), []

        def work(fn=fn, barrier=barrier, found=found):
            barrier.wait()
            found.append(value_and_gradient(fn, *pair(2, 40, 40)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


class Distances(torch.utils.data.Dataset):
    """Computes distances where the DataLoader calls for them."""

    def __init__(self, fn):
        self.fn = fn

    def __len__(self):
        return 2

    def __getitem__(self, i):
        in0, in1 = pair(2, 40, 40)
        with torch.no_grad():
            return self.fn(in0[i : i + 1], in1[i : i + 1]).squeeze(0), torch.utils.data.get_worker_info().id


@pytest.mark.parametrize("start", ("fork", "spawn"))
def test_shared_with_workers_of_a_dataloader(make_ours, expected, start):
    """After use in this process; spawned workers get the shared memory by its name."""
    fn = make_ours("squeeze").share_memory()
    assert all(p.is_shared() for p in fn.parameters())
    assert_value_and_gradient_close(value_and_gradient(fn, *pair(2, 40, 40)), expected)
    loader = torch.utils.data.DataLoader(Distances(fn), num_workers=2, multiprocessing_context=start)
    values, workers = zip(*loader)
    assert_close(torch.cat(values), expected[0].double(), VALUE_TOLERANCE[torch.float32])
    assert {worker.item() for worker in workers} == {0, 1}


def test_fork_after_import():
    """Importing starts no threads, so that a forked process can compute. (After a computation torch itself cannot.)"""
    script = """
import os, torch, lpips_fast
child = os.fork()
if child == 0:
    fn = lpips_fast.LPIPS(net="squeeze", pnet_rand=True)
    value = fn(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    os._exit(0 if value.isfinite().all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_fake_tensors_leave_nothing_behind(make_ours, net):
    """A real module called under FakeTensorMode, as tools that look at shapes do: later calls are real ones."""
    fn = make_ours(net)
    in0, in1 = noise(1)
    for _ in range(2):
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert isinstance(fn(in0, in1), FakeTensor)
            assert isinstance(fn(in0.requires_grad_(), in1), FakeTensor)
        value = fn(in0.detach(), in1)
        assert type(value) is torch.Tensor
        assert torch.equal(value, make_ours(net)(in0.detach(), in1))
        in0 = in0.detach()


def test_traced_by_make_fx(module):
    in0, in1 = noise(1)
    traced = make_fx(module)(in0, in1)
    assert torch.equal(traced(in0, in1), module(in0, in1))


class Loss(nn.Module):
    """A generator with its loss as a submodule, as training code has it."""

    def __init__(self, state):
        super().__init__()
        self.generator = nn.Conv2d(3, 3, 3, padding=1)
        self.perceptual_loss = lpips_fast.LPIPS(net="squeeze", pnet_rand=True)
        self.perceptual_loss.load_state_dict(state)

    def forward(self, x, target):
        return self.perceptual_loss(torch.tanh(self.generator(x)), target).mean()


def _fsdp_worker(rank, world, state, folder, dtype):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = Loss(state)
    mesh = torch.distributed.init_device_mesh("cpu", (world,))
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype))
    in0, in1 = noise(2)
    for _ in range(2):  # the parameters are gathered anew for each step
        model.zero_grad()
        model(in0[rank : rank + 1], in1[rank : rank + 1]).backward()
    grad = model.generator.weight.grad.full_tensor()
    if rank == 0:
        torch.save(grad, folder / "grad.pt")
    torch.distributed.barrier()  # none leaves while another still needs it
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype,tolerance", ((None, 1e-4), (torch.bfloat16, 0.02)), ids=str)
def test_fsdp2(module, tmp_path, dtype, tolerance):
    """Sharded with the model around it: the gradients are those of one process.

    In bfloat16 parameters and images are cast, and buffers are not.
    """
    state = module.state_dict()
    torch.manual_seed(0)
    model = Loss(state)
    if dtype is not None:
        for p in model.parameters():
            p.data = p.data.to(dtype)
    in0, in1 = (x.to(dtype or x.dtype) for x in noise(2))
    for i in range(2):  # the order of a convolution's sums depends on its batch
        (model(in0[i : i + 1], in1[i : i + 1]) / 2).backward()
    torch.multiprocessing.spawn(_fsdp_worker, (2, state, tmp_path, dtype), nprocs=2)
    found = torch.load(tmp_path / "grad.pt")
    assert (found - model.generator.weight.grad).norm() <= tolerance * found.norm()
