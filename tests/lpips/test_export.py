"""torch.export, ONNX, OpenVINO and torch.jit.trace: graphs of torch's own operators."""

from __future__ import annotations

import copy
import operator
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.export.passes import move_to_device_pass
from torch.fx.experimental import _config

import lpips_fast
from tests.support.comparisons import assert_close, assert_value_and_gradient_close
from tests.support.gradients import value_and_gradient
from tests.support.images import MIN_SIZE, pair
from tests.support.instructions import set_instructions
from tests.support.parameters import CUDA, NETS
from tests.support.tolerances import VALUE_TOLERANCE


def value64(fn, *images):
    """The distances in float64, where plain torch computes them."""
    return copy.deepcopy(fn).double()(*(x.double() for x in images))


def operators(program):
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


ANY_BATCH = {name: {0: torch.export.Dim("n", min=1)} for name in ("in0", "in1")}


ANY_SIZE = {name: dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) for name in ("in0", "in1")}


class TestExport:
    @pytest.mark.parametrize("net,strict", (*((net, False) for net in NETS), ("alex", True)))
    def test_records_torchs_operators_alone(self, make_ours, net, strict):
        """The graph names no device, and takes any batch size and layout."""
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

    def test_records_the_type_of_precision(self, make_ours, monkeypatch):
        """This processor lacks instructions for it, but the program may run on another one."""
        set_instructions(monkeypatch, False)
        program = torch.export.export(make_ours("squeeze", precision="bfloat16"), pair(1, 40, 48))
        convolutions = [node for node in operators(program) if "conv2d" in str(node.target)]
        assert {node.meta["val"].dtype for node in convolutions} == {torch.bfloat16}

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
        """No option records other operators or a fixed batch size; the example is a channels-last pair."""
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
        """Also images higher than wide, though the example is wider than high."""
        fn = make_ours(net)
        program = torch.export.export(fn, pair(2, 64, 72), dynamic_shapes=ANY_SIZE)
        for size in ((3, 64, 72), (2, 81, 50), (4, 48, 81)):
            images = pair(*size)
            assert_close(program.module()(*images), value64(fn, *images), VALUE_TOLERANCE[torch.float32])

    @pytest.mark.skipif(torch.__version__ < (2, 14), reason="as above")
    @pytest.mark.parametrize("net", NETS)
    def test_down_to_the_smallest_size(self, make_ours, net):
        """Also one pair, with the setting that docs/training.md names; else torch excludes taps of one pixel."""
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
        """The sizes that docs/training.md names for an export without that setting."""
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
sys.modules["lpips_fast"] = None  # an import of it fails
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
        """An export before it changes nothing."""
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
        """By torch.export, and by torch.jit for any size; ONNX's reference evaluator computes the result."""
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
        """By torch.export, down to the smallest size."""
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
    """torch.jit.trace, before the module's first use."""

    @pytest.mark.parametrize("options", ({}, {"chunk_size": 1}, {"grad_in_forward": True}, {"spatial": True}), ids=str)
    @pytest.mark.parametrize("batches", ((2, 2), (1, 1), (2, 1)), ids=str)
    def test_takes_other_sizes(self, make_ours, options, batches):
        """Any batches, whichever had one image in the example, as with lpips; the number of chunks is not fixed."""
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
        """The error is torch's, because a trace has none of our checks."""
        traced = torch.jit.trace(make_ours(net), pair(2, 40, 40))
        with pytest.raises(RuntimeError, match=r"small|size"):
            traced(*pair(2, MIN_SIZE[net] - 1, 40))
