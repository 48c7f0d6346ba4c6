"""The cache of features: filling it goes on, and it refuses features of something else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lpips_fast.calibration import FeatureCache


def test_filling_goes_on(make, some, tmp_path):
    fn = make("squeeze").fn
    next(FeatureCache(fn, some, tmp_path).fill(0))
    resumed = FeatureCache(fn, some, tmp_path)
    assert resumed.filled == 32
    assert list(resumed.fill(0)) == [32, 6]
    whole = FeatureCache(fn, some)
    list(whole.fill(0))
    found, judge = resumed.take([69, 0])
    expected, expected_judge = whole.take([69, 0])
    assert torch.equal(judge, expected_judge)
    for f, e in zip(found, expected):
        assert torch.equal(f, e)


def test_features_of_something_else(make, samples, some, tmp_path, monkeypatch):
    next(FeatureCache(make("squeeze").fn, samples, tmp_path).fill(0))
    with pytest.raises(ValueError, match="features with other net and trunk: delete it"):
        FeatureCache(make("alex").fn, samples, tmp_path)
    with pytest.raises(ValueError, match="features with other images: delete it"):
        FeatureCache(make("squeeze").fn, some, tmp_path)
    (tmp_path / "tap1.bin").unlink()
    with pytest.raises(ValueError, match=r"tap1.bin is missing: delete"):
        FeatureCache(make("squeeze").fn, samples, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20))
        with pytest.raises(OSError, match=r"need 0.1 GiB, the disk has 0.0 GiB"):
            FeatureCache(make("squeeze").fn, samples, tmp_path / "new")
    with pytest.raises(ValueError, match="cannot be kept"):
        FeatureCache(make("squeeze", options={"pnet_tune": True}).fn, samples)
