"""LPIPS on the meta device, on GPUs, on streams and on several GPUs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lpips_fast
from tests.support.comparisons import assert_close, assert_value_and_gradient_close
from tests.support.gradients import value_and_gradient
from tests.support.images import pair
from tests.support.parameters import CUDA, TWO_GPUS
from tests.support.tolerances import LOW_PRECISION_TOLERANCE


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
            torch.cuda._sleep(10**8)  # work on another stream does not wait for this one, and sees zeros
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
            assert_close(value, expected, (0, LOW_PRECISION_TOLERANCE[torch.bfloat16]))
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
        """The first GPU stays the current one."""
        results = []
        for device in ("cuda:0", "cuda:1"):
            fn = make_ours("squeeze").to(device)
            results.append(value_and_gradient(fn, *(x.to(device) for x in pair(2, 40, 40))))
            assert results[-1][1].device == torch.device(device)
        assert_value_and_gradient_close(results[1], results[0])
