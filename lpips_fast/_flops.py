"""FLOPs of the operators, for torch.utils.flop_counter.

torch counts convolutions and matrix products alone, as their definitions have them: 2 cout cin kh kw a pixel of a
convolution's output. So do the formulas of the operators here, and the sum is that of `lpips` in plain torch:

  * A convolution by Winograd's algorithm counts as any other, though it does fewer multiplications: the count says what
    is computed and not how, and FLOPs a second of different algorithms can be compared.
  * The head counts as the 1x1 convolution by linear weights that `lpips` has in its place, of C channels to one.

torch.utils.flop_counter imports Triton where that is installed, which `import lpips_fast` does without. So this module
waits for others to import it, and adds the formulas right after: a FlopCounterMode has those that are there when it is
made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import torch

Formula = Callable[..., int]  # of an operator's arguments, a shape instead of each tensor

_COUNTER = "torch.utils.flop_counter"
_waiting: dict[str, Formula] = {}


def register(formulas: Mapping[str, Formula]) -> None:
    """Makes FLOP formulas known to torch, now or when its counter is imported.

    Args:
        formulas: from the names of operators in torch.ops.lpips_fast.
    """
    if _COUNTER in sys.modules:
        _add(sys.modules[_COUNTER], formulas)
    else:
        _waiting.update(formulas)


def _add(counter: ModuleType, formulas: Mapping[str, Formula]) -> None:
    for name, formula in formulas.items():
        counter.register_flop_formula(getattr(torch.ops.lpips_fast, name))(formula)


class _AtImport(MetaPathFinder):
    """Finds the counter where Python does, and adds the formulas at the end of its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == _COUNTER else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                _add(module, _waiting)

            spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _AtImport())
