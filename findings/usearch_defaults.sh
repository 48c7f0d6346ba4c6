#!/usr/bin/env bash
# usearch 2.26.6: an index keeps float32 vectors as bfloat16 unless told otherwise, and results of several queries are
# filled up with key 0.
#
# - Index(ndim=..., metric="l2sq") chooses bfloat16 by itself for vectors that are added as float32. Eight bits are left of
#   each value, and distances that are small beside the vectors' lengths are wrong by tens of percent. Nothing warns;
#   index.dtype says BF16. With dtype="f32" they are right.
# - Where fewer vectors than asked for are found, the result of one query is shorter. For several queries at once the
#   matrix of keys is filled up with 0, which is a valid key, too, and that of distances with values that mean nothing (NaN
#   was seen). Only matches.counts tells how many of a row were found; matches[i] cuts the row.
#
# One would expect: vectors kept in the type in which they are given, and a key that cannot be mistaken for a result.
#
# The vectors are 50 near duplicates of one random vector of length 0.7, of 4096 values, at squared distances of about 1e-5.
# The error is the median, relative to float64.
#
# Output seen (Python 3.11, Linux x86-64); the script compares with these lines:
#
# | usearch 2.26.6
# | dtype not given: kept as BF16, accurate to 1e-4: False, off by more than 10 %: True
# | dtype='f32':     kept as F32,  accurate to 1e-4: True,  off by more than 10 %: False
# | three vectors with keys 7, 8 and 9, five neighbours
# |   one query:   keys [7, 9, 8]
# |   two queries: keys [[7, 9, 8, 0, 0], [8, 7, 9, 0, 0]], counts [3, 3]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet usearch==2.26.6 numkong==7.8.6 numpy==2.4.6

cd "$work"
venv/bin/python - >seen <<'PY'
import numpy as np
import usearch
from usearch.index import Index

N, D, K = 50, 4096, 5
rng = np.random.default_rng(0)
vector = rng.random(D, np.float32)
vector *= np.float32(0.7) / np.linalg.norm(vector)
vectors = vector + rng.standard_normal((N, D), np.float32) * np.float32((1e-5 / 2 / D) ** 0.5)

print("usearch", usearch.__version__)
for options, name in (({}, "dtype not given:"), ({"dtype": "f32"}, "dtype='f32':")):
    index = Index(ndim=D, metric="l2sq", **options)
    index.add(np.arange(N), vectors)
    errors = []
    for i in range(10):
        matches = index.search(vectors[i], K)
        others = matches.keys != i  # the query itself is at 0
        expected = np.square(vectors[matches.keys[others]] - vectors[i], dtype=np.float64).sum(axis=1)
        errors += (abs(matches.distances[others] - expected) / expected).tolist()
    error = np.median(errors)
    print(
        f"{name:16} kept as {index.dtype.name + ',':5} accurate to 1e-4: {str(error < 1e-4) + ',':6} "
        f"off by more than 10 %: {error > 0.1}"
    )

index = Index(ndim=D, metric="l2sq", dtype="f32")
index.add(np.array([7, 8, 9]), vectors[:3])
print("three vectors with keys 7, 8 and 9, five neighbours")
print("  one query:   keys", index.search(vectors[0], K).keys.tolist())
matches = index.search(vectors[:2], K)
print(f"  two queries: keys {matches.keys.tolist()}, counts {matches.counts.tolist()}")
PY
diff -u expected seen
echo "As described."
