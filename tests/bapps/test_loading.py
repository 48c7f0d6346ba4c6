"""Batches of samples: the chosen ones, in order, by worker processes or without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lpips_fast.bapps import SampleError, TwoAFCDataset, list_subsets, read_batches


@pytest.mark.parametrize("workers", [0, 2])
def test_read_batches(root, workers):
    samples = TwoAFCDataset(root, list_subsets(root, "2afc", "train"))
    found = list(read_batches(samples, iter([[5, 0], [3]]), workers))
    assert [len(batch.judge) for batch in found] == [2, 1]
    assert torch.equal(found[0].ref[1], samples[0].ref)
    assert torch.equal(found[1].p0[0], samples[3].p0)
    np.save(samples.files(3)[-1], np.array([1.5]))
    with pytest.raises(SampleError, match=r"mix.judge.000000.npy must be one number from 0 to 1, got \[1.5\]"):
        list(read_batches(samples, [[5, 0], [3]], workers))
