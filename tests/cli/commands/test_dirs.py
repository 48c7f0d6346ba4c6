"""`dirs`: numbers, matching, broken files, `--resume` after an early end, many processes."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
import signal
import statistics
import time

import numpy as np
import pytest
from PIL import Image

from lpips_fast import load_image
from tests.support.image_files import save_noise, soft_disc
from tests.support.tolerances import REORDERED_TOLERANCE


@pytest.fixture
def folders(tmp_path):
    """18 good pairs of two sizes, one alike only by stem; pairs that cannot be compared; two images unmatched."""
    for i in range(18):
        name = f"{'sub/' if i % 2 else ''}{i:02d}"
        size = (40, 32) if i % 3 else (32, 40)
        save_noise(tmp_path / "a" / f"{name}.png", i, *size)
        save_noise(tmp_path / "b" / f"{name}.{'bmp' if i == 4 else 'png'}", i if i == 7 else 100 + i, *size)
    for side in "ab":
        save_noise(tmp_path / side / "x_tiny.png", 0, 9, 9)
        save_noise(tmp_path / side / "x_broken.png", 0)
        save_noise(tmp_path / side / "x_sizes.png", 0, 40 if side == "a" else 44)
        save_noise(tmp_path / side / f"only_{side}.png", 0)
    (tmp_path / "b" / "x_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    return tmp_path


def test_numbers_errors_and_files(run, folders, trunk, distance):
    done = run("dirs", "a", "b", "--json", "out.json", "--csv", "out.csv", "--batch-size", 4, *trunk, status=1)
    document = json.loads((folders / "out.json").read_text())
    rows = {row["name"]: row for row in document["results"]}
    assert len(rows) == 21
    values = {name: row["lpips"] for name, row in rows.items() if row["lpips"] is not None}
    assert len(values) == 18
    for name, value in values.items():
        assert value == pytest.approx(
            distance(folders / rows[name]["a"], folders / rows[name]["b"]), rel=REORDERED_TOLERANCE
        )
    assert values["sub/07.png"] == 0
    assert rows["04.png"]["b"].endswith("04.bmp")
    assert rows["x_tiny.png"]["error"].startswith("9 x 9 pixels; net 'squeeze' needs")
    assert "x_broken.png cannot be read" in rows["x_broken.png"]["error"]
    assert "sizes differ: a/x_sizes.png is 40 x 32, b/x_sizes.png 44 x 32" in rows["x_sizes.png"]["error"]
    assert document["unmatched"] == {"a": ["only_a.png"], "b": ["only_b.png"]}
    assert document["complete"]

    summary = document["summary"]
    assert (summary["count"], summary["errors"]) == (18, 3)
    assert summary["mean"] == pytest.approx(statistics.fmean(values.values()))
    assert summary["std"] == pytest.approx(statistics.pstdev(values.values()))
    assert summary["median"] == pytest.approx(statistics.median(values.values()))
    assert f"mean\t{summary['mean']:.7g}" in done.stdout
    for name in ("only_a.png", "only_b.png", "x_tiny.png", "x_broken.png", "x_sizes.png"):
        assert name in done.stderr
    assert "\x1b" not in done.stderr, "no progress bar where stderr is no terminal"

    in_csv = {row["name"]: row for row in csv.DictReader((folders / "out.csv").open())}
    assert {name: float(row["lpips"]) for name, row in in_csv.items() if row["lpips"]} == values
    assert {name for name, row in in_csv.items() if row["error"]} == {"x_tiny.png", "x_broken.png", "x_sizes.png"}
    assert sorted(path.name for path in folders.iterdir()) == ["a", "b", "out.csv", "out.json"]


def test_three_processes_give_the_numbers_of_one(run, folders, trunk):
    arguments = ("dirs", "a", "b", "--batch-size", 4, *trunk, "--json")
    run(*arguments, "three.json", processes=3, threads=1, status=1)
    run(*arguments, "one.json", threads=1, status=1)
    assert (folders / "three.json").read_text() == (folders / "one.json").read_text()


def test_one_process_failing_ends_all(run, folders, trunk):
    for name in ("only_a.png", "only_b.png"):
        next(folders.rglob(name)).unlink()
    done = run("dirs", "a", "b", "--batch-size", 1, "--strict", *trunk, processes=2, status=1)
    assert "x_broken.png cannot be read" in done.stderr
    assert "(rank " in done.stderr


def test_strict_and_resize(call, folders, trunk):
    assert "only_a.png" in call("dirs", "a", "b", "--strict", *trunk, status=1)
    call("dirs", "a", "b", "--resize", "--json", "out.json", *trunk, status=1)
    assert json.loads((folders / "out.json").read_text())["summary"]["count"] == 19


def test_mistakes(mistake, folders, trunk):
    assert "nowhere is no folder" in mistake("dirs", "a", "nowhere", *trunk)
    (folders / "empty").mkdir()
    assert "empty has no images (.apng, .avif" in mistake("dirs", "a", "empty", *trunk)
    save_noise(folders / "c" / "other.png", 0)
    told = mistake("dirs", "a", "c", *trunk)
    assert "no image in a has a namesake in c: e.g. 00.png should be 00.* in c, which has other.png" in told
    assert "--pattern says how B's images are named, without suffix, and is '{name}'" in told
    told = mistake("dirs", "a", "b", "--pattern", "sr/{name}_x4.png", *trunk)
    assert "e.g. 00.png should be sr/00_x4.png.* in b, which has 00.png" in told
    assert "without suffix, and is 'sr/{name}_x4.png'" in told
    assert "--resume goes on with the results in a file" in mistake("dirs", "a", "b", "--resume", *trunk)


def test_names_by_a_pattern(call, folders, trunk, distance):
    for path in sorted((folders / "b").rglob("*.*")):
        path.rename(path.with_name(f"{path.stem}_x4{path.suffix}"))
    call("dirs", "a", "b", "--pattern", "{name}_x4", "--json", "out.json", *trunk, status=1)
    document = json.loads((folders / "out.json").read_text())
    assert document["settings"]["pattern"] == "{name}_x4"
    rows = {row["name"]: row for row in document["results"]}
    assert len(rows) == 21
    assert (rows["sub/03.png"]["b"], rows["04.png"]["b"]) == ("b/sub/03_x4.png", "b/04_x4.bmp")
    a, b = folders / "a" / "sub" / "03.png", folders / "b" / "sub" / "03_x4.png"
    assert rows["sub/03.png"]["lpips"] == pytest.approx(distance(a, b), rel=REORDERED_TOLERANCE)
    assert document["unmatched"] == {"a": ["only_a.png"], "b": ["only_b_x4.png"]}
    assert "--pattern must have {name} in it" in call("dirs", "a", "b", "--pattern", "_x4", *trunk, status=2)


@pytest.fixture
def masks(folders):
    """A mask for each good pair but one; one mask is 0 everywhere."""
    for side in "ab":
        for bad in (folders / side).glob("x_*.png"):
            bad.unlink()
    paths = sorted((folders / "a").rglob("*.png"))
    for path in paths:
        mask = folders / "masks" / path.relative_to(folders / "a")
        mask.parent.mkdir(parents=True, exist_ok=True)
        width, height = Image.open(path).size
        Image.fromarray(soft_disc(height, width) * (path.name != "05.png")).save(mask.with_suffix(".bmp"))
    (folders / "masks" / "02.bmp").unlink()
    return folders


def test_one_mask_for_images_of_two_kinds(run, trunk, tmp_path):
    """a/x.png and a/x.jpg share a single mask. Of two masks an image takes the mask of its own suffix."""
    for side in "ab":
        (tmp_path / side).mkdir()
        for suffix in ("png", "bmp"):
            save_noise(tmp_path / side / f"x.{suffix}", ord(side))
    (tmp_path / "masks").mkdir()
    save_noise(tmp_path / "masks" / "x.gif", 3)
    command = ("dirs", "a", "b", "--mask", "masks", "--csv", "out.csv", *trunk)
    assert "no mask" not in run(*command).stderr
    save_noise(tmp_path / "masks" / "x.bmp", 4)
    assert "x.png: no mask masks/x.*, or more than one" in run(*command, status=1).stderr
    (tmp_path / "empty").mkdir()
    assert "--mask empty has no images" in run(*command[:4], "empty", *trunk, status=2).stderr


def test_masks_by_name(run, masks, trunk, measure):
    done = run("dirs", "a", "b", "--mask", "masks", "--json", "out.json", "--batch-size", 4, *trunk, status=1)
    document = json.loads((masks / "out.json").read_text())
    rows = {row["name"]: row for row in document["results"]}
    assert document["settings"]["mask"] == "masks"
    assert "02.png: no mask masks/02.*, or more than one" in done.stderr
    assert rows.pop("02.png")["error"] == "no mask masks/02.*, or more than one"
    assert rows.pop("sub/05.png")["error"].startswith("masks/sub/05.bmp: the mask is 0 in every pixel compared")
    assert len(rows) == 16
    for row in rows.values():
        a, b = (load_image(masks / row[side]) for side in "ab")
        assert row["lpips"] == pytest.approx(measure(a, b, soft_disc(*a.shape[:2])), rel=REORDERED_TOLERANCE)
    run("dirs", "a", "b", "--mask", "masks", "--json", "two.json", "--batch-size", 4, *trunk, processes=2, status=1)
    by_two = {row["name"]: row["lpips"] for row in json.loads((masks / "two.json").read_text())["results"]}
    assert [by_two[name] for name in rows] == [
        pytest.approx(row["lpips"], rel=REORDERED_TOLERANCE) for row in rows.values()
    ]


def test_a_run_with_another_mask_or_border_is_not_resumed(call, masks, trunk):
    arguments = ("dirs", "a", "b", "--json", "out.json", *trunk)
    call(*arguments, "--crop-border", 2)
    for options, told in (
        (("--crop-border", 3), "crop_border was 2, is 3"),
        (("--crop-border", 2, "--mask", "masks"), "mask was None, is 'masks'"),
        (("--crop-border", 2, "--crop"), "crop was False, is True"),
    ):
        assert told in call(*arguments, *options, "--resume", status=2)
    call(*arguments, "--crop-border", 2, "--resume")


def test_one_mask_for_all_and_alpha(call, tmp_path, trunk, measure):
    mask = soft_disc(32, 40)
    for i in range(2):
        for side, seed in (("a", i), ("b", 100 + i)):
            save_noise(tmp_path / side / f"{i}.png", seed)
    Image.fromarray(mask).save(tmp_path / "mask.png")

    def results(option, status=0):
        call("dirs", "a", "b", "--mask", option, "--json", "out.json", *trunk, status=status)
        return json.loads((tmp_path / "out.json").read_text())["results"]

    def expected(i):
        return pytest.approx(
            measure(*(load_image(tmp_path / side / f"{i}.png") for side in "ab"), mask), rel=REORDERED_TOLERANCE
        )

    assert [row["lpips"] for row in results("mask.png")] == [expected(0), expected(1)]
    image = Image.open(tmp_path / "a" / "1.png")
    image.putalpha(Image.fromarray(mask))
    image.save(tmp_path / "a" / "1.png")
    first, second = results("alpha", status=1)
    assert first["error"].startswith("a/0.png has no alpha channel, and --mask alpha takes that of A")
    assert second["lpips"] == expected(1)


def test_report_shows_what_is_compared(call, tmp_path, trunk):
    for side, seed in (("a", 0), ("b", 1)):
        save_noise(tmp_path / side / "x.png", seed, 120, 80)
    mask = np.zeros((80, 120), np.uint8)
    mask[:, 60:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    call("dirs", "a", "b", "--crop-border", 10, "--mask", "mask.png", "--report", "report.html", *trunk)
    page = (tmp_path / "report.html").read_text()
    data = re.findall('alt="(?:A|B|map)" src="data:image/png;base64,([^"]+)', page)
    pictures = [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in data]
    assert [picture.size for picture in pictures] == [(300, 180)] * 3, "each pixel three times as large"
    image, _, shown = (np.array(picture)[::3, ::3] for picture in pictures)
    assert (image == load_image(tmp_path / "a" / "x.png")[10:70, 10:110]).all()
    assert (shown[:, :50] == shown[0, 0]).all(), "the map is black where nothing counts"
    assert shown[:, 50:].mean() > 5 * shown[:, :50].mean()


@pytest.fixture
def many(tmp_path):
    """150 pairs, names of one image each."""
    for side, seed in (("a", 0), ("b", 1)):
        save_noise(tmp_path / side / "000.png", seed, 32, 32)
        for i in range(1, 150):
            os.link(tmp_path / side / "000.png", tmp_path / side / f"{i:03d}.png")
    return tmp_path


def test_pixels_left_in_0_to_1_give_no_warning(call, many, trunk, recwarn):
    told = call("dirs", "a", "b", "--no-normalize", "--batch-size", 1, *trunk)
    assert "images should be in" not in told
    assert not [str(w.message) for w in recwarn if "images should be in" in str(w.message)]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_resume(run_and_stop, call, many, trunk, sent):
    arguments = ("dirs", "a", "b", "--batch-size", 2, *trunk, "--csv", "out.csv", "--json", "out.json")
    partial = many / "out.json.partial"

    def halfway() -> bool:
        time.sleep(0.005)
        return partial.exists() and partial.read_text().count("\n") > 10

    done = run_and_stop(*arguments, ready=halfway, sends=sent)
    kept = partial.read_text().count("\n") - 1
    assert 10 <= kept < 150
    assert (many / "out.csv").read_text().count("\n") - 1 >= kept
    if sent == signal.SIGINT:
        assert done.returncode == 130
        assert "interrupted" in done.stderr
        document = json.loads((many / "out.json").read_text())
        assert not document["complete"]
        assert document["summary"]["count"] == len(document["results"])
        # The signal may come after a batch's results and before its lines in the journal.
        assert kept <= len(document["results"]) <= kept + 2
    else:
        assert not (many / "out.json").exists()

    assert "was cut short: go on with --resume" in call(*arguments, status=2)
    assert "resize was False, is True" in call(*arguments, "--resume", "--resize", status=2)
    told = call(*arguments[:-2], "--resume", "--no-normalize", status=2)
    assert "(its column 'run' differs); the settings that count are net, version, weights, " in told
    assert "normalize, precision, background, range, a, b, pattern, resize, crop, crop_border, mask" in told

    with partial.open("a") as file:
        file.write('{"name": "149.png", "lp')  # a machine that stops leaves this
    lines = partial.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "lpips": 77.0})
    partial.write_text("\n".join(lines))
    call(*arguments, "--resume")
    document = json.loads((many / "out.json").read_text())
    assert document["complete"]
    assert [row["name"] for row in document["results"]] == [f"{i:03d}.png" for i in range(150)]
    values = [row["lpips"] for row in document["results"]]
    assert values[0] == 77.0, "what was there was not computed again"
    assert math.isclose(min(values[1:]), max(values[1:]), rel_tol=REORDERED_TOLERANCE)
    assert not partial.exists()
    rows = list(csv.DictReader((many / "out.csv").open()))
    assert [(row["name"], float(row["lpips"])) for row in rows] == [
        (r["name"], r["lpips"]) for r in document["results"]
    ]


def test_two_runs_at_once(run_and_stop, call, many, trunk):
    # Without workers: those of a killed run would go on until they notice.
    arguments = ("dirs", "a", "b", "--batch-size", 1, "--workers", 0, *trunk, "--csv")
    (many / "link.csv").symlink_to("out.csv")

    def second_refused() -> bool:
        time.sleep(0.005)
        if not (many / "out.csv").exists():
            return False
        assert "another run is writing it" in call(*arguments, "link.csv", status=2)
        return True

    run_and_stop(*arguments, "out.csv", ready=second_refused, sends=signal.SIGKILL)
    assert (many / "out.csv").read_text().count("\n") < 151
    call(*arguments, "out.csv", "--resume")
    assert len(list(csv.DictReader((many / "out.csv").open()))) == 150
    assert sorted(path.name for path in many.iterdir()) == ["a", "b", "link.csv", "out.csv"]


def test_resume_from_csv_alone(call, folders, trunk):
    call("dirs", "a", "b", "--csv", "out.csv", *trunk, status=1)
    whole = (folders / "out.csv").read_text()
    lines = whole.splitlines(keepends=True)
    (folders / "out.csv").write_text("".join(lines[:9]) + lines[9][:20])
    call("dirs", "a", "b", "--csv", "out.csv", "--resume", *trunk, status=1)
    assert (folders / "out.csv").read_text() == whole
