#!/usr/bin/env bash
# stlpips_pytorch 0.0.2: LPIPS(), with the default arguments, looks for a weights file that is not in the package; and pip
# installs none of what the package imports.
#
# The default variant "" is the plain LPIPS, whose weights/v0.1/alex.pth the package lacks; only the weights of
# variant="shift_tolerant" with AlexNet and VGG16 are there. That variant is not a setting of LPIPS: it has another trunk,
# with blurs in it and its own weights, and gives another number.
#
# The package declares no requirements. It imports torch, torchvision, torchsummary and IPython, the last two for nothing that
# LPIPS does.
#
# One would expect: a default that works, and requirements that pip can install.
#
# Output seen (Python 3.11, Linux x86-64, CPU, torch 2.14.1); the script compares with these lines:
#
# | stlpips_pytorch 0.0.2, requirements: None
# | after pip install: No module named 'torch'
# | with torch, torchvision, numpy: No module named 'IPython'
# | with IPython: No module named 'torchsummary'
# | with torchsummary: imported
# | LPIPS(): FileNotFoundError weights/v0.1/alex.pth
# | LPIPS(variant="shift_tolerant"): made
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
python=$work/venv/bin/python
cd "$work"

import() {
    "$python" -W ignore - <<'PY'
try:
    from stlpips_pytorch import stlpips
except ImportError as error:
    print(error)
else:
    print("imported")
PY
}

{
    "$python" -m pip install --quiet stlpips_pytorch==0.0.2 >&2
    "$python" -c 'from importlib.metadata import *; print("stlpips_pytorch", version("stlpips_pytorch") + ", requirements:", requires("stlpips_pytorch"))'
    echo "after pip install: $(import)"
    "$python" -m pip install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 >&2  # 5 GB
    echo "with torch, torchvision, numpy: $(import)"
    "$python" -m pip install --quiet ipython==9.18.1 >&2
    echo "with IPython: $(import)"
    "$python" -m pip install --quiet torchsummary==1.5.1 >&2
    echo "with torchsummary: $(import)"
    "$python" -W ignore - <<'PY'
import torchvision

alexnet = torchvision.models.alexnet()
torchvision.models.alexnet = lambda **options: alexnet  # random; for pretrained weights it would be downloaded

from stlpips_pytorch import stlpips

for arguments in ({}, {"variant": "shift_tolerant"}):
    said = ", ".join(f'{name}="{value}"' for name, value in arguments.items())
    try:
        stlpips.LPIPS(verbose=False, **arguments)
        print(f"LPIPS({said}): made")
    except FileNotFoundError as error:
        print(f"LPIPS({said}): FileNotFoundError", error.filename.split("stlpips_pytorch/")[-1])
PY
} >seen
diff -u expected seen
echo "As described."
