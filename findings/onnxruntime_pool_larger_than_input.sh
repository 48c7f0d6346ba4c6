#!/usr/bin/env bash
# onnxruntime 1.31.1: a max pool whose window is larger than its input ends the process, where it follows a convolution.
#
# A model that takes any image size is given an image so small that a pool's input is smaller than its window. The CPU
# provider then does one of three things, depending on the pool and on what comes before it:
#
# - a pool of 3 x 3 alone gives a result of height 0;
# - after a convolution of 64 channels, which the optimizer lays out in blocks of channels, the process dies of SIGFPE,
#   a division by zero. There is no error to catch. It also ends a server and all its other requests;
# - with the graph optimizations off, the model gives a result of height 0 again.
#
# A convolution whose window is larger than its input is refused by an error that names both shapes, in every case.
#
# One would expect: the same error for a pool.
#
# Output seen (Python 3.11, Linux x86-64, CPU with AVX-512); the script compares with these lines:
#
# | onnxruntime 1.31.1
# | image 5 x 16, convolution, pool: (1, 64, 1, 6)
# | image 3 x 16, convolution, pool: killed by SIGFPE
# | image 3 x 16, convolution, pool, optimizations off: (1, 64, 0, 6)
# | image 1 x 16, pool: (1, 3, 0, 7)
# | image 2 x 16, convolution, pool: InvalidArgument
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6

cd "$work"
venv/bin/python - >seen <<'PY'
import multiprocessing
import signal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper


def model(convolution):
    pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [64, 3, 3, 3], np.ones(64 * 27))
    nodes = [helper.make_node("Conv", ["x", "weight"], ["features"], kernel_shape=[3, 3])] if convolution else []
    nodes.append(helper.make_node("MaxPool", ["features" if convolution else "x"], ["y"], **pool))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "height", "width"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "channels", "rows", "columns"])
    graph = helper.make_graph(nodes, "model", [x], [y], [weight] if convolution else [])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def run(convolution, height, optimize):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model(convolution), options, providers=["CPUExecutionProvider"])
    try:
        (y,) = session.run(None, {"x": np.ones((1, 3, height, 16), np.float32)})
        print(y.shape, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)


print("onnxruntime", onnxruntime.__version__, flush=True)
for height, convolution, optimize in ((5, True, True), (3, True, True), (3, True, False), (1, False, True), (2, True, True)):
    layers = "convolution, pool" if convolution else "pool"
    print(f"image {height} x 16, {layers}{'' if optimize else ', optimizations off'}: ", end="", flush=True)
    child = multiprocessing.get_context("fork").Process(target=run, args=(convolution, height, optimize))
    child.start()
    child.join()
    if child.exitcode < 0:
        print("killed by", signal.Signals(-child.exitcode).name, flush=True)
PY
diff -u expected seen
echo "As described."
