"""A small data set, judged by an AlexNet with a random trunk and a marked taste."""

from __future__ import annotations

import copy

import pytest
import torch

from lpips_fast.bapps import TwoAFCDataset, give_taste, synthesize
from lpips_fast.calibration import Calibration, Recipe


@pytest.fixture(scope="session")
def samples(tmp_path_factory, make_ours):
    """80 triplets."""
    judge = make_ours("alex")
    give_taste(judge)
    root = tmp_path_factory.mktemp("bapps") / "judged"
    synthesize(root, judge, triplets=80)
    return TwoAFCDataset(root, ["train/synthetic"])


@pytest.fixture
def some(samples):
    """The first 70 triplets."""
    some = copy.copy(samples)
    some.names = samples.names[:70]
    return some


@pytest.fixture
def make(make_ours):
    """Makes a Calibration of random linear weights."""

    def make(net="alex", triplets=80, options=(), **recipe):
        torch.manual_seed(1)
        fn = make_ours(net, pretrained=False, eval_mode=False, **dict(options))
        return Calibration(fn, Recipe(**recipe), triplets)

    return make
