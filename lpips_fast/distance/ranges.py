"""A warning, once, if images are plainly outside the range that LPIPS expects.

The commonest mistake with LPIPS gives no error: images in [0, 1] or with values of 0 to 255 where [-1, 1] is meant. A
single batch in [0, 1] proves nothing, because bright images in [-1, 1] can have such values, too; many batches are
proof.

The check reads all images, so only the first calls make it. On a GPU the copy of the extremes to the host is queued
after the work, and a later call reads them once they have arrived. So nothing waits.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lpips_fast._torch_state import in_torch_func, plain_torch_only

CALLS = 64  # the calls that are checked
MANY = 32  # after so many calls with all values in [0, 1], the images are taken to be in [0, 1]
_FAR = 10.0  # decoders overshoot [-1, 1], but not this far
_BELOW = -0.5  # decoders undershoot [0, 1], but not this far
_INNER = ("lpips_fast.", "torch.", "torchmetrics.")  # the warning names the first line outside these modules

_Arriving = tuple[Tensor, torch.cuda.Event, bool]  # extremes on their way to the host; their arrival; `normalize`


@dataclass
class _Seen:
    """The extremes of the images of all calls so far."""

    calls: int = 0
    low: float = math.inf
    high: float = -math.inf


class RangeCheck:
    """Collects the extremes of the images and warns, once."""

    def __init__(self) -> None:
        self._calls = 0
        self._seen = {False: _Seen(), True: _Seen()}  # calls without and with `normalize`
        self._arriving: list[_Arriving] = []

    def look(self, images: Sequence[Tensor], normalize: bool) -> None:
        """Looks at the images of a call, which should be in [0, 1] with `normalize`, else in [-1, 1]."""
        if self._calls >= CALLS or not all(map(_can_be_read, images)):
            return
        self._calls += 1
        extremes = torch.stack([e.float() for image in images for e in image.detach().aminmax()])
        if not extremes.is_cuda:
            self._take(extremes, normalize)
            return
        arrived: list[_Arriving] = []
        waiting: list[_Arriving] = []
        for entry in self._arriving:
            (arrived if entry[1].query() else waiting).append(entry)
        self._arriving = waiting
        host = extremes.to("cpu", non_blocking=True)
        self._arriving.append((host, torch.cuda.current_stream(extremes.device).record_event(), normalize))
        for e, _, n in arrived:
            self._take(e, n)

    def _take(self, extremes: Tensor, normalize: bool) -> None:
        values = [value for value in extremes.tolist() if math.isfinite(value)]
        if not values:
            return
        seen = self._seen[bool(normalize)]
        seen.calls += 1
        seen.low, seen.high = min([seen.low, *values]), max([seen.high, *values])
        expected, from_bytes = ("[0, 1]", "x / 255") if normalize else ("[-1, 1]", "x / 127.5 - 1")
        found = f"from {seen.low:.3g} to {seen.high:.3g}"
        if max(abs(seen.low), abs(seen.high)) > _FAR:
            self._warn(f"images should be in {expected} and have values {found}; for 0 to 255: {from_bytes}")
        elif normalize and seen.low < _BELOW:
            self._warn(f"images should be in {expected} and have values {found}; for [-1, 1]: (x + 1) / 2")
        elif not normalize and seen.calls >= MANY and 0 <= seen.low and 0.5 < seen.high <= 1:
            self._warn(
                f"images should be in {expected}, and in {seen.calls} calls all values were {found}; for [0, 1] pass "
                "normalize=True"
            )

    def _warn(self, message: str) -> None:
        self._calls = CALLS
        self._arriving.clear()
        frame, level = sys._getframe(), 1
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_INNER):
            frame, level = frame.f_back, level + 1
        warnings.warn(f"LPIPS: {message}. check_range=False silences this.", stacklevel=level)  # the caller's line

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arriving": []}  # events cannot be copied


def _can_be_read(image: Tensor) -> bool:
    """Whether an image has values now and reading them disturbs nothing."""
    if not image.numel() or image.device.type not in ("cpu", "cuda") or type(image) not in (Tensor, torch.nn.Parameter):
        return False
    if in_torch_func() or plain_torch_only() or _get_current_dispatch_mode_stack():
        return False
    return not (image.is_cuda and torch.cuda.is_current_stream_capturing())
