"""The mean distance of folders, unit by unit: against the library, with images that cannot be read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

import lpips_fast
from lpips_fast.cli import diversity
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.settings import Reading
from lpips_fast.diversity import mean_distance
from lpips_fast.sketch import Sketch
from tests.support.image_files import save_noise
from tests.support.tolerances import REORDERED_TOLERANCE

SIZE = 40, 32
LENGTH = 2**16  # longer than an embedding, so that the standard error does not depend on units


@pytest.fixture
def sides(tmp_path):
    """Two folders of 9 and of 4 images. Of the first three of both none can be read."""
    for name, n in (("x", 9), ("y", 4)):
        for i in range(n):
            save_noise(tmp_path / name / f"{i}.png", i + 100 * (name == "y"))
            if i < 3:
                (tmp_path / name / f"{i}.png").write_bytes(b"")
    return [sorted((tmp_path / name).iterdir()) for name in "xy"]


@pytest.fixture
def mean(settings):
    def mean(sides, size=SIZE, **options):
        reading, model = Reading(), Model(dataclasses.replace(settings, **options))
        return diversity.mean_distance(sides, model, size, Sketch(LENGTH), reading, Notices(reading))

    return mean


def images(paths: list[Path]) -> torch.Tensor:
    return torch.cat([lpips_fast.im2tensor(lpips_fast.load_image(path)) for path in paths])


@pytest.mark.parametrize("length", (1, 2, 3, 100))
@pytest.mark.parametrize("both", (False, True))
def test_mean_of_the_readable_images(monkeypatch, sides, mean, fn, length, both):
    """Also where a unit has none."""
    monkeypatch.setattr(diversity, "_MOST_IMAGES", length)
    given = sides if both else sides[:1]
    expected = mean_distance(fn, *(images(paths[3:]) for paths in given), sketch=LENGTH)
    summary, errors = mean(given)
    assert summary == {
        "count": expected.pairs,
        "mean": pytest.approx(expected.mean, rel=REORDERED_TOLERANCE),
        "standard_error": pytest.approx(expected.standard_error, rel=REORDERED_TOLERANCE, nan_ok=True),
    }
    assert list(errors) == [str(path) for paths in given for path in paths[:3]]
    assert all(f"{Path(path).name} cannot be read" in why for path, why in errors.items())


def test_too_few_images(sides, mean):
    nothing = {"count": 0, "mean": pytest.approx(math.nan, nan_ok=True), "standard_error": ANY}
    assert mean([sides[0][:4]])[0] == nothing
    assert mean([sides[0][:2]])[0] == nothing
    assert mean([sides[0], sides[1][:3]])[0] == nothing
    assert mean([sides[0], sides[1]])[0]["count"] == 6


def test_strict_and_small_images(sides, mean):
    with pytest.raises(ReadError, match=r"0\.png cannot be read"):
        mean(sides, strict=True)
    with pytest.raises(UsageError, match="the images are 16 x 8 pixels; net 'squeeze' needs sides of at least 17"):
        mean(sides, (16, 8))


@pytest.mark.parametrize(
    "numbers, size, lengths",
    (
        ([1], 64, [1]),
        ([40], 64, [16, 16, 8]),
        ([20, 17], 64, [16, 4, 16, 1]),
        ([1600], 64, [100] * 16),
        ([8192], 64, [256] * 32),
        ([40], 2048, [4] * 10),
        ([2], 2**13, [1, 1]),
    ),
)
def test_units(numbers, size, lengths):
    """Several for most folders, of at most 256 images and 2^24 pixels."""
    sides = [[Path(f"{side} {i}.png") for i in range(n)] for side, n in enumerate(numbers)]
    units = diversity._units(sides, (size, size))
    assert [len(paths) for _, paths in units] == lengths
    assert [(side, path) for side, paths in units for path in paths] == [
        (side, path) for side, paths in enumerate(sides) for path in paths
    ]
