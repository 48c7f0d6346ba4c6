"""FLOPs of the operators, for torch.utils.flop_counter.

torch counts only convolutions and matrix products, and counts them by their definition: a convolution has
2 cout cin kh kw FLOPs a pixel of its output. The formulas of our operators do the same, so that the sum is the same as
for `lpips` in plain torch:

  * A convolution by Winograd's algorithm counts as any other convolution, although it does fewer multiplications. The
    count says what is computed and not how, so that FLOPs a second of different algorithms can be compared.
  * The head counts as the 1x1 convolution that applies the linear weights in `lpips`, from C channels to one.

torch.utils.flop_counter imports Triton where that is installed; `import lpips_fast` must not. This module therefore
waits until somebody else imports the counter, and adds the formulas right after. That is early enough: a
FlopCounterMode knows the formulas that exist when it is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import torch

Formula = Callable[..., int]  # takes an operator's arguments, with a shape in place of each tensor

_COUNTER = "torch.utils.flop_counter"
_waiting: dict[str, Formula] = {}


def register(formulas: Mapping[str, Formula]) -> None:
    """Makes FLOP formulas known to torch, now or when its counter is imported.

    Args:
        formulas: a formula for each name of an operator in torch.ops.lpips_fast.
    """
    if _COUNTER in sys.modules:
        _add(sys.modules[_COUNTER], formulas)
    else:
        _waiting.update(formulas)


def _add(counter: ModuleType, formulas: Mapping[str, Formula]) -> None:
    for name, formula in formulas.items():
        counter.register_flop_formula(getattr(torch.ops.lpips_fast, name))(formula)


class _AtImport(MetaPathFinder):
    """Finds the counter's module as Python would, and adds the formulas when its import ends."""

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
