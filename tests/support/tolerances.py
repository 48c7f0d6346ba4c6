"""THE table of tolerances: every number that a test allows a result to be off by, and the reason for it.

The form says how the tolerance is measured.

- A pair (atol, rtol) is for `comparisons.assert_close`: |found - expected| <= atol * unit + rtol |expected| everywhere,
  where the unit is the largest |expected|, except for the head's values (1) and gradients (the largest of all layers).
- A dict is for `torch.testing.assert_close`: |found - expected| <= atol + rtol |expected| everywhere.
- A number is relative: to a norm, or to the expected number (`pytest.approx`).

A tolerance is not loosened to make a test pass.
"""

from __future__ import annotations

import torch

# --- LPIPS and the head against an oracle in float64, by the type of images or features ---

# LPIPS against lpips 0.1.4. lpips itself in float32 is off by up to 4e-6 of the largest value of VGG's maps.
VALUE_TOLERANCE = {torch.float64: (1e-12, 1e-11), torch.float32: (1e-5, 1e-5)}

# The norm of the error of an image's gradient, relative to the gradient's norm. Where a ReLU or a pool is within
# rounding of a tie, float32 may decide otherwise, and the gradient jumps: by 3% for one of the 1024 values of a 1 x 2
# tap. lpips in float32 jumps, too. So up to half of the images may be off by such a jump, up to JUMP_TOLERANCE; an
# error in a formula puts off every image. In float64 no tie is that close, and every image must be within rounding.
GRAD_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
JUMP_TOLERANCE = 0.1

# The head against the reference on features rounded to the tested type. D and the maps are sums in float32, so only
# their rounding shows. Gradients to the features are rounded to the features' type. Triton's interpreter truncates
# float32 to bfloat16 where hardware rounds, so bfloat16 gradients have a whole ulp.
HEAD_VALUE_TOLERANCE = {
    torch.float64: (1e-14, 1e-11),
    torch.float32: (1e-8, 2e-5),
    torch.float16: (1e-8, 2e-5),
    torch.bfloat16: (1e-8, 2e-5),
}
HEAD_GRAD_TOLERANCE = {
    torch.float64: (1e-12, 1e-10),
    torch.float32: (2e-6, 5e-5),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (8e-3, 1.6e-2),
}

# The norm of the error of the gradient to a layer's features: rounding to the features' type.
HEAD_GRAD_NORM_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 8e-3}

# --- The trunk's operators against torch's in float64 ---

# Root mean square error over root mean square. Direct convolution in float32 makes 1e-7 to 1e-6 on these shapes.
CONVOLUTION_TOLERANCE = 3e-6

# Of the largest value: one rounding to the type of what float32 arithmetic gives.
LAYER_TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# --- Two computations in float32, both with rounding ---

# torchmetrics' metric, whose trunk and head are torch's own.
METRIC_TOLERANCE = {"atol": 2e-7, "rtol": 2e-5}

# A script's number with lpips in it and with lpips_fast in it: losses, distances, weights after some steps.
SCRIPT_TOLERANCE = {"atol": 1e-6, "rtol": 1e-4}
SCRIPT_BFLOAT16_TOLERANCE = {"atol": 1e-3, "rtol": 0.05}
