"""What many tests are parametrised over."""

from __future__ import annotations

import pytest
import torch

NETS = ("alex", "vgg", "squeeze")
REAL_NETS = ("alex", "vgg")  # whose ImageNet weights are in the package index
BACKENDS = ("auto", "reference")

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
