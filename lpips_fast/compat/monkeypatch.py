"""Makes lpips and torchmetrics construct this package's modules, for code that cannot be edited."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

_replaced: set[type] = set()


class Patch:
    """The replacements that a call of `patch` made; `undo()` or leaving the `with` block undoes them."""

    def __init__(self, undoings: list[Callable[[], None]]) -> None:
        self._undoings = undoings

    def undo(self) -> None:
        """Puts the originals back. Modules made in the meantime stay as they are. A second call does nothing."""
        while self._undoings:
            self._undoings.pop()()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def patch() -> Patch:
    """Makes `lpips.LPIPS(...)` a `lpips_fast.LPIPS`, and the network of torchmetrics a `lpips_fast.metric.Network`.

    Use it for code that cannot be edited; in other code, import this package instead. It also affects code that has
    imported these classes already, under any name. Subclasses and objects made before stay as they are. New objects are
    no instances of the classes they replace. In torchmetrics, LPIPS and the perceptual path length use that network. A
    second call, before the first is undone, replaces nothing.

    Returns:
        An object whose `undo()` puts the originals back; so does the end of a block `with lpips_fast.patch():`.

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
    """Makes `original(...)` return a `replacement`; returns a function that undoes this.

    The class stays, and its new `__init__` changes the class of the new object. So all references to the class have the
    same effect, in other modules, registries or defaults.
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

    # Both packages look for their weights beside the file of `self.__init__`, which would be this file.
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
