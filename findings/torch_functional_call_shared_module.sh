#!/usr/bin/env bash
# torch 2.14.1: torch.func.functional_call changes a module for good where a submodule is registered under two names.
#
# functional_call adds the value it is given under all names of the tensor, puts the values in one after the other, and
# notes what each replaced. Two names of one submodule are one place: the second note is the value that the first put in.
# So that value is what comes back at the end, and the parameter is lost. Afterwards
#
# - the module computes with the replacement, and an optimizer made before trains a parameter that is not in use;
# - what is left is a plain tensor. After torch.func.grad it is a dead wrapper of a transformation that has ended: to
#   print it, deepcopy the module or call .double() raises an error;
# - tie_weights=False changes nothing, as long as both names are given.
#
# Two names of one parameter in different modules, as tied embeddings have, are put back rightly.
#
# One would expect: the module as it was before the call. https://github.com/pytorch/pytorch/issues/164759 has a symptom.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines:
#
# | torch 2.14.1
# | one submodule under two names
# |   weight 2 -> call with 5 -> weight 5, a Parameter: False
# |   after torch.func.grad: deepcopy raises RuntimeError, double raises RuntimeError
# | both names given, tie_weights=False
# |   weight 2 -> call with 5 -> weight 5, a Parameter: False
# | one parameter in two submodules
# |   weight 2 -> call with 5 -> weight 2, a Parameter: True
# |   after torch.func.grad: deepcopy works, double works
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
import copy

import torch
from torch import nn
from torch.func import functional_call, grad


class Model(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = self.first if shared else nn.Linear(1, 1, bias=False)
        self.second.weight = self.first.weight
        nn.init.constant_(self.first.weight, 2)

    def forward(self, x):
        return self.first(x).sum()


def state(model):
    return f"weight {model.first.weight.item():g}"


def tried(function):
    try:
        function()
        return "works"
    except RuntimeError:
        return "raises RuntimeError"


def show(title, shared, names, **options):
    print(title)
    model, x, five = Model(shared), torch.ones(1, 1), torch.full((1, 1), 5.0)
    before = state(model)
    functional_call(model, dict.fromkeys(names, five), x, **options)
    print(f"  {before} -> call with 5 -> {state(model)}, a Parameter:", isinstance(model.first.weight, nn.Parameter))
    if options:
        return
    model = Model(shared)
    grad(lambda weight: functional_call(model, {"first.weight": weight}, x))(five)
    copied, doubled = tried(lambda: copy.deepcopy(model)), tried(lambda: model.double())
    print(f"  after torch.func.grad: deepcopy {copied}, double {doubled}")


print("torch", torch.__version__.split("+")[0])
show("one submodule under two names", True, ["first.weight"])
show("both names given, tie_weights=False", True, ["first.weight", "second.weight"], tie_weights=False)
show("one parameter in two submodules", False, ["first.weight"])
PY
diff -u expected seen
echo "As described."
