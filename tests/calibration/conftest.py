"""A small data set, judged by an AlexNet with random weights in its trunk and a peculiar taste."""

from __future__ import annotations

import pytest

from lpips_fast.bapps import TwoAFCDataset, give_taste, synthesize


@pytest.fixture(scope="session")
def samples(tmp_path_factory, make_ours):
    """80 triplets."""
    judge = make_ours("alex")
    give_taste(judge)
    root = tmp_path_factory.mktemp("bapps") / "judged"
    synthesize(root, judge, triplets=80)
    return TwoAFCDataset(root, ["train/synthetic"])
