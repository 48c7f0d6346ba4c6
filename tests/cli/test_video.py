"""`video`: folders of frames, animations and video files."""

from __future__ import annotations

import csv
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli import video

from .conftest import save_noise


def frames(n: int, noise: float) -> list[Image.Image]:
    """A moving gradient with noise that grows."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    made = []
    for i in range(n):
        smooth = np.stack([128 + 100 * np.sin(x / 7 + i), 128 + 100 * np.cos(y / 9), 0 * x + 128.0], axis=-1)
        made.append((smooth + rng.normal(0, 1 + noise * i, smooth.shape)).clip(0, 255).astype(np.uint8))
    return [Image.fromarray(frame) for frame in made]


def save_frames(folder, images) -> None:
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"f{i}.png")


def test_folders_of_frames(run, trunk, distance, tmp_path):
    save_frames(tmp_path / "a", frames(12, 0))
    save_frames(tmp_path / "b", frames(14, 5))
    (tmp_path / "b" / "f3.png").write_bytes(b"broken")
    arguments = ("video", "a", "b", "--batch-size", 5, "--csv", "out.csv", "--json", "out.json", *trunk)
    done = run(*arguments, "--plot", "out.png", status=1)
    assert "a ends after 12 frames, b goes on" in done.stderr
    assert "f3.png cannot be read" in done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert [row["frame"] for row in document["results"]] == list(range(12)), "f10 comes after f9"
    for row in document["results"]:
        if row["frame"] != 3:
            name = f"f{row['frame']}.png"
            assert row["lpips"] == pytest.approx(
                distance(tmp_path / "a" / name, tmp_path / "b" / name), rel=1e-4, abs=1e-7
            )
    assert document["summary"]["count"] == 11
    assert len(list(csv.DictReader((tmp_path / "out.csv").open()))) == 12
    assert Image.open(tmp_path / "out.png").size == (1200, 480)


def test_animations(call, trunk, tmp_path):
    first, *rest = frames(6, 0)
    first.save(tmp_path / "a.webp", save_all=True, append_images=rest, duration=40, lossless=True)
    first, *rest = frames(6, 8)
    first.save(tmp_path / "b.gif", save_all=True, append_images=rest, duration=40)
    call("video", "a.webp", "b.gif", "--json", "out.json", *trunk)
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["seconds"] for row in rows] == pytest.approx([0.04 * i for i in range(6)])
    assert rows[5]["lpips"] > rows[0]["lpips"]
    call("video", "a.webp", "a.webp", "--json", "out.json", *trunk)
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["max"] == 0


def test_video_files(call, trunk, tmp_path):
    av = pytest.importorskip("av", reason="video files need PyAV")
    for name, noise in (("a.mp4", 0), ("b.mp4", 8)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for image in frames(20, noise):
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            container.mux(stream.encode())
    call("video", "a.mp4", "b.mp4", "--csv", "out.csv", "--batch-size", 8, *trunk)
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [float(row["seconds"]) for row in rows] == pytest.approx([i / 25 for i in range(20)])
    assert float(rows[-1]["lpips"]) > float(rows[0]["lpips"])
    (tmp_path / "out.csv").write_text("".join((tmp_path / "out.csv").read_text().splitlines(keepends=True)[:5]))
    call("video", "a.mp4", "b.mp4", "--csv", "out.csv", "--batch-size", 8, "--resume", *trunk)
    assert list(csv.DictReader((tmp_path / "out.csv").open())) == rows


@pytest.mark.parametrize("side, most", [(2048, 3), (8, 2 * 8 + 2)])
def test_frames_in_memory_are_bounded_by_pixels(side, most):
    """A unit is read as the network takes it, and no more than 2 units, or 4 million pixels, ahead of it."""
    image = np.broadcast_to(np.uint8(0), (side, side, 3))
    read = taken = largest = 0

    def pairs():
        nonlocal read
        for _ in range(50):
            read += 1
            yield None, (image, image)

    def outcomes(numbered):
        nonlocal taken, largest
        found = {}
        for n, _ in numbered:
            time.sleep(0.005)  # for the reader to go as far ahead as it will
            largest = max(largest, read - taken)
            taken += 1
            found[n] = 0.5
        return found

    model = SimpleNamespace(settings=SimpleNamespace(batch_size=8), outcomes=outcomes)
    rows: dict = {}
    video._run(pairs(), model, rows, SimpleNamespace(append=lambda rows: None))
    assert sorted(rows) == list(range(50))
    assert largest <= most


@pytest.mark.parametrize("row", ["third,0.1,0.5,", ",,0.5,", "1e999,,0.5,", "3,late,0.5,"])
def test_resuming_what_are_no_frames(mistake, call, trunk, tmp_path, row):
    save_frames(tmp_path / "a", frames(2, 0))
    call("video", "a", "a", "--csv", "out.csv", *trunk)
    path = tmp_path / "out.csv"
    run = path.read_text().splitlines()[1].rsplit(",", 1)[1]
    path.write_text(damaged := f"{path.read_text()}{row},{run}\n")
    assert "out.csv is damaged" in mistake("video", "a", "a", "--csv", "out.csv", "--resume", *trunk)
    assert path.read_text() == damaged


@pytest.mark.parametrize("frame", ["third", None, float("inf")])
def test_resuming_a_document_of_what_are_no_frames(mistake, call, trunk, tmp_path, frame):
    save_frames(tmp_path / "a", frames(2, 0))
    call("video", "a", "a", "--json", "out.json", *trunk)
    document = json.loads((tmp_path / "out.json").read_text())
    document["results"][1]["frame"] = frame
    (tmp_path / "out.json").write_text(json.dumps(document) + "\n")
    assert "out.json is damaged" in mistake("video", "a", "a", "--json", "out.json", "--resume", *trunk)


def test_results_stay_where_an_input_cannot_be_opened(call, trunk, tmp_path):
    save_frames(tmp_path / "a", frames(2, 0))
    (tmp_path / "text.gif").write_text("no animation")
    call("video", "a", "a", "--json", "out.json", "--csv", "out.csv", *trunk)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}
    for pair in (("a", "nowhere"), ("nowhere", "a"), ("a", "text.gif")):
        call("video", *pair, "--json", "out.json", "--csv", "out.csv", *trunk, status=1)
        assert {path.name: path.read_bytes() for path in tmp_path.glob("out.*")} == before


def test_mistakes(call, trunk, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert "no video, animation or folder of frames nowhere.mp4" in call(
        "video", "nowhere.mp4", "a.png", *trunk, status=1
    )
    pytest.importorskip("av", reason="video files need PyAV")
    assert "broken.mp4 cannot be read as a video" in call("video", "broken.mp4", "a.png", *trunk, status=1)
