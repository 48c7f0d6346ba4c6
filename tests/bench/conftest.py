"""A run, for records."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.bench.records import Run


@pytest.fixture
def run():
    return Run(torch.device("cpu"))
