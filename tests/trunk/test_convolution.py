"""Convolutions with TF32 or without: which argument CUDA's get, and that torch's flags are not touched."""

from __future__ import annotations

import copy
import operator
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_fast import pairwise
from lpips_fast.trunk import convolution
from lpips_fast.trunk.execute import layers_of, run, run_backward
from lpips_fast.trunk.program import Conv, Expand
from tests.support.comparisons import assert_close, assert_gradients_close
from tests.support.gradients import value_and_gradient
from tests.support.images import pair
from tests.support.parameters import CUDA, NETS
from tests.support.tolerances import REORDERED_TOLERANCE, ROUNDING_TOLERANCE, VALUE_TOLERANCE

GEOMETRIES = ((11, 4, 2, 47, 50), (5, 1, 2, 9, 8), (3, 2, 0, 17, 20), (3, 1, 1, 8, 9), (1, 1, 0, 5, 4))  # of the nets


FAKES = pytest.mark.skipif(torch.__version__ < (2, 14), reason="2.11 has no fake implementation of aten._convolution")
SETTERS = (
    "_set_fp32_precision_setter",
    "_set_cublas_allow_tf32",
    "_set_cudnn_allow_tf32",
    "_set_onednn_allow_tf32",
    "_set_float32_matmul_precision",
)


class Convolutions(TorchDispatchMode):
    """Lists the TF32 argument of each convolution, or 'flags' of one that follows them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._convolution.default:
            self.seen.append(args[12])
        elif func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            self.seen.append("flags")
        elif func is torch.ops.lpips_fast.conv_relu_cudnn.default:
            self.seen.append("flags")
        elif func is torch.ops.lpips_fast.first_conv_relu_triton.default:
            self.seen.append("flags" if args[7] is None else args[7])
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=("highest", "medium"))
def fixed_flags(request, monkeypatch):
    """With TF32 and bfloat16 in float32 products or without; whatever sets a flag of that kind is refused."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    with monkeypatch.context() as patch:
        for name in SETTERS:
            patch.delattr(torch._C, name)
        yield
    torch.set_float32_matmul_precision(before)


def on_fake_cuda(module):
    """A copy on a GPU that need not exist; its tensors have no values."""
    mode = FakeTensorMode()
    fake = copy.deepcopy(module).to("meta")
    for part in fake.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(FakeTensor(mode, p, torch.device("cuda:0")), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = FakeTensor(mode, buffer, torch.device("cuda:0"))
    return fake, mode


@pytest.mark.parametrize("tf32", (True, False))
@pytest.mark.parametrize("kernel,stride,padding,height,width", GEOMETRIES)
def test_argument_instead_of_flags_gives_the_same(monkeypatch, kernel, stride, padding, height, width, tf32):
    """On a CPU, which ignores the argument; forwards, and backwards as a transposed convolution."""
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    weight, bias = torch.randn(4, 3, kernel, kernel, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    y = F.conv2d(x, weight, bias, stride, padding)
    d_x = torch.nn.grad.conv2d_input(x.shape, weight, y, stride, padding)
    monkeypatch.setattr(convolution, "_follows_flags", lambda tf32, device: False)
    with Convolutions() as convolutions:
        torch.testing.assert_close(convolution.conv2d(x, weight, bias, stride, padding, tf32), y)
        torch.testing.assert_close(convolution.conv2d_input(x.shape, weight, y, stride, padding, tf32), d_x)
        with convolution.tf32_for_all(tf32, x.device):
            layer = nn.Conv2d(3, 4, kernel, stride, padding, dtype=torch.float64)
            layer(x.requires_grad_()).sum().backward()
    assert convolutions.seen == [tf32, tf32, tf32, "flags"]  # autograd's own backward has no such argument


def test_argument_is_not_lost_in_torch_compile(monkeypatch):
    """Inductor's convolution would lose it, so that this one breaks the graph."""
    monkeypatch.setattr(convolution, "_follows_flags", lambda tf32, device: False)
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda x: 2 * convolution.conv2d(x + 1, weight, None, 1, 1, False), backend=counter)
    assert torch.equal(compiled(x), 2 * F.conv2d(x + 1, weight, None, 1, 1))
    assert [node.target for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"] == [
        operator.add,
        operator.mul,
    ]


@FAKES
@pytest.mark.parametrize("allowed", (True, False))
@pytest.mark.parametrize("precision,tf32", (("inherit", "flags"), ("float32", False), ("tf32", True)))
@pytest.mark.parametrize("net", NETS)
def test_each_convolution_on_cuda_has_the_precisions_tf32(make_ours, monkeypatch, net, precision, tf32, allowed):
    """By an argument, or by the flag where that says the same."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    fn, mode = on_fake_cuda(make_ours(net, precision=precision))
    setting = fn.net.setting(torch.device("cuda"))
    count = sum({Conv: 1, Expand: 2}[type(step)] for step in layers_of(setting).steps(setting.plan))

    def check(seen):
        assert len(seen) == count
        for one in seen:
            assert (allowed if one == "flags" else one) == (allowed if tf32 == "flags" else tf32)

    with mode:
        in0, in1 = (torch.empty(2, 3, 64, 64, device="cuda") for _ in range(2))
        with Convolutions() as convolutions:
            fn(in0, in1)
        check(convolutions.seen)
        setting = fn.net.setting(in0.device)
        affine = fn.scaling_layer.shift, fn.scaling_layer.scale
        tensors = fn.net.tensors(setting, gradient=True)
        taps, signs = run(setting, [in0], affine, tensors, keep=True)
        with Convolutions() as convolutions:
            run_backward(setting, in0.shape[1:], affine, tensors, taps, signs, taps)
        check(convolutions.seen)
        fn.net.slice2[0] = nn.AvgPool2d(3, 2)  # so that the layers are called
        with Convolutions() as convolutions:
            fn(in0, in1)
        count = sum(isinstance(module, nn.Conv2d) for module in fn.net.modules())
        assert convolutions.seen == [tf32] * 2 * count + ["flags"] * fn.L  # the last are the linear layers


@FAKES
def test_products_of_pairwise_on_cuda_are_without_tf32(fixed_flags):
    """As convolutions where the flags allow it, for products have no such argument."""
    with FakeTensorMode(), Convolutions() as convolutions:
        e, f = torch.empty(3, 100, device="cuda"), torch.empty(4, 100, device="cuda")
        assert pairwise.product(e, f).shape == (3, 4)
    assert convolutions.seen == ([] if torch.get_float32_matmul_precision() == "highest" else [False])
    e, f = torch.randn(3, 100, dtype=torch.float64), torch.randn(4, 100, dtype=torch.float64)
    product = convolution._convolution(e[:, :, None, None], f[:, :, None, None], None, 1, 0, (0, 0), False, False)
    torch.testing.assert_close(product[:, :, 0, 0], e @ f.T)


@FAKES
@pytest.mark.parametrize("precision", ("inherit", "float32", "tf32"))
def test_no_call_sets_a_flag(make_ours, fixed_flags, precision):
    """They belong to the whole process. Two threads are at work at once."""
    fn, (in0, in1) = make_ours("alex", precision=precision), pair(3, 32, 32)
    expected, found = torch.cat([fn(in0, x[None]) for x in in1], dim=1)[:, :, 0, 0], []

    def work():
        fn(in0.clone().requires_grad_(), in1).sum().backward()
        found.append(fn.pairwise(in0, in1, block=2))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for distances in found:
        torch.testing.assert_close(distances, expected, rtol=REORDERED_TOLERANCE, atol=ROUNDING_TOLERANCE)
    fake, mode = on_fake_cuda(fn)
    with mode:
        fake(*(torch.empty(2, 3, 32, 32, device="cuda") for _ in range(2)))
        fake.net.slice2[0] = nn.AvgPool2d(3, 2)
        fake(*(torch.empty(2, 3, 32, 32, device="cuda") for _ in range(2)))


def test_the_flag_that_the_docs_advise_can_be_set():
    """With `cudnn.allow_tf32 = False`, as all tests have it, flags can be read, and the newer one says the same."""
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cudnn.conv.fp32_precision in ("none", "ieee")


@CUDA
@pytest.mark.parametrize("allowed", (True, False))
@pytest.mark.parametrize("grad_in_forward", (True, False))
def test_float32_on_a_gpu_whatever_the_flag(make_ours, monkeypatch, grad_in_forward, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    fn, images = make_ours("vgg", precision="float32", grad_in_forward=grad_in_forward).cuda(), pair(2, 32, 32)
    value, grad = value_and_gradient(make_ours("vgg").double(), *(x.double() for x in images))
    for autocast in (False, True):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            found, found_grad = value_and_gradient(fn, *(x.cuda() for x in images))
        assert_close(found, value, VALUE_TOLERANCE[torch.float32])
        assert_gradients_close([found_grad], [grad], torch.float32)
