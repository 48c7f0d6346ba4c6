"""Chunks of pairs give the same numbers, and the trunk never has more images at once than a chunk has."""

from __future__ import annotations

import pytest
import torch

import lpips_fast.distance.grad_in_forward
import lpips_fast.trunk.execute
import lpips_fast.trunk.module
from lpips_fast.trunk.execute import run
from tests.support.gradients import gradients
from tests.support.images import noise
from tests.support.parameters import NETS
from tests.support.tolerances import REORDERED_MAPS_TOLERANCE


def take_pairs(monkeypatch, net, pairs, in0):
    """Makes the CPU take this number of pairs at a time."""
    stride = {"alex": 4, "squeeze": 2, "vgg": 1}[net]
    monkeypatch.setattr(lpips_fast.distance.chunks, "CPU_PIXELS", pairs * in0[0, 0].numel() // stride)


def seen_by_the_trunk(monkeypatch):
    """A list that gets the number of images of each pass through the trunk."""
    seen = []

    def spy(setting, images, *args, **options):
        seen.append(sum(map(len, images)))
        return run(setting, images, *args, **options)

    for module in (lpips_fast.distance.grad_in_forward, lpips_fast.trunk.execute, lpips_fast.trunk.module):
        monkeypatch.setattr(module, "run", spy)
    return seen


@pytest.mark.parametrize("net", NETS)
def test_chunked_equals_unchunked_to_the_bit(make_ours, net, monkeypatch):
    in0, in1 = noise(5)
    take_pairs(monkeypatch, net, 2, in0)
    whole = gradients(make_ours(net, grad_in_forward=True), in0, in1, (True, False))
    for chunk_size in (1, 3):
        parts = gradients(make_ours(net, grad_in_forward=True, chunk_size=chunk_size), in0, in1, (True, False))
        assert torch.equal(parts[0], whole[0])
        assert torch.equal(parts[1][0], whole[1][0])


@pytest.mark.parametrize("options", ({}, {"spatial": True}))
@pytest.mark.parametrize("batches", ((5, 5), (1, 5), (5, 1)))
def test_chunks_without_gradient(make_ours, options, batches):
    """Equal to rounding: the order of a direct convolution's sums depends on its batch."""
    in0, in1 = noise(5)
    in0, in1 = in0[: batches[0]], in1[: batches[1]]
    with torch.no_grad():
        whole, parts = make_ours("alex", **options)(in0, in1, retPerLayer=True)
        for chunk_size in (1, 2):
            chunked, chunked_parts = make_ours("alex", chunk_size=chunk_size, **options)(in0, in1, retPerLayer=True)
            torch.testing.assert_close(chunked, whole, **REORDERED_MAPS_TOLERANCE)
            for a, b in zip(parts, chunked_parts, strict=True):
                torch.testing.assert_close(a, b, **REORDERED_MAPS_TOLERANCE)


def test_a_chunk_at_a_time_goes_through_the_trunk(make_ours, monkeypatch):
    """This bounds the peak memory: the trunk never has more images at once than a chunk has, whatever the batch."""
    in0, in1 = noise(5)
    fn = make_ours("alex", grad_in_forward=True, chunk_size=2)
    seen = seen_by_the_trunk(monkeypatch)
    take_pairs(monkeypatch, "alex", 2, in0)
    gradients(fn, in0, in1, (True, False))
    with torch.no_grad():
        fn(in0, in1)
    assert seen == [4, 4, 2, 4, 4, 2]  # both images of two pairs


@pytest.mark.parametrize("net", ("alex", "vgg"))
@pytest.mark.parametrize("gradient", (False, True))
def test_the_cpu_takes_large_batches_in_parts(make_ours, net, gradient, monkeypatch):
    """LPIPS splits the batch by itself, into more parts the more values the net has for a pixel."""
    in0, in1 = noise(5)
    fn = make_ours(net)
    whole = fn(in0.requires_grad_(gradient), in1)
    seen = seen_by_the_trunk(monkeypatch)
    take_pairs(monkeypatch, net, 2, in0)
    torch.testing.assert_close(fn(in0, in1), whole, **REORDERED_MAPS_TOLERANCE)
    assert seen == [4, 4, 2]
