"""Data for `train` and `evaluate`."""

from __future__ import annotations

import pytest


@pytest.fixture
def judged(call, tmp_path, trunk):
    assert "40 triplets to train with: judged" in call("bapps", "--synthesize", "judged", "--triplets", 40, *trunk)
    return tmp_path
