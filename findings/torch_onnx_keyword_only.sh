#!/usr/bin/env bash
# torch 2.14.1: torch.onnx.export(..., dynamo=False) passes keyword-only arguments of forward by position.
#
# The exporter lays all parameters of forward that were given in kwargs=, or have a default, in a row and calls forward with
# this row by position. A parameter after the "*" cannot be given so:
#
# - forward(self, x, *, gain=None) cannot be exported at all, with gain in kwargs= or without. The error counts an argument
#   that the caller never gave.
# - forward(self, first, *others, gain=None) is exported wrong, without an error: gain arrives among the others, so the
#   graph adds it where the module multiplies by it.
#
# dynamo=True, the default, exports both rightly. dynamo=False warns that it is the legacy exporter, and says nothing of this.
#
# One would expect: keyword-only parameters passed by their names, as kwargs= promises; at least an error that says that they
# cannot be exported this way.
#
# Output seen (Python 3.11, Linux x86-64, CPU; onnx 1.23.2 runs the files); the script compares with these lines:
#
# | torch 2.14.1
# | forward(self, x, *, gain=None)
# |   torch: [5.0, 10.0]
# |   dynamo=False: TypeError: Plain.forward() takes 2 positional arguments but 3 were given
# |   dynamo=False, no kwargs: TypeError: Plain.forward() takes 2 positional arguments but 3 were given
# |   dynamo=True: Mul [5.0, 10.0]
# | forward(self, first, *others, gain=None)
# |   torch: [5.0, 10.0]
# |   dynamo=False: Add [6.0, 7.0]
# |   dynamo=True: Mul [5.0, 10.0]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
import onnx
import torch
from onnx.reference import ReferenceEvaluator


class Plain(torch.nn.Module):
    def forward(self, x, *, gain=None):
        return x if gain is None else x * gain


class Many(torch.nn.Module):
    def forward(self, first, *others, gain=None):
        total = first
        for other in others:
            total = total + other
        return total if gain is None else total * gain


x, gain = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0])


def export(module, dynamo, kwargs):
    try:
        torch.onnx.export(module, (x,), "model.onnx", kwargs=kwargs, dynamo=dynamo, verbose=False)
    except TypeError as error:
        return f"TypeError: {error}"
    model = onnx.load("model.onnx")
    names = [value.name for value in model.graph.input]
    (result,) = ReferenceEvaluator(model).run(None, dict(zip(names, (x.numpy(), gain.numpy()))))
    return " ".join(node.op_type for node in model.graph.node) + f" {result.tolist()}"


print("torch", torch.__version__.split("+")[0])
for module, signature in ((Plain(), "self, x, *, gain=None"), (Many(), "self, first, *others, gain=None")):
    print(f"forward({signature})")
    print("  torch:", module(x, gain=gain).tolist())
    print("  dynamo=False:", export(module, False, {"gain": gain}))
    if isinstance(module, Plain):
        print("  dynamo=False, no kwargs:", export(module, False, None))
    print("  dynamo=True:", export(module, True, {"gain": gain}))
PY
diff -u expected seen
echo "As described."
