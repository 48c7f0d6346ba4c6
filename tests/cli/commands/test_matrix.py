"""`matrix`: all pairs, against the library, in blocks, by two processes, cut short."""

from __future__ import annotations

import csv
import json
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import lpips_fast
from lpips_fast.diversity import mean_distance
from tests.support.image_files import save_noise
from tests.support.tolerances import (
    EQUAL_IMAGES_TOLERANCE,
    PRINTED_TOLERANCE,
    REORDERED_TOLERANCE,
)


@pytest.fixture
def samples(tmp_path):
    """37 images of one size, of which two are the same and one is broken."""
    for i in range(37):
        save_noise(tmp_path / "x" / f"{i:02d}.png", 5 if i == 9 else i)
    whole = (tmp_path / "x" / "20.png").read_bytes()
    (tmp_path / "x" / "20.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_matrix(run, samples, trunk, fn):
    arguments = ("matrix", "x", *trunk, "--json")
    done = run(*arguments, "one.json", "--csv", "out.csv", "--heatmap", "heat.png", threads=1, status=1)
    found = json.loads((samples / "one.json").read_text())
    values = np.array(found["matrix"], float)
    known = [i for i in range(37) if i != 20]
    assert np.isnan(values[20]).all()
    assert np.isnan(values[:, 20]).all()
    assert "20.png cannot be read" in done.stderr
    assert list(found["errors"]) == ["x/20.png"]

    images = torch.cat([lpips_fast.im2tensor(lpips_fast.load_image(samples / "x" / f"{i:02d}.png")) for i in known])
    with torch.no_grad():
        expected = torch.stack([fn(image[None], images).flatten() for image in images]).double().numpy()
    part = values[np.ix_(known, known)]
    assert np.abs(part - expected).max() <= REORDERED_TOLERANCE * expected.max()
    assert np.array_equal(part, part.T)
    assert not np.diag(part).any()
    assert values[5, 9] < EQUAL_IMAGES_TOLERANCE
    assert found["summary"]["count"] == 36 * 35 / 2
    assert found["summary"]["mean"] == pytest.approx(expected[np.triu_indices(36, 1)].mean(), rel=REORDERED_TOLERANCE)
    assert "05.png\t09.png\t" in done.stdout

    rows = list(csv.reader((samples / "out.csv").open()))
    assert rows[0] == ["name", *found["columns"]]
    assert [float(cell) for cell in rows[1][1:10]] == found["matrix"][0][:9]
    assert min(Image.open(samples / "heat.png").size) > 400

    run(*arguments, "two.json", processes=2, threads=1, status=1)
    assert (samples / "two.json").read_text() == (samples / "one.json").read_text()


def test_mean_of_many_images(run, samples, trunk, fn):
    """The numbers are those of the library, of the readable images, whatever processes share the eight units.

    A sketch longer than an embedding makes the standard error independent of units.
    """
    (samples / "y").mkdir()
    for i, contrast in enumerate(np.random.default_rng(0).uniform(0.01, 1, 90)):  # units of the same would add up alike
        noise = np.random.default_rng(50 + i).uniform(-127, 127, (32, 40, 3))
        Image.fromarray((128 + contrast * noise).astype(np.uint8)).save(samples / "y" / f"{i:02d}.png")
    arguments = ("matrix", ".", *trunk, "--sketch", 2**16, "--json")
    done = run(*arguments, "one.json", threads=1, status=1)
    found = json.loads((samples / "one.json").read_text())
    paths = [path for path in sorted(samples.rglob("*.png")) if path.name != "20.png" or path.parent.name == "y"]
    images = torch.cat([lpips_fast.im2tensor(lpips_fast.load_image(path)) for path in paths])
    expected = mean_distance(fn, images, sketch=2**16)
    assert found["summary"] == {
        "count": 126 * 125 // 2,
        "mean": pytest.approx(expected.mean, rel=REORDERED_TOLERANCE),
        "standard_error": pytest.approx(expected.standard_error, rel=REORDERED_TOLERANCE),
    }
    assert f"mean\t{found['summary']['mean']:.7g}" in done.stdout
    assert "20.png cannot be read" in done.stderr
    assert list(found["errors"]) == ["x/20.png"]
    assert found["settings"]["sketch"] == 2**16
    assert found["settings"]["size"] == [40, 32]

    run(*arguments, "two.json", processes=2, threads=1, status=1)
    assert (samples / "two.json").read_text() == (samples / "one.json").read_text()


@pytest.mark.parametrize(
    "option",
    [("--csv", "out.csv"), ("--heatmap", "out.png"), ("--block", 5), ("--resume", "--json", "out.json")],
    ids=lambda option: option[0],
)
def test_what_needs_a_matrix_is_refused(mistake, samples, trunk, option):
    assert f"{option[0]} does not go with --sketch: " in mistake("matrix", "x", "--sketch", 64, *option, *trunk)
    assert not list(samples.glob("out.*"))


def test_two_folders_blocks_and_size(call, samples, trunk, distance):
    for i in range(3):
        save_noise(samples / "y" / f"{i}.png", 50 + i)
    call("matrix", "x", "y", "--block", 5, "--json", "out.json", *trunk, status=1)
    found = json.loads((samples / "out.json").read_text())
    values = np.array(found["matrix"], float)
    assert values.shape == (37, 3)
    assert values[36, 2] == pytest.approx(
        distance(samples / "x" / "36.png", samples / "y" / "2.png"), rel=PRINTED_TOLERANCE
    )
    assert found["summary"]["count"] == 36 * 3

    save_noise(samples / "y" / "3.png", 53, width=48)
    assert "2 sizes (3 of 40 x 32, 1 of 48 x 32) and must be of one" in call("matrix", "y", *trunk, status=2)
    assert "count 6" in call("matrix", "y", "--size", "32x32", *trunk)
    assert "16 x 8 pixels" in call("matrix", "y", "--size", "16x8", *trunk, status=2)


def test_one_image(call, tmp_path, trunk):
    save_noise(tmp_path / "x" / "1.png", 1)
    for options, keys in (((), ("mean", "std", "min", "max")), (("--sketch", 64), ("mean", "standard_error"))):
        assert "mean nan" in call("matrix", "x", *trunk, *options)
        call("matrix", "x", "--json", "out.json", *trunk, *options)
        assert json.loads((tmp_path / "out.json").read_text())["summary"] == {"count": 0, **dict.fromkeys(keys)}
    assert "--sketch" in call("matrix", "x", *trunk, "--sketch", 63, status=2)


def test_resume(run_and_stop, call, samples, trunk):
    for path in sorted((samples / "x").iterdir())[14:]:
        path.unlink()
    arguments = ("matrix", "x", "--block", 1, *trunk, "--json", "out.json")
    partial = samples / "out.json.partial"

    def started() -> bool:
        time.sleep(0.005)
        return partial.exists() and partial.read_text().count("\n") > 10

    run_and_stop(*arguments, ready=started, sends=signal.SIGKILL)
    assert partial.read_text().count("\n") < 14 * 15 / 2
    assert "block was 1, is 2" in call(*arguments, "--block", 2, "--resume", status=2)
    lines = partial.read_text().splitlines()
    row = json.loads(lines[2])
    lines[2] = json.dumps({**row, "lpips": [[77.0]]})
    partial.write_text("\n".join([*lines, ""]))
    call(*arguments, "--resume")
    found = json.loads((samples / "out.json").read_text())
    i, j = map(int, row["name"].split(","))
    assert found["matrix"][i][j] == found["matrix"][j][i] == 77.0, "what was there was not computed again"
    assert np.isfinite(np.array(found["matrix"], float)).all()
    assert not partial.exists()
