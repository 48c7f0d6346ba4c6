#!/usr/bin/env bash
# torch 2.14.1: inside one torch.autocast block a module goes on computing with the weights of its first forward.
#
# autocast keeps the low-precision copy of each float32 weight that requires a gradient until the outermost block ends, and
# does not notice that the weight changed. So within one block
#
# - load_state_dict, or copying averaged weights in for an evaluation, has no effect on what the module computes;
# - optimizer steps change the weights and never the loss: training goes on in one direction and past the solution;
# - a second block inside the first does not help; cache_enabled=False does, and so does a block for each forward.
#
# No error and no warning. A weight with requires_grad=False is not kept, so the same code is right with a frozen module.
#
# One would expect: the result of the current weights, as without autocast. In-place changes are counted in the weight's
# version counter, by which autograd finds changes of this kind.
#
# Output seen (Python 3.11, Linux x86-64, CPU, bfloat16); the script compares with these lines:
#
# | torch 2.14.1
# | load_state_dict in the block: weight 1 -> 5, output 1 -> 1
# |   in a block inside that block: output 1
# |   after the block: output 5
# | load_state_dict in the block, requires_grad=False: weight 1 -> 5, output 1 -> 5
# | load_state_dict in the block, cache_enabled=False: weight 1 -> 5, output 1 -> 5
# | 6 steps towards weight 1, all in one block
# |   loss   1 1 1 1 1 1
# |   weight 0.25 0.5 0.75 1 1.25 1.5
# | 6 steps towards weight 1, a block for each
# |   loss   1 0.56 0.32 0.18 0.1 0.06
# |   weight 0.25 0.44 0.58 0.68 0.76 0.82
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
import contextlib

import torch

ONE = torch.ones(1, 1)


def autocast(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def module(weight, requires_grad=True):
    linear = torch.nn.Linear(1, 1, bias=False).requires_grad_(requires_grad)
    linear.load_state_dict({"weight": torch.full((1, 1), float(weight))})
    return linear


def load(title, linear, **options):
    with autocast(**options):
        before, first = linear.weight.item(), linear(ONE).item()
        linear.load_state_dict({"weight": torch.full((1, 1), 5.0)})
        after, second = linear.weight.item(), linear(ONE).item()
        print(f"load_state_dict in the block{title}: weight {before:g} -> {after:g}, output {first:g} -> {second:g}")
        if not title:
            with autocast():
                print(f"  in a block inside that block: output {linear(ONE).item():g}")
    if not title:
        with autocast():
            print(f"  after the block: output {linear(ONE).item():g}")


def train(title, around_all, around_each):
    linear = module(0)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.125)
    losses, weights = [], []
    with around_all():
        for _ in range(6):
            optimizer.zero_grad()
            with around_each():
                loss = (linear(ONE).float() - 1).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(f"{round(loss.item(), 2):g}")
            weights.append(f"{round(linear.weight.item(), 2):g}")
    print(f"6 steps towards weight 1, {title}")
    print("  loss  ", *losses)
    print("  weight", *weights)


print("torch", torch.__version__.split("+")[0])
load("", module(1))
load(", requires_grad=False", module(1, requires_grad=False))
load(", cache_enabled=False", module(1), cache_enabled=False)
train("all in one block", autocast, contextlib.nullcontext)
train("a block for each", contextlib.nullcontext, autocast)
PY
diff -u expected seen
echo "As described."
