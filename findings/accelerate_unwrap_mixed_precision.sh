#!/usr/bin/env bash
# accelerate 1.15.0: unwrap_model(model, keep_fp32_wrapper=False) ends mixed precision for the rest of the training, and
# preparing the model again does not bring it back.
#
# Without several processes prepare() returns the very module it was given, with a forward that runs in autocast, and
# unwrap_model() returns that module again. With keep_fp32_wrapper=False, the way to get the plain module for saving or for
# an evaluation in float32, it takes the wrapper off that one module, so the prepared model in the training loop loses it
# as well. The steps that follow run in float32, without an error or a warning. A second prepare() does nothing, since the
# module is still marked as prepared. accelerator.mixed_precision says "bf16" all the time.
#
# One would expect: the prepared model unchanged by a call that returns something "useful before saving the model" (its
# documentation); or else prepare() putting the wrapper on again.
#
# Output seen (Python 3.11, Linux x86-64, CPU, torch 2.14.1); the script compares with these lines, which say in which type
# the layer inside computed in a training step of the prepared model:
#
# | accelerate 1.15.0, torch 2.14.1
# | prepared: torch.bfloat16
# | after unwrap_model(model): torch.bfloat16
# | after unwrap_model(model, keep_fp32_wrapper=False): torch.float32
# | after a second prepare(model): torch.float32
# | accelerator.mixed_precision: bf16
# | prepare(model), unwrap_model(model) and the module are one object: True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet accelerate==1.15.0 torch==2.14.1 numpy==2.4.6  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
import accelerate
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        y = self.layer(x)
        self.computed_in = y.dtype
        return y


accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
module = Model()
model, optimizer = accelerator.prepare(module, torch.optim.SGD(module.parameters(), lr=0.01))


def step():
    accelerator.backward(model(torch.ones(2, 4)).square().sum())
    optimizer.step()
    optimizer.zero_grad()
    return module.computed_in


print(f"accelerate {accelerate.__version__}, torch {torch.__version__.split('+')[0]}")
print("prepared:", step())
unwrapped = accelerator.unwrap_model(model)
print("after unwrap_model(model):", step())
accelerator.unwrap_model(model, keep_fp32_wrapper=False)
print("after unwrap_model(model, keep_fp32_wrapper=False):", step())
model = accelerator.prepare(model)
print("after a second prepare(model):", step())
print("accelerator.mixed_precision:", accelerator.mixed_precision)
print("prepare(model), unwrap_model(model) and the module are one object:", model is unwrapped is module)
PY
diff -u expected seen
echo "As described."
