#!/usr/bin/env bash
# torch 2.14.1 (and 2.11.0): torch.compile with Inductor fails at an operator whose only mutable argument is optional and
# not given, if the operator also returns a tensor.
#
# "Tensor(a!)? mask" is a usual way to write that an operator fills an output where it is asked for. Called with a tensor
# there, the operator compiles. Called with None, it changes nothing, and still is wrapped as one that changes its arguments.
# What comes out of the wrapper without anything changed is not taken apart again, and Inductor stops at a `getitem` that
# it does not know. Eager mode, the backend "eager" and the backend "aot_eager" run it, torch.library.opcheck accepts it.
#
# One would expect: the call with None to compile as that of an operator that changes nothing; or an error when the
# operator is registered. Another schema does: return the mask, too, empty where it is not asked for.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines:
#
# | torch 2.14.1
# | eager: with a mask True, without True
# | aot_eager: with a mask True, without True
# | inductor: with a mask True, without InductorError: AssertionError: <built-in function getitem> is not an OpOverload
# | opcheck without a mask: test_aot_dispatch_dynamic SUCCESS
# | inductor, both returned: with a mask True, without True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 setuptools  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen 2>log <<'PY'
import torch

library = torch.library.Library("demo", "DEF")
library.define("relu(Tensor x, Tensor(a!)? mask) -> Tensor")
library.define("relu_and_mask(Tensor x, bool masked) -> (Tensor, Tensor)")


def relu(x, mask):
    if mask is not None:
        mask.copy_(x > 0)
    return x.relu()


def relu_and_mask(x, masked):
    return x.relu(), (x > 0).to(x.dtype) if masked else x.new_empty(0)


library.impl("relu", relu, "CPU")
library.impl("relu_and_mask", relu_and_mask, "CPU")
torch.library.register_fake("demo::relu", lambda x, mask: torch.empty_like(x), lib=library)
torch.library.register_fake(
    "demo::relu_and_mask",
    lambda x, masked: (torch.empty_like(x), torch.empty_like(x) if masked else x.new_empty(0)),
    lib=library,
)
x = torch.tensor([-1.0, 2.0, -3.0, 4.0])


def with_argument(x, masked):
    mask = torch.zeros_like(x) if masked else None
    y = torch.ops.demo.relu(x, mask)
    return y + 1 if mask is None else y + mask


def with_result(x, masked):
    y, mask = torch.ops.demo.relu_and_mask(x, masked)
    return y + mask if masked else y + 1


def outcome(function, backend, masked):
    torch._dynamo.reset()
    try:
        compiled = torch.compile(function, backend=backend, fullgraph=True)
        return torch.equal(compiled(x, masked), function(x, masked))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


print("torch", torch.__version__.partition("+")[0])
for backend in ("eager", "aot_eager", "inductor"):
    found = [outcome(with_argument, backend, masked) for masked in (True, False)]
    print(f"{backend}: with a mask {found[0]}, without {found[1]}")
checks = torch.library.opcheck(torch.ops.demo.relu.default, (x, None))
print("opcheck without a mask: test_aot_dispatch_dynamic", checks["test_aot_dispatch_dynamic"])
found = [outcome(with_result, "inductor", masked) for masked in (True, False)]
print(f"inductor, both returned: with a mask {found[0]}, without {found[1]}")
PY
cat seen
diff expected seen
