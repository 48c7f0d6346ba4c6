"""lpips and torchmetrics made to construct this package's modules, for code that cannot be edited."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

_replaced: set[type] = set()


class Patch:
    """What a call of `patch` replaced; leaving it as a context undoes it, too."""

    def __init__(self, undoings: list[Callable[[], None]]) -> None:
        self._undoings = undoings

    def undo(self) -> None:
        """Puts back what was there. Modules made in the meantime stay as they are; a second call does nothing."""
        while self._undoings:
            self._undoings.pop()()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def patch() -> Patch:
    """Makes `lpips.LPIPS(...)` give a `lpips_fast.LPIPS`, and torchmetrics' network a `lpips_fast.metric.Network`.

    For code that cannot be edited; in other code, import this package instead. It works whatever has imported these
    classes already, and by whichever name; their own subclasses, and what was made before, are left alone. The new
    objects are no instances of the classes they replace. In torchmetrics LPIPS and the perceptual path length use that
    network. A second call, before the first is undone, replaces nothing.

    Returns:
        An object whose `undo()` puts the originals back; or use it in `with lpips_fast.patch():`.

    Raises:
        ImportError: neither package is installed.
    """
    undoings = []
    if find_spec("lpips") is not None:
        import lpips

        from lpips_fast.lpips import LPIPS

        undoings.append(_construct_instead(lpips.LPIPS, LPIPS))
    if find_spec("torchmetrics") is not None:
        from torchmetrics.functional.image.lpips import _LPIPS, _NoTrainLpips

        from lpips_fast.metric import Network

        undoings += [_construct_instead(original, Network) for original in (_LPIPS, _NoTrainLpips)]
    if not undoings:
        raise ImportError("patch() replaces classes of lpips and torchmetrics, of which neither is installed")
    return Patch(undoings)


def _construct_instead(original: Any, replacement: Any) -> Callable[[], None]:
    """Makes `original(...)` give a `replacement`; returns what undoes it.

    The class stays and its `__init__` changes the class of the new object: so references to it that are out there, in
    other modules, registries or defaults, take part.
    """
    if original in _replaced:
        return lambda: None
    own, inherited = vars(original).get("__init__"), original.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is original:
            self.__class__ = replacement
            replacement.__init__(self, *args, **kwargs)
        else:
            inherited(self, *args, **kwargs)

    # Both packages look for their weights beside the file that `self.__init__` is in, which may be this one now.
    __init__.__code__ = __init__.__code__.replace(co_filename=inherited.__code__.co_filename)

    def undo() -> None:
        _replaced.remove(original)
        if own is None:
            del original.__init__
        else:
            original.__init__ = own

    original.__init__ = functools.wraps(inherited)(__init__)
    _replaced.add(original)
    return undo
