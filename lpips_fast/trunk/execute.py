"""Running a frozen trunk forwards and backwards, keeping the least that the gradient to the image needs.

With frozen weights the gradient of y = relu(conv(x)) to x needs the weights and the sign of y, not x; a pool's needs
its input. Every pool's input is a tap, which the head keeps anyway. So what is kept is the taps, and one bit a value
for the other ReLUs' signs: for VGG16 33 MB an image of 256 x 256 in float32, where autograd keeps 95 MB.

`run` and `run_backward` are plain functions that need no autograd; `frozen_trunk` is a differentiable one around them.
A trunk is given as a `Setting`, which torch.compile takes for a constant, and its tensors, weight, bias, weight, bias,
..., in the setting's type and layout, as `Trunk.tensors` has them. `affine` is what it does to images first:
(x - shift) / scale, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lpips_fast._torch_state import (
    has_saved_tensor_hooks,
    in_torch_func,
    is_batched,
    is_differentiated,
    keeps_graph,
    with_signature,
    without_autocast,
)
from lpips_fast.trunk.gpu_layers import HeadGradient
from lpips_fast.trunk.program import Affine, Fire, Pool, Setting
from lpips_fast.trunk.torch_layers import conv_backward, conv_relu, first_conv_relu, max_pool, tap_backward


def run(
    setting: Setting, images: Sequence[Tensor], affine: Affine, tensors: Sequence[Tensor], keep: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The taps of images and, if asked to keep them, the signs that `run_backward` needs.

    `images` are one batch [N, 3, H, W], or two, the second of which follows on the first in what is returned.
    """
    taps: list[Tensor] = []
    signs: list[Tensor] = []
    with without_autocast(images[0].device):
        x = images[0]
        pooled = None  # what the next step, a pool, gives, where a convolution has done it on its way
        for number, step in enumerate(setting.plan):
            following = setting.plan[number + 1] if number + 1 < len(setting.plan) else None
            if isinstance(step, Pool):
                x = pooled if pooled is not None else max_pool(setting, x, step)
                continue
            if isinstance(step, Fire):
                s, s_signs, _ = conv_relu(setting, tensors, step.squeeze, x, keep)
                signs += s_signs
                y1, signs1, _ = conv_relu(setting, tensors, step.expand1x1, s, keep and not step.tap)
                y3, signs3, _ = conv_relu(setting, tensors, step.expand3x3, s, keep and not step.tap)
                x = torch.cat((y1, y3), dim=1)
                signs += [torch.cat(pair, dim=-1) for pair in zip(signs1, signs3, strict=True)]
            elif number == 0:
                x, signs, pooled = first_conv_relu(
                    setting, tensors, step, images, affine, keep and not step.tap, following
                )
            else:
                exact = not taps  # so that an image with a NaN has one in its first tap, and in its distance
                x, y_signs, pooled = conv_relu(
                    setting, tensors, step, x, keep and not step.tap, following=following, exact=exact
                )
                signs += y_signs
            if step.tap:
                taps.append(x)
    return taps, signs


def run_backward(
    setting: Setting,
    size: Sequence[int],
    affine: Affine,
    tensors: Sequence[Tensor],
    taps: Sequence[Tensor],
    signs: Sequence[Tensor],
    d_taps: Sequence[Tensor | HeadGradient],
) -> Tensor:
    """dL/d(images of channels, height and width `size`) of `run`, from what it returned and dL/dtaps."""
    scale = affine[1]
    plan, taps, signs, d_taps = setting.plan, list(taps), list(signs), list(d_taps)
    _, height, width = size
    with without_autocast(taps[0].device):
        # From here on grad is dL/d(what goes into the ReLU of the step at hand), or for a pool, dL/d(its output).
        grad = tap_backward(setting, taps.pop(), d_taps.pop())
        for number in reversed(range(len(plan))):
            step, before = plan[number], plan[number - 1] if number else None
            if isinstance(step, Pool):
                grad = tap_backward(setting, taps.pop(), d_taps.pop(), grad, step)
                continue
            if isinstance(step, Fire):
                c = tensors[step.expand1x1.at].shape[0]
                d_s = conv_backward(setting, tensors, step.expand1x1, grad[:, :c])
                d_s = conv_backward(setting, tensors, step.expand3x3, grad[:, c:], addend=d_s, passes=signs.pop())
                step, grad = step.squeeze, d_s
            if before is None:
                grad = conv_backward(setting, tensors, step, grad, size=(height, width))
            elif isinstance(before, Pool):
                grad = conv_backward(setting, tensors, step, grad)
            elif before.tap:
                grad = conv_backward(setting, tensors, step, grad, addend=d_taps.pop(), passes=taps.pop())
            else:
                grad = conv_backward(setting, tensors, step, grad, passes=signs.pop())
        return grad if scale is None else grad / scale


class _FrozenTrunk(torch.autograd.Function):
    """The taps, then the signs, with `run_backward` as the derivative; nothing for the tensors."""

    @staticmethod
    @with_signature
    def forward(setting, n_batches, shift, scale, *tensors):
        taps, signs = run(setting, tensors[:n_batches], (shift, scale), tensors[n_batches:], keep=True)
        if torch.compiler.is_compiling():
            # With torch 2.11 intermediates are outputs, too, and of a tensor with two names, y and y.relu_(), one of
            # them, an unused one, has all of its gradient. Inductor leaves these copies out.
            taps = [tap.clone() for tap in taps]
        return *taps, *signs

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.setting, n_batches, shift, scale, *rest = inputs
        images, tensors = rest[:n_batches], rest[n_batches:]
        ctx.n_outputs = len(output)
        ctx.mark_non_differentiable(*output[ctx.setting.n_taps :])
        # Only a double backward needs the images' values. To save them would make every backward an error once an image
        # is changed in place, say clamped for a log. torch.func and torch.compile know saved tensors only; and hooks on
        # saved tensors (activation checkpointing, offloading) are to have them, for which torch does not ask whether
        # they were changed.
        saves = in_torch_func() or torch.compiler.is_compiling() or has_saved_tensor_hooks()
        ctx.n_saved = n_batches if saves else 0
        ctx.images = images[ctx.n_saved :]
        ctx.versions = _versions(ctx.images)
        ctx.like = [(image.shape, image.dtype) for image in ctx.images]  # their memory may be gone by the backward
        ctx.save_for_backward(*output, shift, scale, *images[: ctx.n_saved], *tensors)

    @staticmethod
    def backward(ctx, *grads):
        setting = ctx.setting
        saved = ctx.saved_tensors  # once: activation checkpointing recomputes them at each look
        outputs, affine, rest = saved[: ctx.n_outputs], saved[ctx.n_outputs :][:2], saved[ctx.n_outputs + 2 :]
        images, tensors = [*ctx.images, *rest[: ctx.n_saved]], rest[ctx.n_saved :]
        like = [*ctx.like, *((image.shape, image.dtype) for image in rest[: ctx.n_saved])]
        (_, *size), _ = like[0]
        taps, signs = outputs[: setting.n_taps], outputs[setting.n_taps :]
        d_taps = grads[: setting.n_taps]
        differentiated = is_differentiated(*images, *d_taps)
        if differentiated or is_batched(*d_taps):
            setting = setting.plain()
        if differentiated:
            if ctx.versions != _versions(ctx.images):
                raise RuntimeError(
                    "an image was changed in place after LPIPS compared it, and to differentiate its gradient "
                    "(create_graph=True) it is needed as it was: change a copy"
                )
            taps, _ = run(setting, images, affine, tensors)
            wanted = [image for image in images if image.requires_grad]
            found = iter(torch.autograd.grad(taps, wanted, d_taps, create_graph=True))
            d_images = [next(found) if image.requires_grad else None for image in images]
        else:
            d_x = run_backward(setting, size, affine, tensors, taps, signs, d_taps)
            parts = d_x.split([shape[0] for shape, _ in like])
            d_images = [part.to(dtype) for part, (_, dtype) in zip(parts, like, strict=True)]
        if not keeps_graph():
            ctx.images = []  # given up with the saved tensors, though the graph may live on
        return None, None, None, None, *d_images, *(None for _ in tensors)


def _versions(images: Sequence[Tensor]) -> list[int]:
    """How often each was changed in place."""
    return [0 if image.is_inference() else image._version for image in images]


def needs_gradient(images: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(image.requires_grad for image in images)


def frozen_trunk(setting: Setting, images: Sequence[Tensor], affine: Affine, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The taps of one or two batches of images, differentiable in them; keeps little for that, and only if needed."""
    if needs_gradient(images):
        return list(_FrozenTrunk.apply(setting, len(images), *affine, *images, *tensors)[: setting.n_taps])
    return run(setting, images, affine, tensors)[0]
