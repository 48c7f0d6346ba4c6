#!/usr/bin/env bash
# torch 2.14.1: after the new TF32 flag of convolutions is set, reading the old one raises an error, in others' code, too.
#
# torch.backends.cudnn.conv.fp32_precision = "ieee" is how the documentation says to switch TF32 off for convolutions. From
# then on
#
# - reading torch.backends.cudnn.allow_tf32 raises a RuntimeError. hasattr() and getattr() with a default raise it, too;
# - so does torch.backends.cudnn.flags(), which saves all flags, though its caller wants to set another one;
# - to set "rnn" to the same as "conv" does not help. To set the old flag to the same value first does;
# - torch.backends.fp32_precision = "tf32" does the same to cuda.matmul.allow_tf32 and
#   torch.get_float32_matmul_precision().
#
# A library that sets the new flag, or saves and restores it, thereby breaks code that only reads the old one. A value
# that was inherited cannot be restored at all: reading gives the parent's.
#
# One would expect: a reading that answers, or a warning. https://github.com/pytorch/pytorch/issues/179445 is closed; with
# 2.14 torch.backends.fp32_precision reaches convolutions, and reading still raises.
#
# Output seen (Python 3.11, Linux x86-64, CPU; no GPU is needed); the script compares with these lines:
#
# | torch 2.14.1
# | nothing set: cudnn.allow_tf32 True, cudnn.flags() works, cuda.matmul.allow_tf32 False, matmul precision highest
# | cudnn.conv.fp32_precision = 'ieee': cudnn.allow_tf32 RuntimeError, cudnn.flags() RuntimeError, cuda.matmul.allow_tf32 False, matmul precision highest
# | conv and rnn both 'ieee': cudnn.allow_tf32 RuntimeError, cudnn.flags() RuntimeError, cuda.matmul.allow_tf32 False, matmul precision highest
# | cudnn.allow_tf32 = False, then conv 'ieee': cudnn.allow_tf32 False, cudnn.flags() works, cuda.matmul.allow_tf32 False, matmul precision highest
# | fp32_precision = 'tf32': cudnn.allow_tf32 True, cudnn.flags() works, cuda.matmul.allow_tf32 RuntimeError, matmul precision RuntimeError
# | mkldnn.matmul inherits 'ieee', is set to what it reads as, parent set to 'tf32': mkldnn.matmul 'ieee'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6  # 5 GB

cd "$work"
cat >show.py <<'PY'
import sys

import torch

backends = torch.backends


def read(function):
    try:
        return function()
    except RuntimeError as error:
        return type(error).__name__


def flags():
    with backends.cudnn.flags(enabled=backends.cudnn.enabled):
        return "works"


title, code = sys.argv[1:]
exec(code)
if title.startswith("mkldnn"):
    print(f"{title}: mkldnn.matmul {backends.mkldnn.matmul.fp32_precision!r}")
else:
    print(
        f"{title}: cudnn.allow_tf32 {read(lambda: backends.cudnn.allow_tf32)}, cudnn.flags() {read(flags)}, "
        f"cuda.matmul.allow_tf32 {read(lambda: backends.cuda.matmul.allow_tf32)}, "
        f"matmul precision {read(torch.get_float32_matmul_precision)}"
    )
PY
show() { venv/bin/python -W ignore show.py "$1" "$2"; }
{
  venv/bin/python -c 'import torch; print("torch", torch.__version__.split("+")[0])'
  show "nothing set" ""
  show "cudnn.conv.fp32_precision = 'ieee'" "backends.cudnn.conv.fp32_precision = 'ieee'"
  show "conv and rnn both 'ieee'" "backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = 'ieee'"
  show "cudnn.allow_tf32 = False, then conv 'ieee'" \
    "backends.cudnn.allow_tf32 = False; backends.cudnn.conv.fp32_precision = 'ieee'"
  show "fp32_precision = 'tf32'" "backends.fp32_precision = 'tf32'"
  show "mkldnn.matmul inherits 'ieee', is set to what it reads as, parent set to 'tf32'" \
    "backends.fp32_precision = 'ieee'; m = backends.mkldnn.matmul; m.fp32_precision = m.fp32_precision; backends.fp32_precision = 'tf32'"
} >seen
diff -u expected seen
echo "As described."
