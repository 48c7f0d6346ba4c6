"""Values of LPIPS with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def value_and_gradient(fn, in0, in1):
    """The distances, and the gradient of their sum to in0."""
    in0 = in0.detach().requires_grad_()
    value = fn(in0, in1)
    (grad,) = torch.autograd.grad(value.sum(), in0)
    return value.detach(), grad


def gradients(fn, in0, in1, needs=(True, True), per_sample=None, **options):
    """Value and gradients of a loss that gives each pair another weight."""
    pair = [x.detach().clone().requires_grad_(need) for x, need in zip((in0, in1), needs)]
    value = fn(*pair, **options)
    factors = torch.linspace(0.5, 2, value.numel()).view_as(value) if per_sample is None else per_sample
    wanted = [x for x in pair if x.requires_grad]
    return value, torch.autograd.grad((value * factors).sum(), wanted)


def parts_and_gradients(
    module, in0: Tensor, in1: Tensor, **arguments
) -> tuple[Tensor, list[Tensor], tuple[Tensor, Tensor]]:
    """Value, parts by layer, and the gradients of a random combination of the values to both images."""
    in0, in1 = in0.detach().requires_grad_(), in1.detach().requires_grad_()
    value, parts = module(in0, in1, retPerLayer=True, **arguments)
    gen = torch.Generator().manual_seed(3)
    factors = torch.rand(value.shape, generator=gen, dtype=torch.float64).to(value)
    return value, parts, torch.autograd.grad((factors * value).sum(), (in0, in1))
