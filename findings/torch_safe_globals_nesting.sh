#!/usr/bin/env bash
# torch 2.14.1: leaving a torch.serialization.safe_globals block also takes away what others had added.
#
# torch.load reads a file with an argparse.Namespace (the usual way to keep a run's options) only after that class was added
# with add_safe_globals or for the length of a "with safe_globals([...])" block. The block adds its classes to one set of the
# process and at its end removes them from it, without asking whether they were there before. So a class is gone, and
# torch.load raises an UnpicklingError, after
#
# - add_safe_globals([cls]) at the start of a program, and later, say in a library, a block that names the same class;
# - a block inside a block: the rest of the outer one;
# - two threads that load files at the same time, each in a block of its own: the first to leave ends it for the other.
#
# One would expect: a block that at its end restores what held at its start, as blocks that set something usually do, and
# that does not end another thread's.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines:
#
# | torch 2.14.1
# | nothing added: UnpicklingError
# | add_safe_globals
# |   before a block: Namespace(rate=0.1)
# |   in the block: Namespace(rate=0.1)
# |   after the block: UnpicklingError
# | block in a block
# |   outer, before the inner: Namespace(rate=0.1)
# |   inner: Namespace(rate=0.1)
# |   outer, after the inner: UnpicklingError
# | two threads, each in its own block
# |   first, both in their blocks: Namespace(rate=0.1)
# |   first, after the second left its block: UnpicklingError
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
import argparse
import pickle
import threading

import torch
from torch.serialization import add_safe_globals, safe_globals

torch.save(argparse.Namespace(rate=0.1), "options.pt")


def load():
    try:
        return torch.load("options.pt", weights_only=True)
    except pickle.UnpicklingError as error:
        return type(error).__name__


print("torch", torch.__version__.split("+")[0])
print("nothing added:", load())

print("add_safe_globals")
add_safe_globals([argparse.Namespace])
print("  before a block:", load())
with safe_globals([argparse.Namespace]):
    print("  in the block:", load())
print("  after the block:", load())

print("block in a block")
with safe_globals([argparse.Namespace]):
    print("  outer, before the inner:", load())
    with safe_globals([argparse.Namespace]):
        print("  inner:", load())
    print("  outer, after the inner:", load())

print("two threads, each in its own block")
inside, leave = threading.Event(), threading.Event()


def second():
    with safe_globals([argparse.Namespace]):
        inside.set()
        leave.wait(60)


with safe_globals([argparse.Namespace]):
    thread = threading.Thread(target=second)
    thread.start()
    inside.wait(60)
    print("  first, both in their blocks:", load())
    leave.set()
    thread.join()
    print("  first, after the second left its block:", load())
PY
diff -u expected seen
echo "As described."
