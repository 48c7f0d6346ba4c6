"""A frozen trunk on the CPU in float32: one operator of the compiled library forwards, and one backwards.

This file says how each convolution is computed, in a program (operators.py), and makes its filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lpips_fast._library import is_implemented
from lpips_fast._torch_state import to_dtype, unobserved
from lpips_fast.trunk.cpu_filters import LARGE, PANEL, filters_of, panels, winograd_pays
from lpips_fast.trunk.operators import Algorithm, CpuConv
from lpips_fast.trunk.program import Affine, Conv, Expand, Setting, conv_side

CHOICES = ("auto", "winograd", "direct")  # of `LPIPS(cpu_conv=...)`
_MOST_PROGRAMS = 256  # that are kept for one trunk: for each number and size of images two


def available() -> bool:
    """Whether the compiled library is there and has these operators for this processor."""
    return is_implemented("trunk_fwd_cpu", "CPU")


class CpuTensors(list[Tensor]):
    """A trunk's tensors, weight, bias, weight, bias, ..., and the programs and filters that are made of them.

    The images' number and size decide which convolutions use Winograd's algorithm. So each filter is made at its first
    use, and kept. Programs are kept, too: a call looks one up.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__(tensors)
        self._programs: dict[tuple[object, ...], tuple[list[int], list[Tensor]]] = {}
        self._made: dict[tuple[object, ...], list[Tensor]] = {}

    def program(self, setting: Setting, gradient: bool, n: int, h: int, w: int) -> tuple[list[int], list[Tensor]]:
        """The program for n images of h x w, and its `filters`: those of the forward or of the gradient."""
        key = setting, gradient, n, h, w
        found = self._programs.get(key)
        if found is None:
            if len(self._programs) >= _MOST_PROGRAMS:
                self._programs.clear()
            # This call may be under inference_mode, the next may be a training step, which refuses inference tensors.
            with torch.inference_mode(False), torch.no_grad(), unobserved():
                convs = convolutions(setting, self, n, h, w)
                filters = [tensor for at, conv in convs for tensor in self._once(at, conv, gradient)]
            found = self._programs[key] = [int(value) for _, conv in convs for value in conv], filters
        return found

    def _once(self, at: int, conv: CpuConv, gradient: bool) -> list[Tensor]:
        """What an operator takes for the convolution with the weight number `at`: filters, and forwards the bias."""
        algorithm = conv.gradient if gradient else conv.algorithm
        if algorithm == Algorithm.TRANSPOSED:
            return self._once(at, conv, gradient=False)[:1]
        key = at, algorithm, gradient
        if key not in self._made:
            filters = filters_of(algorithm, self[at], conv.stride, turned=gradient)
            self._made[key] = [filters] if gradient else [filters, panels(self[at + 1]).flatten()]
        return self._made[key]


def convolutions(setting: Setting, tensors: Sequence[Tensor], n: int, h: int, w: int) -> list[tuple[int, CpuConv]]:
    """A plan's convolutions for n images of h x w, each after the number of its weight in `tensors`."""
    found: list[tuple[int, CpuConv]] = []
    for step in setting.plan:
        convs = (step.conv1x1, step.conv3x3) if isinstance(step, Expand) else (step,)
        y_h, y_w = (conv_side(side, convs[-1].kernel, convs[-1].stride, convs[-1].padding) for side in (h, w))
        for conv in convs:
            cout, cin = tensors[conv.at].shape[:2]
            algorithms = _algorithms(setting, conv, cin, cout, n, y_h, y_w)
            joined = conv is not convs[-1]
            ends = () if joined else (step.tap, *(step.pool or ()))
            row = CpuConv(*algorithms, cin, cout, conv.kernel, conv.stride, conv.padding, joined, *ends)
            found.append((conv.at, row))
        h, w = (y_h, y_w) if step.pool is None else map(step.pool.side, (y_h, y_w))
    return found


def _algorithms(setting: Setting, conv: Conv, cin: int, cout: int, n: int, h: int, w: int) -> tuple[int, int]:
    """How to compute a convolution with outputs of h x w, and the gradient to its input."""
    if conv.at == 0:
        if conv.stride > 1 and -(-conv.kernel // conv.stride) == 3:
            return Algorithm.PHASES, Algorithm.PHASES
        return Algorithm.FIRST, Algorithm.COLUMNS
    if conv.stride != 1 or (conv.kernel, conv.padding) not in ((3, 1), (5, 2)):
        return Algorithm.DIRECT, Algorithm.DIRECT
    pays = (setting.always_winograd or winograd_pays(n, *channels, h, w) for channels in ((cin, cout), (cout, cin)))
    forward, gradient = (Algorithm.WINOGRAD if it_does else Algorithm.DIRECT for it_does in pays)
    # A second set of filters would take as much memory as all activations of some images.
    large = conv.kernel == 3 and cin * cout >= LARGE and cin % PANEL == cout % PANEL == 0
    if large and forward == gradient == Algorithm.WINOGRAD:
        gradient = Algorithm.TRANSPOSED
    return forward, gradient


def run(
    setting: Setting, images: Sequence[Tensor], affine: Affine, tensors: CpuTensors, keep: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """`execute.run` by one operator."""
    images = [to_dtype(image, torch.float32) for image in images]
    _, _, h, w = images[0].shape
    program, filters = tensors.program(setting, False, sum(map(len, images)), h, w)
    shift, scale = affine
    outputs = torch.ops.lpips_fast.trunk_fwd_cpu(images, _flat(shift), _flat(scale), filters, program, keep)
    return outputs[: setting.n_taps], outputs[setting.n_taps :]


def run_backward(
    setting: Setting,
    size: Sequence[int],
    affine: Affine,
    tensors: CpuTensors,
    taps: Sequence[Tensor],
    signs: Sequence[Tensor],
    d_taps: Sequence[Tensor],
) -> Tensor:
    """`execute.run_backward` by one operator."""
    _, h, w = size
    program, filters = tensors.program(setting, True, len(taps[0]), h, w)
    return torch.ops.lpips_fast.trunk_bwd_cpu(taps, signs, d_taps, _flat(affine[1]), filters, program, h, w)


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.flatten()
