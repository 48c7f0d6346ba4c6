"""Runs a trunk forwards and backwards, and keeps the least that the gradient to the images needs.

With frozen weights the gradient of y = relu(conv(x)) to x needs the weights and the sign of y, not x. The gradient of a
pool needs its input, which is always a tap, and the head keeps the taps anyway. So the forward keeps the taps, and one
bit for each value of the other ReLUs: for VGG16 33 MB an image of 256 x 256 in float32, where autograd keeps 95 MB.

`run` and `run_backward` are plain functions without autograd; `FrozenTrunk` makes one differentiable function of them.
A trunk that is not frozen goes through `run` alone, by torch's layers, which autograd differentiates. By the CPU's
layers each is one operator of all steps (cpu_trunk.py); the loops here are for the other layers.

Both take a trunk as a `Setting` and its tensors, weight, bias, weight, bias, ..., in the setting's type and layout, as
`Trunk.tensors` returns them. `affine` is the shift and scale of images x: the first convolution takes
(x - shift) / scale, or x where both are None.

If the taps have a type of their own (`Setting.taps_as`), both convert at their ends. So what is kept has that type.
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
    to_dtype,
    with_signature,
    without_autocast,
)
from lpips_fast.head.operators import HeadInput
from lpips_fast.trunk import cpu_trunk, gpu_layers, torch_layers
from lpips_fast.trunk.program import Affine, Conv, Expand, Plan, Pool, Setting


class Layers(Protocol):
    """The functions of torch_layers.py and gpu_layers.py. operators.py says how signs are laid out."""

    def steps(self, plan: Plan) -> Plan:
        """The plan's steps as these layers take them; the GPU's layers replace each `Expand` by one convolution."""

    def first_conv_relu(
        self,
        setting: Setting,
        tensors: Sequence[Tensor],
        conv: Conv,
        images: Sequence[Tensor],
        affine: Affine,
        keep_signs: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`conv_relu` of (x - shift) / scale of images x: one batch or two, the second after the first."""

    def conv_relu(
        self, setting: Setting, tensors: Sequence[Tensor], conv: Conv, x: Tensor, keep_signs: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y = relu(conv(x)); y's signs, if asked for; and conv.pool of y, if it comes with the convolution for free."""

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
        """dL/dx from grad = dL/dconv(x), plus `addend`; then taken back through the ReLU whose output is x.

        Args:
            size: height and width of x, for a trunk's first convolution; the others have stride 1 and need none.
            addend: another part of dL/dx: a tensor or, if x is a tap, its item of `head_gradients`.
            passes: the output of that ReLU, if it is a tap, else its signs; None if there is no ReLU.
        """

    def tap_backward(self, tap: Tensor, d_tap: Any, grad: Tensor | None = None, pool: Pool | None = None) -> Tensor:
        """dL/d(the input of a tap's ReLU), from the head's gradient and the gradient of the layers after the tap.

        Args:
            d_tap: the head's gradient at the tap: a tensor, or the tap's item of `head_gradients`.
            grad: dL/d(the output of the pool after the tap); None if there is no layer after the tap.
            pool: the pool after the tap, if there is one.
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
        """dL/dtaps for `run_backward`, from the head's `grads`: tensors, or data that `tap_backward` computes them
        from.

        Args:
            backend, inputs, grads, mean: as in `head.autograd.head_backward`.
            need1: whether the taps are of both images, feats0 and then feats1, or of feats0 alone.
        """


def layers_of(setting: Setting) -> Layers:
    """The file of layers that the setting names. cpu_trunk.py takes what torch_layers.py makes of the head."""
    return gpu_layers if setting.layers == "gpu" else torch_layers


def run(
    setting: Setting, images: Sequence[Tensor], affine: Affine, tensors: Sequence[Tensor], keep: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The taps of images and, with `keep`, the signs that `run_backward` needs.

    `images` are one batch [N, 3, H, W], or two, which go through as one, the second after the first.
    """
    if setting.taps_as is not None:
        computed, affine = _as_computed(setting, affine)
        computed_taps, their_signs = run(computed, images, affine, tensors, keep)
        return [tap.to(setting.taps_as) for tap in computed_taps], their_signs
    if setting.layers == "cpu":
        assert isinstance(tensors, cpu_trunk.CpuTensors)
        return cpu_trunk.run(setting, images, affine, tensors, keep)
    layers = layers_of(setting)
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
    """dL/dimages [N, *size] of `run`, from the taps and signs that it returned and `d_taps`.

    `d_taps` are dL/dtaps: tensors, or the items of `Layers.head_gradients`. `size` is (channels, height, width).
    """
    if setting.taps_as is not None:
        computed, affine = _as_computed(setting, affine)
        taps, d_taps = [t.to(computed.dtype) for t in taps], [d.to(computed.dtype) for d in d_taps]
        return run_backward(computed, size, affine, tensors, taps, signs, d_taps)
    if setting.layers == "cpu":
        assert isinstance(tensors, cpu_trunk.CpuTensors)
        return cpu_trunk.run_backward(setting, size, affine, tensors, taps, signs, d_taps)
    layers = layers_of(setting)
    plan, taps, signs, d_taps = layers.steps(setting.plan), list(taps), list(signs), list(d_taps)
    _, height, width = size
    with without_autocast(taps[0].device):
        grad = layers.tap_backward(taps.pop(), d_taps.pop())
        for number in reversed(range(len(plan))):
            # Here grad is dL/d(the input of this step's ReLU). The lines below make it the same for the step before.
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


def _as_computed(setting: Setting, affine: Affine) -> tuple[Setting, Affine]:
    """The setting whose taps have the type that is computed in, and shift and scale in that type."""
    shift, scale = affine
    if shift is not None and scale is not None:
        affine = to_dtype(shift, setting.dtype), to_dtype(scale, setting.dtype)
    return setting._replace(taps_as=None), affine


class FrozenTrunk(torch.autograd.Function):
    """The taps, then the signs, with `run_backward` as the derivative to the images; the tensors get no gradient.

    `apply` takes the setting; the tensors if they are `CpuTensors`, which keep filters, else None; the number of
    batches of images, and to how many of them, the first ones, the gradient goes; shift and scale; the images; and each
    tensor as an argument of its own, because autograd and torch.compile see no tensor in a list. If the gradient goes
    to the first of two batches, taps and signs are those of the first, and the taps of the second come after them.
    """

    @staticmethod
    @with_signature
    def forward(setting, cpu_tensors, n_batches, n_differentiable, shift, scale, *rest):
        images, tensors = rest[:n_batches], cpu_tensors or rest[n_batches:]
        taps, signs = run(setting, images, (shift, scale), tensors, keep=True)
        others: list[Tensor] = []
        if n_differentiable < n_batches:
            n = images[0].shape[0]
            # The head keeps the taps of both. Of the signs, a copy keeps those of the first alone.
            taps, signs, others = [t[:n] for t in taps], [t[:n].clone() for t in signs], [t[n:] for t in taps]
        if torch.compiler.is_compiling():
            # With torch 2.11 intermediate tensors become outputs, too. If a tensor has two names, y and y.relu_(), an
            # unused one of them gets all of its gradient. Inductor leaves these copies out.
            taps = [tap.clone() for tap in taps]
        return *taps, *signs, *others

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.setting, ctx.cpu_tensors, n_batches, n_differentiable, shift, scale, *rest = inputs
        images, tensors = rest[:n_differentiable], rest[n_batches:]
        ctx.n_others = n_batches - n_differentiable
        kept = output[: len(output) - ctx.n_others * ctx.setting.n_taps]
        ctx.n_kept = len(kept)
        ctx.mark_non_differentiable(*output[ctx.setting.n_taps :])
        ctx.set_materialize_grads(False)  # else autograd makes zeros for the signs and for the other image's taps
        # Only a double backward needs the images' values. Once a saved tensor is changed in place, every backward is an
        # error, and callers do change images: they clamp them for a log, for example. So images are saved only for
        # torch.func and torch.compile, which know no other way, and for hooks on saved tensors (activation
        # checkpointing, offloading), which must get the images. With hooks torch does not check for changes.
        saves = in_torch_func() or torch.compiler.is_compiling() or has_saved_tensor_hooks()
        ctx.n_saved = len(images) if saves else 0
        ctx.images = images[ctx.n_saved :]
        ctx.versions = _versions(ctx.images)
        # A caller may free the images' memory before the backward.
        ctx.like = [(image.shape, image.dtype) for image in ctx.images]
        ctx.save_for_backward(*kept, shift, scale, *images[: ctx.n_saved], *tensors)

    @staticmethod
    def backward(ctx, *grads):
        setting = ctx.setting
        saved = ctx.saved_tensors  # read once: activation checkpointing recomputes them at each access
        outputs, affine, rest = saved[: ctx.n_kept], saved[ctx.n_kept :][:2], saved[ctx.n_kept + 2 :]
        images, tensors = [*ctx.images, *rest[: ctx.n_saved]], ctx.cpu_tensors or rest[ctx.n_saved :]
        like = [*ctx.like, *((image.shape, image.dtype) for image in rest[: ctx.n_saved])]
        (_, *size), _ = like[0]
        n_taps = setting.n_taps
        taps, signs = outputs[:n_taps], outputs[n_taps:]
        d_taps = [torch.zeros_like(tap) if d is None else d for tap, d in zip(taps, grads[:n_taps], strict=True)]
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
            ctx.images = []  # torch frees the saved tensors now, too, though the graph may live on
        others = [None] * (ctx.n_others + len(rest) - ctx.n_saved)
        return None, None, None, None, None, None, *d_images, *others


def _versions(images: Sequence[Tensor]) -> list[int]:
    """How often each image was changed in place."""
    return [0 if image.is_inference() else image._version for image in images]
