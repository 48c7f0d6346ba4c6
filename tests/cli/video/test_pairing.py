"""Which frames of two videos are compared: `video --pair-by`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.errors import ReadError
from lpips_fast.cli.video.decoding import Frame
from lpips_fast.cli.video.pairing import Pairing, Stream
from tests.support.image_files import soft_disc
from tests.support.tolerances import PRINTED_TOLERANCE


def stream(name: str, times: Iterable[float | None], *, breaks_off: bool = False) -> Stream:
    frames = [Frame(time, object()) for time in times]
    return Stream(Path(name), iter([*frames, *([Frame(None, f"{name} breaks off")] if breaks_off else [])]))


def paired(pairing: Pairing) -> tuple[list[tuple[int, ...]], list[str]]:
    """The numbers of the frames that belong together, and the messages about the end."""
    told: list[str] = []
    return [tuple(moment.number for _, moment in found) for found in pairing.frames(told.append)], told


def pairs(a: Sequence[float | None], b: Sequence[float | None], by=None, strict=False):
    """The numbers of B's frames that belong to A's frames, the messages about the end, and B in the results."""
    pairing = Pairing(stream("a", a), stream("b", b), None, by, strict)
    found, told = paired(pairing)
    assert [n for n, _ in found] == list(range(len(found)))
    return [m for _, m in found], told, pairing.described()["b"]


def rate(n: int, per_second: float, start: float = 0.0, without: Sequence[int] = (), digits: int = 9) -> list[float]:
    """The times of frames at a constant rate, without dropped frames, rounded as containers round."""
    return [round(start + i / per_second, digits) for i in range(n) if i not in without]


@pytest.mark.parametrize("start", [0.0, 1.4])
@pytest.mark.parametrize("digits", [9, 3])
@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 30, 60, 240])
def test_equal_times_give_the_pairs_by_index(fps, digits, start):
    """However the container rounds times, and wherever the files begin."""
    a, b = rate(500, fps), rate(500, fps, start, digits=digits)
    for one, other in ((a, b), (b, a)):
        found, told, described = pairs(one, other)
        assert found == list(range(500))
        assert not told
        assert (described["by"], described["numbers_differ"], described["unused"]) == ("time", 0, [])
        assert described["first_seconds"] == [one[0], other[0]]


@pytest.mark.parametrize("fps", [20, 25, 30])
def test_a_gif_rounds_to_hundredths(fps):
    assert pairs(rate(90, fps), rate(90, fps, digits=2))[0] == list(range(90))
    assert pairs(rate(90, fps, digits=2), rate(90, fps))[0] == list(range(90))


@pytest.mark.parametrize("digits", [9, 3])
def test_dropped_frames(digits):
    """The frame before a dropped one is shown for longer."""
    whole, dropped = rate(12, 30, digits=digits), rate(12, 30, without=(4, 9), digits=digits)
    found, told, described = pairs(whole, dropped)
    assert found == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9]
    assert not told
    assert (described["numbers_differ"], described["unused"]) == (8, [])
    found, told, described = pairs(dropped, whole)
    assert found == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert not told
    assert (described["numbers_differ"], described["unused"]) == (6, [4, 9])


def test_other_rates():
    found, told, described = pairs(rate(30, 30), rate(15, 15))
    assert found == [i // 2 for i in range(30)]
    assert not told
    found, told, described = pairs(rate(15, 15), rate(30, 30))
    assert found == [2 * i for i in range(15)]
    assert not told
    assert described["unused"] == [2 * i + 1 for i in range(15)]
    assert pairs(rate(24, 24), rate(30, 30))[0] == [10 * i + n for i in range(3) for n in (0, 1, 2, 4, 5, 6, 7, 9)]


def test_variable_rates():
    a = [0.0, 0.1, 0.15, 0.5, 0.52, 0.54, 1.0]
    assert pairs(a, [0.0, 0.12, 0.5, 0.53, 0.9])[0] == [0, 1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("digits", [9, 3])
def test_nearly_equal_rates(digits):
    """The rates drift apart by a frame in half a minute, and each frame is paired with the nearest."""
    a, b = rate(900, 30, digits=digits), rate(900, 30000 / 1001, digits=digits)
    for one, other in ((a, b), (b, a)):
        found = pairs(one, other)[0]
        assert found[:400] == list(range(400))
        assert all(abs(other[m] - t) < 0.021 for t, m in zip(one, found, strict=False))
    webp = [0.033 * i for i in range(24)]  # whole milliseconds, which add up
    assert pairs(webp, rate(24, 30))[0] == pairs(rate(24, 30), webp)[0] == list(range(24))


def test_the_last_frame_of_b_is_shown_for_its_duration():
    b = Stream(Path("b"), iter([Frame(0.0, object()), Frame(0.1, object(), duration=0.5)]))
    found, told = paired(Pairing(stream("a", rate(10, 10)), b, None, None, False))
    assert [m for _, m in found] == [0, 1, 1, 1, 1, 1]
    assert told == ["b ends after 2 frames (0.6 s), a goes on"]


@pytest.mark.parametrize("start", [0.0, 1.4])
def test_one_ends_early(start):
    found, told, _ = pairs(rate(12, 30), rate(4, 15, start))
    assert (found, told) == ([0, 0, 1, 1, 2, 2, 3, 3], ["b ends after 4 frames (0.2667 s), a goes on"])
    found, told, described = pairs(rate(4, 15), rate(12, 30, start))
    assert (found, told) == ([0, 2, 4, 6], ["a ends after 4 frames (0.2667 s), b goes on"])
    assert described["unused"] == [1, 3, 5, 7], "what is after the end of A is not read"
    assert pairs(rate(1, 30), rate(3, 30))[1] == ["a ends after 1 frame, b goes on"]
    assert pairs(rate(3, 30), rate(1, 30))[1] == ["b ends after 1 frame, a goes on"]
    assert pairs([], rate(1, 30))[1] == ["a ends after 0 frames, b goes on"]
    assert pairs(rate(1, 30), [])[1] == ["b ends after 0 frames, a goes on"]
    assert pairs(rate(1, 30), [])[2]["first_seconds"] == [0.0, None]


def test_by_index(capsys):
    found, told, described = pairs(rate(12, 30), rate(12, 15), "index")
    assert (found, told) == (list(range(12)), [])
    assert (described["by"], described["times_differ"]) == ("index", 11)
    assert pairs(rate(12, 30), rate(12, 30, 1.4, digits=3), "index")[2]["times_differ"] == 0


NO_TIMES = [None] * 5


def test_without_times():
    for a, b in ((NO_TIMES, rate(5, 30)), (rate(5, 30), NO_TIMES), (NO_TIMES, NO_TIMES)):
        found, told, described = pairs(a, b)
        assert (found, told, described["by"], described["times_differ"]) == ([0, 1, 2, 3, 4], [], "index", 0)
        with pytest.raises(ReadError, match=f"--pair-by time: {'a' if a is NO_TIMES else 'b'} has no times "):
            pairs(a, b, "time")


@pytest.mark.parametrize("bad", [None, 0.1, 0.05])
def test_times_that_go_missing(bad, capsys):
    """Or go backwards. From there on frames are paired by index."""
    good = rate(10, 30)
    broken = [*rate(10, 30, without=(2,))[:5], bad, *rate(10, 30)[7:]]
    for a, b, expected in ((good, broken, [0, 1, 1, 2, 3, 4, 5, 6, 7, 8]), (broken, good, [0, 1, 3, 4, 5, 6, 7, 8, 9])):
        pairing = Pairing(stream("a", a), stream("b", b), None, None, False)
        assert [m for _, m in paired(pairing)[0]] == expected
        assert pairing.described()["b"]["index_from"] == (5 if a is broken else 6)
        pairing.tell()
        assert (
            f"{'a' if a is broken else 'b'} frame 5 has no time, or none after that of the frame before"
            in capsys.readouterr().err
        )
        with pytest.raises(
            ReadError, match=r"--pair-by time: . frame 5 has no time, or none after that of the frame before"
        ):
            pairs(a, b, "time")


def test_a_file_that_breaks_off():
    """Its last frame says so, a step after the frame before."""
    pairing = Pairing(stream("a", rate(12, 30)), stream("b", rate(3, 15), breaks_off=True), None, "time", False)
    found, told = paired(pairing)
    assert [m for _, m in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert told == ["b ends after 4 frames (0.2667 s), a goes on"]


def test_a_file_that_breaks_off_at_once():
    """Its frame is paired by index, and an error about times does not hide what is wrong."""
    for times, expected in (([], [0]), ([0.0], [0, 1])):

        def pairing(by, times=times):
            return Pairing(stream("a", rate(5, 30)), stream("b", times, breaks_off=True), None, by, False)

        assert [m for _, m in paired(pairing(None))[0]] == expected
        with pytest.raises(ReadError, match="--pair-by time: b breaks off"):
            paired(pairing("time"))


def test_masks_follow_a():
    a, b = rate(6, 30), rate(6, 30, without=(2,))
    found, told = paired(Pairing(stream("a", a), stream("b", b), stream("m", rate(3, 15)), None, False))
    assert found == [(0, 0, 0), (1, 1, 0), (2, 1, 1), (3, 2, 1), (4, 3, 2), (5, 4, 2)]
    assert not told
    for by in (None, "time"):
        found, told = paired(Pairing(stream("a", a), stream("b", b), stream("m", NO_TIMES), by, False))
        assert found == [(0, 0, 0), (1, 1, 1), (2, 1, 2), (3, 2, 3), (4, 3, 4)], "a folder of masks is by index"
        assert told == ["m ends after 5 frames, a goes on"]


def test_strictly_every_frame_of_b_has_a_counterpart():
    with pytest.raises(ReadError, match="b frame 4 is paired with none of A"):
        pairs(rate(12, 30, without=(4, 9)), rate(12, 30), strict=True)
    assert pairs(rate(12, 30), rate(12, 30, without=(4, 9)), strict=True)[1] == []


def test_frames_are_read_once_and_one_ahead():
    read = 0

    def frames():
        nonlocal read
        for time in rate(100, 30):
            read += 1
            yield Frame(time, object())

    pairing = Pairing(stream("a", rate(50, 15)), Stream(Path("b"), frames()), None, None, False)
    for n, _ in enumerate(pairing.frames(lambda told: None)):
        assert read <= 2 * n + 2
    assert read == 100


def picture(i: int) -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    smooth = [128 + 100 * np.sin(x / 7 + 0.8 * i), 128 + 100 * np.cos(y / 9 - 0.5 * i), 128 + 0.0 * x]
    return np.stack(smooth, axis=-1).astype(np.uint8)


def save_video(path, numbers: Sequence[int], fps: int = 30, pictures=picture, start: int = 0) -> None:
    """A video of pictures by number, each at its time."""
    av = pytest.importorskip("av", reason="video files need PyAV")
    base = Fraction(1, fps)
    lossless = path.suffix == ".mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1" if lossless else "mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 64, 48, "bgr0" if lossless else "yuv420p"
        video.codec_context.time_base = base
        for i in numbers:
            frame = av.VideoFrame.from_ndarray(pictures(i), format="rgb24")
            frame.pts, frame.time_base = i + start, base
            container.mux(video.encode(frame))
        container.mux(video.encode())


@pytest.fixture
def compare(call, trunk, tmp_path):
    """The document of `video`, and its messages."""

    def compare(*arguments, status=0):
        said = call("video", *arguments, "--json", "out.json", *trunk, status=status)
        return json.loads((tmp_path / "out.json").read_text()), said

    return compare


@pytest.fixture
def apart(measure):
    """The distance of two pictures by number."""
    return lambda i, j: pytest.approx(measure(picture(i), picture(j)), rel=PRINTED_TOLERANCE)


def test_dropped_frames_of_a_video(compare, apart, tmp_path):
    """2 of 12 are dropped: by index nearly all pairs would be wrong."""
    kept = [i for i in range(12) if i not in (4, 9)]
    shown = [0, 1, 2, 3, 3, 5, 6, 7, 8, 8, 10, 11]
    save_video(tmp_path / "a.mkv", range(12))
    save_video(tmp_path / "b.mkv", kept)
    document, said = compare("a.mkv", "b.mkv")
    rows = document["results"]
    assert [kept[row["frame_b"]] for row in rows] == shown
    assert [row["lpips"] for row in rows] == [apart(i, j) for i, j in enumerate(shown)]
    assert document["pairing"]["b"]["by"] == "time"
    assert document["settings"]["pair_by"] is None
    assert "a.mkv and b.mkv are paired by time: the frame numbers differ in 8 of 12 pairs (--pair-by index" in said
    by_index, said = compare("a.mkv", "b.mkv", "--pair-by", "index")
    assert [row["lpips"] for row in by_index["results"]] == [apart(i, j) for i, j in enumerate(kept)]
    assert [row["frame_b"] for row in by_index["results"]] == list(range(10))
    assert "by index: the times differ by more than half a frame in 6 of 10 pairs (--pair-by time" in said
    assert by_index["pairing"]["b"]["by"] == "index"
    assert document["summary"]["mean"] < by_index["summary"]["mean"] / 3
    document, said = compare("b.mkv", "a.mkv")
    assert [row["lpips"] for row in document["results"]] == [apart(i, i) for i in kept]
    assert document["pairing"]["b"]["unused"] == [4, 9]
    assert "the frame numbers differ in 6 of 10 pairs, and 2 frames (4, 9) of a.mkv in none (" in said


def test_thirty_and_fifteen_frames_a_second(compare, apart, tmp_path):
    save_video(tmp_path / "a.mkv", range(12))
    save_video(tmp_path / "b.mkv", range(6), 15, lambda i: picture(2 * i))
    rows = compare("a.mkv", "b.mkv")[0]["results"]
    assert [row["lpips"] for row in rows] == [apart(i, i // 2 * 2) for i in range(12)]
    rows = compare("b.mkv", "a.mkv")[0]["results"]
    assert [row["lpips"] for row in rows] == [apart(2 * i, 2 * i) for i in range(6)]


@pytest.mark.parametrize("name", ["b.mp4", "b.avi", "b.ts", "b.mkv"])
def test_containers_agree(compare, tmp_path, name):
    save_video(tmp_path / "a.mp4", range(12))
    save_video(tmp_path / name, range(12), start=0 if name == "b.avi" else 7)  # AVI would begin with a frame at 0
    document, said = compare("a.mp4", name)
    assert [row["frame_b"] for row in document["results"]] == list(range(12))
    assert document["pairing"]["b"]["by"] == "time"
    assert "are paired" not in said
    assert "begin at" not in said, "MPEG-TS shifts the whole file"


def test_other_starts_are_told_where_the_ends_are_apart_too(compare, tmp_path):
    """A dropped first frame does this, and shifts all pairs."""
    save_video(tmp_path / "a.mkv", range(12))
    save_video(tmp_path / "late.ts", range(12), start=7)
    save_video(tmp_path / "short.ts", range(11), start=7)
    assert "begin at" not in compare("a.mkv", "late.ts")[1]
    said = compare("a.mkv", "short.ts")[1]
    assert "short.ts ends after 11 frames (0.3667 s), a.mkv goes on" in said
    assert "a.mkv and short.ts begin at 0 s and 0.2333 s: times count from their first frames" in said


def test_streams_without_times(compare, mistake, trunk, tmp_path):
    """A bare H.264 stream; and AVI, where frames that are stored out of order have the times of other frames."""
    av = pytest.importorskip("av", reason="video files need PyAV")
    for name in ("b.h264", "b.avi"):
        with av.open(str(tmp_path / name), "w") as container:
            video = container.add_stream("libx264", rate=30, options={"bf": "2", "qp": "1"})
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for i in range(12):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
            container.mux(video.encode())
    save_video(tmp_path / "a.mp4", range(12))
    for name in ("b.h264", "b.avi"):
        document, said = compare("a.mp4", name)
        assert [row["frame_b"] for row in document["results"]] == list(range(12))
        assert document["pairing"]["b"]["by"] == "index"
        assert f"{name} has no times: frames are paired by index" in said
        told = mistake("video", "a.mp4", name, "--pair-by", "time", *trunk, status=1)
        assert f"--pair-by time: {name} has no times (--pair-by index)" in told


def test_folders_and_animations(compare, trunk, mistake, tmp_path):
    (tmp_path / "folder").mkdir()
    images = [Image.fromarray(picture(i)) for i in range(8)]
    for i, image in enumerate(images):
        image.copy().save(tmp_path / "folder" / f"{i}.png")
    document, said = compare("folder", "folder")
    assert (document["pairing"]["b"]["by"], document["results"][7]["seconds"]) == ("index", None)
    assert "are paired" not in said
    told = mistake("video", "folder", "folder", "--pair-by", "time", *trunk, status=1)
    assert "--pair-by time: folder has no times (--pair-by index)" in told
    images[0].save(tmp_path / "even.webp", save_all=True, append_images=images[1:], duration=40, lossless=True)
    varied = [images[i] for i in (0, 3, 4, 6)]
    for name in ("varied.webp", "varied.gif", "varied.png"):
        options = {"lossless": True} if name == "varied.webp" else {}
        varied[0].save(tmp_path / name, save_all=True, append_images=varied[1:], duration=[120, 40, 80, 80], **options)
        document, _ = compare("even.webp", name)
        assert [row["frame_b"] for row in document["results"]] == [0, 0, 0, 1, 2, 2, 3, 3]
    images[0].save(tmp_path / "pages.tif", save_all=True, append_images=images[1:])
    images[0].save(tmp_path / "hasty.gif", save_all=True, append_images=images[1:])
    for name in ("pages.tif", "hasty.gif"):
        document, said = compare("even.webp", name)
        assert [row["frame_b"] for row in document["results"]] == list(range(8))
        assert f"{name} has no times" in said
    assert "has no times" not in compare("folder", "pages.tif")[1]


def test_masks_at_another_rate(compare, measure, tmp_path):
    discs = [np.roll(soft_disc(48, 64), 6 * i, axis=1) for i in range(3)]
    save_video(tmp_path / "a.mkv", range(6))
    save_video(tmp_path / "b.mkv", range(6), pictures=lambda i: picture(i + 1))
    save_video(tmp_path / "m.mkv", range(3), 15, lambda i: np.repeat(discs[i][..., None], 3, axis=2))
    document, said = compare("a.mkv", "b.mkv", "--mask", "m.mkv")
    expected = [measure(picture(i), picture(i + 1), discs[i // 2]) for i in range(6)]
    assert [row["lpips"] for row in document["results"]] == [
        pytest.approx(value, rel=PRINTED_TOLERANCE) for value in expected
    ]
    assert document["pairing"]["mask"]["numbers_differ"] == 5
    assert "a.mkv and m.mkv are paired by time: the frame numbers differ in 5 of 6 pairs" in said


def test_resuming(call, mistake, trunk, tmp_path):
    save_video(tmp_path / "a.mkv", range(12))
    save_video(tmp_path / "b.mkv", [i for i in range(12) if i not in (4, 9)])
    arguments = ("video", "a.mkv", "b.mkv", "--csv", "out.csv", "--batch-size", 2, *trunk)
    call(*arguments)
    lines = (tmp_path / "out.csv").read_text().splitlines(keepends=True)
    assert lines[0] == "frame,seconds,lpips,error,frame_b,run\n", "older programs read the first columns"
    rows = list(csv.DictReader(lines))
    assert [int(row["frame_b"]) for row in rows] == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9]
    assert [int(row["frame"]) for row in rows] == list(range(12))
    (tmp_path / "out.csv").write_text("".join(lines[:6]))
    said = call(*arguments, "--resume", "--json", "out.json")
    assert (tmp_path / "out.csv").read_text().splitlines(keepends=True) == lines
    assert "the frame numbers differ in 8 of 12 pairs" in said
    assert "other settings" in mistake(*arguments, "--pair-by", "index", "--resume")


def test_the_plot_says_how(call, trunk, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("lpips_fast.cli.drawing.save_curve", lambda *arguments: titles.append(arguments[-1]))
    save_video(tmp_path / "a.mkv", range(4))
    for by in ("time", "index"):
        call("video", "a.mkv", "a.mkv", "--pair-by", by, "--plot", "out.png", *trunk)
        assert titles.pop().endswith(f", paired by {by}")
