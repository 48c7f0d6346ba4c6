#!/usr/bin/env bash
# triton 3.8.0: the wheel has CUDA's headers, but two of them cannot be included: cuda_fp16.h and cuda_bf16.h need
# nv/target, a header of the CUDA C++ core libraries, which the wheel does not have.
#
# The headers are there so that Triton can compile its launchers, which need cuda.h alone. That one works, and so do
# cuda_runtime_api.h and vector_types.h. With a file nv/target that defines the one macro they use
# from it, NV_IF_ELSE_TARGET, as its third argument, a C++ compiler takes the two others, too, for the host.
#
# One would expect: a header in a wheel comes with what it includes.
#
# Output seen (Linux x86-64, g++ 12); the script compares with these lines:
#
# | triton 3.8.0
# | cuda.h: compiles
# | cuda_runtime_api.h: compiles
# | vector_types.h: compiles
# | cuda_fp16.h: nv/target: No such file or directory
# | cuda_bf16.h: nv/target: No such file or directory
# | cuda_fp16.h with a macro in nv/target: compiles
# | cuda_bf16.h with a macro in nv/target: compiles
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet triton==3.8.0  # 200 MB

cd "$work"
headers=$(venv/bin/python -c 'import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia" / "include")')
mkdir -p with_macro/nv
echo '#define NV_IF_ELSE_TARGET(condition, device_code, ...) __VA_ARGS__' >with_macro/nv/target

# The first error of a file that only includes the header, or "compiles".
compiles() {
  local header=$1
  shift
  if echo "#include <$header>" | g++ -std=c++17 -fsyntax-only -x c++ -isystem "$headers" "$@" - 2>log; then
    echo compiles
  else
    grep -o 'nv/target: No such file or directory' log | head -n 1
  fi
}
{
  echo "triton $(venv/bin/pip show triton | sed -n 's/^Version: //p')"
  for header in cuda.h cuda_runtime_api.h vector_types.h cuda_fp16.h cuda_bf16.h; do
    echo "$header: $(compiles $header)"
  done
  for header in cuda_fp16.h cuda_bf16.h; do
    echo "$header with a macro in nv/target: $(compiles $header -isystem with_macro)"
  done
} >seen
cat seen
diff expected seen
