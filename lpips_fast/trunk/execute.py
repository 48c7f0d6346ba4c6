"""Running a trunk forwards and backwards, keeping the least that the gradient to the image needs.

With frozen weights the gradient of y = relu(conv(x)) to x needs the weights and the sign of y, not x; a pool's needs
its input. Every pool's input is a tap, which the head keeps anyway. So what is kept is the taps, and one bit a value
for the other ReLUs' signs: for VGG16 33 MB an image of 256 x 256 in float32, where autograd keeps 95 MB.

`run` and `run_backward` are plain functions that need no autograd; `FrozenTrunk` makes one differentiable function of
them. A trunk that is not frozen goes through `run` alone, by torch's layers, which autograd differentiates.

A trunk is given as a `Setting` and its tensors, weight, bias, weight, bias, ..., in the setting's type and layout, as
`Trunk.tensors` has them. `affine` is what it does to images first: (x - shift) / scale, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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
from lpips_fast.head.operators import HeadInput
from lpips_fast.trunk import cpu_layers, gpu_layers, torch_layers
from lpips_fast.trunk.program import Affine, Conv, Expand, Plan, Pool, Setting


class Layers(Protocol):
    """What torch_layers.py, cpu_layers.py and gpu_layers.py have in common. Signs are laid out as in operators.py."""

    def steps(self, plan: Plan) -> Plan:
        """The plan with an `Expand` in one convolution, if these layers do it so."""

    def first_conv_relu(
        self,
        setting: Setting,
        tensors: Sequence[Tensor],
        conv: Conv,
        images: Sequence[Tensor],
        affine: Affine,
        keep_signs: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`conv_relu` of (x - shift) / scale, for one or two batches of images x, the second after the first."""

    def conv_relu(
        self, setting: Setting, tensors: Sequence[Tensor], conv: Conv, x: Tensor, keep_signs: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y = relu(conv(x)); the signs of y, if they are to be kept; and conv.pool of y, if that costs nothing here."""

    def max_pool(self, x: Tensor, pool: Pool) -> Tensor:
        """The maxima of the windows of x."""

    def conv_backward(
        self,
        setting: Setting,
        tensors: Sequence[Tensor],
        conv: Conv,
        grad: Tensor,
        *,
        size: tuple[int, int] | None = None,
        addend: Any = None,
        passes: Tensor | None = None,
    ) -> Tensor:
        """dL/dx of conv(x) from grad = dL/dconv(x), plus `addend`; and on through the ReLU that x came from.

        Args:
            size: height and width of x. Needed only for a trunk's first convolution, whose stride may not be 1.
            addend: another part of dL/dx: a tensor or, where x is a tap, what `head_gradients` has for it.
            passes: that ReLU's output, which is a tap, or its signs; None: there is no ReLU.
        """

    def tap_backward(self, tap: Tensor, d_tap: Any, grad: Tensor | None = None, pool: Pool | None = None) -> Tensor:
        """dL/d(the input of a tap's ReLU), from the head's part and that of the layers after the tap.

        Args:
            d_tap: what `head_gradients` has for the tap, or a tensor.
            grad: dL/d(the output of the pool after the tap).
            pool: that pool; without it there are no layers after the tap.
        """

    def head_gradients(
        self,
        backend: str,
        inputs: HeadInput,
        grads: Sequence[Tensor],
        *,
        mean: bool,
        need1: bool,
    ) -> Sequence[Any]:
        """dL/dtaps for `run_backward`, from the head's `grads`: tensors, or what `tap_backward` computes on its way.

        Args:
            backend, inputs, grads, mean: as in `head.autograd.head_backward`.
            need1: whether the taps are of both images, feats0 and then feats1, or of feats0 alone.
        """


_LAYERS: dict[str, Layers] = {"torch": torch_layers, "cpu": cpu_layers, "gpu": gpu_layers}


def layers_of(setting: Setting) -> Layers:
    return _LAYERS[setting.layers]


def run(
    setting: Setting, images: Sequence[Tensor], affine: Affine, tensors: Sequence[Tensor], keep: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The taps of images and, if asked to keep them, the signs that `run_backward` needs.

    `images` are one batch [N, 3, H, W], or two, the second of which follows on the first in what is returned.
    """
    layers = _LAYERS[setting.layers]
    taps: list[Tensor] = []
    signs: list[Tensor] = []
    with without_autocast(images[0].device):
        x = images[0]
        for step in layers.steps(setting.plan):
            keep_signs = keep and not step.tap
            pooled = None
            if isinstance(step, Expand):
                y1, signs1, _ = layers.conv_relu(setting, tensors, step.conv1x1, x, keep_signs)
                y3, signs3, _ = layers.conv_relu(setting, tensors, step.conv3x3, x, keep_signs)
                x = torch.cat((y1, y3), dim=1)
                step_signs = None if signs1 is None or signs3 is None else torch.cat((signs1, signs3), dim=-1)
            elif step.at == 0:
                x, step_signs, pooled = layers.first_conv_relu(setting, tensors, step, images, affine, keep_signs)
            else:
                x, step_signs, pooled = layers.conv_relu(setting, tensors, step, x, keep_signs)
            if step_signs is not None:
                signs.append(step_signs)
            if step.tap:
                taps.append(x)
            if step.pool is not None:
                x = layers.max_pool(x, step.pool) if pooled is None else pooled
    return taps, signs


def run_backward(
    setting: Setting,
    size: Sequence[int],
    affine: Affine,
    tensors: Sequence[Tensor],
    taps: Sequence[Tensor],
    signs: Sequence[Tensor],
    d_taps: Sequence[Any],
) -> Tensor:
    """dL/d(images of channels, height and width `size`) of `run`, from what it returned and dL/dtaps.

    dL/dtaps are tensors, or what `Layers.head_gradients` returned.
    """
    layers = _LAYERS[setting.layers]
    plan, taps, signs, d_taps = layers.steps(setting.plan), list(taps), list(signs), list(d_taps)
    _, height, width = size
    with without_autocast(taps[0].device):
        grad = layers.tap_backward(taps.pop(), d_taps.pop())
        for number in reversed(range(len(plan))):
            # Here grad is dL/d(the input of this step's ReLU); it becomes that of the step before.
            step, before = plan[number], plan[number - 1] if number else None
            if isinstance(step, Expand):
                c = tensors[step.conv1x1.at].shape[0]
                d_x = layers.conv_backward(setting, tensors, step.conv1x1, grad[:, :c])
                grad = layers.conv_backward(setting, tensors, step.conv3x3, grad[:, c:], addend=d_x, passes=signs.pop())
            elif before is None:
                grad = layers.conv_backward(setting, tensors, step, grad, size=(height, width))
            elif before.pool is not None:
                grad = layers.conv_backward(setting, tensors, step, grad)
                grad = layers.tap_backward(taps.pop(), d_taps.pop(), grad, before.pool)
            elif before.tap:
                grad = layers.conv_backward(setting, tensors, step, grad, addend=d_taps.pop(), passes=taps.pop())
            else:
                grad = layers.conv_backward(setting, tensors, step, grad, passes=signs.pop())
        scale = affine[1]
        return grad if scale is None else grad / scale


class FrozenTrunk(torch.autograd.Function):
    """The taps, then the signs, with `run_backward` as the derivative; nothing for the tensors.

    `apply` takes the setting; the tensors if they are CpuTensors, which keep filters, else None; the number of batches
    of images; shift and scale; the images; and the tensors, by themselves for autograd and torch.compile to see them.
    """

    @staticmethod
    @with_signature
    def forward(setting, cpu_tensors, n_batches, shift, scale, *rest):
        images, tensors = rest[:n_batches], cpu_tensors or rest[n_batches:]
        taps, signs = run(setting, images, (shift, scale), tensors, keep=True)
        if torch.compiler.is_compiling():
            # With torch 2.11 intermediates are outputs, too, and of a tensor with two names, y and y.relu_(), one of
            # them, an unused one, has all of its gradient. Inductor leaves these copies out.
            taps = [tap.clone() for tap in taps]
        return *taps, *signs

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.setting, ctx.cpu_tensors, n_batches, shift, scale, *rest = inputs
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
        images, tensors = [*ctx.images, *rest[: ctx.n_saved]], ctx.cpu_tensors or rest[ctx.n_saved :]
        like = [*ctx.like, *((image.shape, image.dtype) for image in rest[: ctx.n_saved])]
        (_, *size), _ = like[0]
        taps, signs = outputs[: setting.n_taps], outputs[setting.n_taps :]
        d_taps = grads[: setting.n_taps]
        differentiated = is_differentiated(*images, *d_taps)
        if differentiated or is_batched(*d_taps):
            setting = setting._replace(layers="torch")
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
        return None, None, None, None, None, *d_images, *(None for _ in rest[ctx.n_saved :])


def _versions(images: Sequence[Tensor]) -> list[int]:
    """How often each was changed in place."""
    return [0 if image.is_inference() else image._version for image in images]
