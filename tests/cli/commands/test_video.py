"""`video`: folders of frames, animations and video files."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.commands import video
from lpips_fast.cli.video.frames import FramePair
from tests.support.image_files import frames, save_frames, save_noise, soft_disc
from tests.support.tolerances import PRINTED_TOLERANCE

ROOT = Path(__file__).parents[3]


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
                distance(tmp_path / "a" / name, tmp_path / "b" / name), rel=PRINTED_TOLERANCE
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


def masks(n: int) -> list[np.ndarray]:
    """Discs that move."""
    return [np.roll(soft_disc(48, 64), 3 * i, axis=1) for i in range(n)]


@pytest.fixture
def masked(call, trunk, tmp_path):
    """Saves folders of 5 frames, and gives the results and messages of `video` with a mask."""
    save_frames(tmp_path / "a", frames(5, 0))
    save_frames(tmp_path / "b", frames(5, 5))

    def masked(mask, *options, a="a", status=0):
        said = call("video", a, "b", "--mask", mask, *options, "--json", "out.json", *trunk, status=status)
        document = json.loads((tmp_path / "out.json").read_text())
        assert document["settings"]["mask"] == str(mask)
        return document["results"], said

    return masked


@pytest.fixture
def expected(measure, tmp_path):
    """The distances of these frames. A shows white where it is transparent."""

    def expected(weights, a=None):
        over_white = [Image.alpha_composite(Image.new("RGBA", i.size, "white"), i) for i in a or []]
        triples = zip([i.convert("RGB") for i in over_white] or frames(5, 0), frames(5, 5), weights, strict=False)
        return [pytest.approx(measure(np.array(a), np.array(b), mask), rel=PRINTED_TOLERANCE) for a, b, mask in triples]

    return expected


def test_masks_frame_by_frame(masked, expected, tmp_path):
    save_frames(tmp_path / "masks", map(Image.fromarray, masks(5)))
    rows, said = masked("masks", "--batch-size", 2)
    assert [row["lpips"] for row in rows] == expected(masks(5))
    Image.fromarray(np.zeros_like(masks(1)[0])).save(tmp_path / "masks" / "f2.png")
    (tmp_path / "masks" / "f3.png").write_bytes(b"broken")
    (tmp_path / "masks" / "f4.png").unlink()
    rows, said = masked("masks", status=1)
    assert "masks ends after 4 frames, a goes on" in said
    assert rows[2]["error"].startswith("masks: the mask is 0 in every pixel compared")
    assert "f3.png cannot be read" in rows[3]["error"]
    assert [row["lpips"] for row in rows[:2]] == expected(masks(2))


def test_one_mask_for_all_frames(masked, expected, tmp_path):
    Image.fromarray(masks(1)[0]).save(tmp_path / "mask.png")
    rows, said = masked("mask.png")
    assert [row["lpips"] for row in rows] == expected(5 * masks(1))
    assert "goes on" not in said


def clear_frames() -> list[Image.Image]:
    """The frames of A with alpha that shows only the discs."""
    clear = frames(5, 0)
    for image, mask in zip(clear, masks(5), strict=True):
        image.putalpha(Image.fromarray(mask))
    return clear


def test_alpha_of_the_frames(masked, expected, tmp_path):
    clear = clear_frames()
    save_frames(tmp_path / "clear", clear)
    clear[0].save(tmp_path / "clear.webp", save_all=True, append_images=clear[1:], lossless=True, exact=True)
    for a in ("clear", "clear.webp"):
        assert [row["lpips"] for row in masked("alpha", a=a)[0]] == expected(masks(5), clear)
    rows, _ = masked("alpha", status=1)
    assert rows[4]["error"].startswith("a has no alpha channel, and --mask alpha takes that of A")


def save_video(path, form, arrays):
    av = pytest.importorskip("av", reason="video files need PyAV")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        for array in arrays:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format=form)))
        container.mux(stream.encode())


def test_videos_of_masks(masked, expected, tmp_path):
    save_video(tmp_path / "masks.mkv", "gray", masks(5))
    rows, _ = masked("masks.mkv")
    assert [row["lpips"] for row in rows] == expected(masks(5))
    save_video(tmp_path / "clear.mkv", "bgra", [np.array(image)[:, :, [2, 1, 0, 3]] for image in clear_frames()])
    rows, _ = masked("alpha", a="clear.mkv")
    assert [row["lpips"] for row in rows] == expected(masks(5), clear_frames())


def test_a_range_is_not_for_the_masks(call, trunk, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for i in range(5):
            values = np.random.default_rng(i).integers(0, 4096, (48, 64)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / folder / f"{i}.png")
    save_video(tmp_path / "masks.mkv", "gray", masks(5))
    call("video", "a", "b", "--range", "0:4095", "--mask", "masks.mkv", "--json", "out.json", *trunk)
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["max"] == 0


@pytest.mark.parametrize("name", ["a.mkv", "a.webp", "a.gif"])
def test_a_video_without_alpha_has_no_mask_of_it(call, trunk, tmp_path, name):
    if name == "a.mkv":
        save_video(tmp_path / name, "gray", masks(5))
    else:
        first, *more = frames(5, 0)
        first.save(tmp_path / name, save_all=True, append_images=more)
    told = call("video", name, name, "--mask", "alpha", "--json", "out.json", *trunk, status=1)
    assert told.endswith(f"{name} has no alpha channel, and --mask alpha takes that of A, the reference"), "once"
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("side, most", [(2048, 3), (8, 2 * 8 + 2)])
def test_frames_in_memory_are_bounded_by_pixels(side, most):
    """Frames are read at most 2 units, or 4 million pixels, ahead of the network."""
    image = np.broadcast_to(np.uint8(0), (side, side, 3))
    read = taken = largest = 0

    def pairs():
        nonlocal read
        for _ in range(50):
            read += 1
            yield FramePair(None, 0, (image, image))

    def outcomes(numbered):
        nonlocal taken, largest
        found = {}
        for n, _ in numbered:
            time.sleep(0.005)  # lets the reader go as far ahead as it will
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


def test_one_mask_that_is_none_ends_the_run(call, trunk, tmp_path):
    save_frames(tmp_path / "a", frames(3, 0))
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "m.tif")
    told = call("video", "a", "a", "--mask", "m.tif", *trunk, status=1)
    assert told.count("m.tif") == 1
    assert "--mask: m.tif" in told


def test_a_full_alpha_channel_is_told(call, trunk, tmp_path):
    """If no frame has a pixel below 255. An animated WebP may have such a channel."""
    first, *more = (image.convert("RGBA") for image in frames(3, 0))
    first.putpixel((0, 0), (9, 9, 9, 254))
    first.save(tmp_path / "clear.webp", save_all=True, append_images=more, lossless=True)
    first.putpixel((0, 0), (9, 9, 9, 255))
    save_frames(tmp_path / "full", [first, *more])
    told = call("video", "full", "full", "--mask", "alpha", *trunk)
    assert "the mask is full, 255 in every pixel of all images" in told
    assert "the mask is full" not in call("video", "clear.webp", "clear.webp", "--mask", "alpha", *trunk)


def test_a_folder_of_masks_called_alpha(masked, expected, tmp_path):
    save_frames(tmp_path / "alpha", map(Image.fromarray, masks(5)))
    assert [row["lpips"] for row in masked("./alpha")[0]] == expected(masks(5))


def test_errors_are_told_once_for_all_their_frames(call, trunk, tmp_path):
    save_frames(tmp_path / "a", frames(30, 0))
    small = frames(30, 0)
    for n in (*range(5), 7, *range(10, 30)):
        small[n] = small[n].crop((0, 0, 20, 30))
    save_frames(tmp_path / "b", small)
    videos = ("video", "a", "b", "--json", "out.json", *trunk)
    told = call(*videos, status=1)
    assert told.count("sizes differ") == 1
    reason = "sizes differ: a is 64 x 48, b 20 x 30 (--resize or --crop makes them equal)"
    assert f"lpips-fast: frames 0 to 4, 7, 10 to 29: {reason}" in told
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row.get("error") for row in rows] == [None if n in (5, 6, 8, 9) else reason for n in range(30)]
    assert f"frame 0: {reason}" in call("video", "a", "b", "--strict", *trunk, status=1)


def test_frames_with_gaps_are_counted(call, trunk, tmp_path):
    """Every second frame has an error."""
    save_frames(tmp_path / "a", frames(24, 0))
    save_frames(tmp_path / "b", [image.crop((0, 0, 40 - 4 * (n % 2), 40)) for n, image in enumerate(frames(24, 0))])
    told = call("video", "a", "b", *trunk, status=1)
    assert "12 frames (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ...): sizes differ" in told


def test_mistakes(call, trunk, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    (tmp_path / "a").mkdir()
    save_noise(tmp_path / "a" / "0.png", 0)
    told = call("video", "a", "a", "--mask", "nothere", *trunk, status=1)
    assert "--mask: nothere: no such file or folder" in told
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert "error: nowhere.mp4: no such file or folder" in call("video", "nowhere.mp4", "a.png", *trunk, status=1)
    os.mkfifo("pipe.mp4")
    assert "pipe.mp4: neither a file nor a folder" in call("video", "pipe.mp4", "a.png", *trunk, status=1)
    pytest.importorskip("av", reason="video files need PyAV")
    told = call("video", "broken.mp4", "a.png", *trunk, status=1)
    assert told.endswith("broken.mp4 cannot be read as a video: Invalid data found when processing input")


def test_the_example_of_a_document(call, trunk, tmp_path):
    """The example in docs/cli.md has the keys of a real document, and its rows have the order of the columns."""
    save_video(tmp_path / "a.mkv", "gray", masks(2))
    call("video", "a.mkv", "a.mkv", "--json", "out.json", "--csv", "out.csv", *trunk)
    document = json.loads((tmp_path / "out.json").read_text())
    [text] = re.findall("```json\n(.*?)```", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), re.DOTALL)
    example = json.loads(text)
    assert list(example) == list(document)
    assert set(example["settings"]) < set(document["settings"])
    for get in (
        lambda d: d["inputs"]["a"],
        lambda d: d["pairing"]["b"],
        lambda d: d["summary"],
        lambda d: d["results"][0],
    ):
        assert list(get(example)) == list(get(document))
    columns = (tmp_path / "out.csv").read_text().split("\n")[0].split(",")
    assert list(document["results"][0]) == [name for name in columns if name not in ("error", "run")]
