#!/usr/bin/env bash
# pyiqa 0.1.16: LPIPS gives another number at each call once .train() was called on a module that holds it, as a metric, too;
# and as a loss it takes images in any range.
#
# The network of create_metric("lpips") is in evaluation mode at first. train() on a module that holds the metric, what each
# epoch of a training loop does, passes on to it, and its linear layers then apply dropout. The same pictures get another
# value each time, with as_loss=True and without. The metric itself says training=True from the start, so the flag shows
# nothing. eval() repairs it.
#
# The metric raises an error for images outside [0, 1]. With as_loss=True the range is not checked: images of 0 to 255 give a
# number, without an error or a warning.
#
# One would expect: a network that stays in evaluation mode, as the metric has nothing to train; and the error from the loss
# as well.
#
# The trunk's weights are stood in for by random ones, the linear ones are those of lpips 0.1.4, in place of the downloads.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines:
#
# | pyiqa 0.1.16, torch 2.14.1
# | loss, new: training True, different values in 20 calls: 1
# | loss, after train() of its holder: training True, different values in 20 calls: 20
# | loss, after eval(): training False, different values in 20 calls: 1
# | metric, new: training True, different values in 20 calls: 1
# | metric, after train() of its holder: training True, different values in 20 calls: 20
# | metric, after eval(): training False, different values in 20 calls: 1
# | metric of images of 0 to 255: AssertionError
# | loss of images of 0 to 255: a number
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyiqa==0.1.16 lpips==0.1.4 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6  # 7 GB

cd "$work"
export HOME="$work"
venv/bin/python -W ignore - >seen <<'PY'
import contextlib
import os
import shutil
import sys

import torch
import torchvision

torch.manual_seed(0)
alexnet = torchvision.models.alexnet()
torchvision.models.alexnet = lambda **options: alexnet

import lpips

linear = os.path.join(os.path.dirname(lpips.__file__), "weights", "v0.1", "alex.pth")
torch.hub.download_url_to_file = lambda url, path, *args, **options: shutil.copy(linear, path)

with contextlib.redirect_stdout(sys.stderr):
    import pyiqa

    metric = pyiqa.create_metric("lpips", device="cpu")
    loss = pyiqa.create_metric("lpips", device="cpu", as_loss=True)
pictures = torch.rand(2, 1, 3, 64, 64)


def show(name, when, module):
    values = {module(*pictures).item() for _ in range(20)}
    print(f"{name}, {when}: training {module.training}, different values in 20 calls: {len(values)}")


def of_bytes(module):
    try:
        module(*(255 * pictures))
        return "a number"
    except AssertionError as error:
        return type(error).__name__


print(f"pyiqa {pyiqa.__version__}, torch {torch.__version__.split('+')[0]}")
for name, module in (("loss", loss), ("metric", metric)):
    holder = torch.nn.ModuleList([module])
    show(name, "new", module)
    holder.train()
    show(name, "after train() of its holder", module)
    holder.eval()
    show(name, "after eval()", module)
print("metric of images of 0 to 255:", of_bytes(metric))
print("loss of images of 0 to 255:", of_bytes(loss))
PY
diff -u expected seen
echo "As described."
