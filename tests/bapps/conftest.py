"""Two subsets of triplets and one of pairs."""

from __future__ import annotations

import pytest

from tests.support.bapps import write_judgements


@pytest.fixture
def root(tmp_path):
    for subset in ("train/cnn", "train/mix"):
        write_judgements(tmp_path, "2afc", subset, 3)
    write_judgements(tmp_path, "jnd", "val/cnn", 2)
    return tmp_path
