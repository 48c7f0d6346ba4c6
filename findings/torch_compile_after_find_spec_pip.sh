#!/usr/bin/env bash
# torch 2.14.1 with setuptools 84.2.1, Python 3.11: after importlib.util.find_spec("pip"), a mere look whether pip is
# there, torch.compile on the CPU fails.
#
# setuptools puts a finder into sys.meta_path of every process of its environment (distutils-precedence.pth), by which it
# takes the place of distutils. When a module named pip is looked for, the finder takes the process for pip's and steps
# back, for good. Later Inductor imports torch.utils.cpp_extension, and that imports setuptools. setuptools then finds the
# standard library's distutils, where it expects its own, and stops with an AssertionError. Python 3.12 has no distutils,
# and the finder does nothing there. importlib.metadata.distributions(name="pip") looks for pip, too, without this.
#
# One would expect: find_spec, which imports nothing, changes nothing that other packages rely on.
#
# Output seen (Python 3.11, Linux x86-64, CPU, with g++); the script compares with these lines:
#
# | torch 2.14.1, setuptools 84.2.1
# | looked for pip by nothing: compiled
# | looked for pip by importlib.metadata: compiled
# | looked for pip by find_spec: AssertionError in setuptools: True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python=$(command -v python3.11 || command -v python3.10 || command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info >= (3, 12) and "this needs a Python before 3.12")'
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 setuptools==84.2.1  # 5 GB

cd "$work"
cat >look.py <<'PY'
import importlib.metadata
import importlib.util
import sys
import traceback

import torch

if sys.argv[1] == "find_spec":
    importlib.util.find_spec("pip")
elif sys.argv[1] == "importlib.metadata":
    list(importlib.metadata.distributions(name="pip"))
try:
    torch.compile(lambda x: x.exp() + 1)(torch.rand(64))
    print(f"looked for pip by {sys.argv[1]}: compiled")
except Exception as error:
    told = "".join(traceback.format_exception(error))
    failed = "AssertionError" in told and "setuptools/__init__.py" in told
    print(f"looked for pip by {sys.argv[1]}: AssertionError in setuptools: {failed}")
PY
{
  venv/bin/python -c 'import setuptools, torch
print("torch", torch.__version__.partition("+")[0] + ", setuptools", setuptools.__version__)'
  for how in nothing importlib.metadata find_spec; do
    TORCHINDUCTOR_CACHE_DIR="$work/cache-$how" venv/bin/python -W ignore look.py "$how"
  done
} >seen 2>log
cat seen
diff expected seen
