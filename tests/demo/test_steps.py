"""What the demo shows: its numbers are LPIPS's, and its optimisation brings an image nearer."""

from __future__ import annotations

import numpy as np
import pytest

from lpips_fast.bapps.distortions import DISTORTIONS
from lpips_fast.demo import steps
from tests.support.tolerances import SMALL_MAP_MEAN_TOLERANCE


def test_samples_are_there():
    for name in steps.SAMPLES:
        sample = steps.load_sample(name)
        assert sample.shape == (256, 256, 3)
        assert sample.dtype == np.uint8
        assert sample.std() > 20


def test_load(monkeypatch, cached_trunk, capsys):
    """It says where the weights come from, or that there are none and the trunk is random."""
    monkeypatch.setattr(steps, "provide", cached_trunk)
    monkeypatch.setattr("lpips_fast.weights.published.provide", cached_trunk)
    module, calibrated = steps.load("alex")
    assert calibrated
    assert not module.pnet_rand
    assert "alex.pth" in capsys.readouterr().out

    def unreachable(net, source):
        raise RuntimeError("no way to the weights")

    monkeypatch.setattr(steps, "provide", unreachable)
    module, calibrated = steps.load("alex")
    assert not calibrated
    assert module.pnet_rand
    printed = capsys.readouterr().out
    assert "no way to the weights" in printed
    assert "RANDOM" in printed


def test_maps_are_of_the_distances_and_nearest_first(make_ours):
    module, sample = make_ours("alex"), steps.load_sample("spheres")[:64, 64:128]
    found = steps.distance_maps(module, sample)
    distances = [d.distance for d in found]
    assert distances == sorted(distances)
    expected = dict(zip(DISTORTIONS, steps.distances(module, sample), strict=True))
    assert {d.name: d.distance for d in found} == expected
    for d in found:
        assert d.distance_map.shape == (64, 64)
        assert d.distance_map.mean().item() == pytest.approx(d.distance, rel=SMALL_MAP_MEAN_TOLERANCE)
        mean_square = ((sample.astype(float) / 255 - d.image / 255) ** 2).mean()
        assert 10 ** (-d.psnr / 10) == pytest.approx(mean_square)
    assert not module.spatial


def test_optimise(make_ours):
    module, target = make_ours("alex"), steps.load_sample("landscape")[64:128, :64]
    found = steps.optimise(module, target, 5)
    assert len(found.losses) == 6
    assert found.losses[-1] < 0.9 * found.losses[0]
    assert found.result.shape == found.start.shape == target.shape
    assert not np.array_equal(found.result, found.start)
