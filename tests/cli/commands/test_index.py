"""`index`: where it writes, and what is in its file."""

from __future__ import annotations

import shutil
import signal

import pytest
from filelock import FileLock

from lpips_fast.cli import indexing
from lpips_fast.search import Index
from tests.support.threads import threads

# A program whose units are of 4 images, and which is killed after so many.
PROGRAM = """
import os, signal
from lpips_fast.cli import indexing, main

indexing._UNIT_IMAGES = 4
build, left = indexing.Recipe.build, [{after}]

def dies(*arguments):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return build(*arguments)

indexing.Recipe.build = dies
if __name__ == "__main__":
    main()
"""


def test_where_an_index_goes(call, photos, trunk, monkeypatch):
    """Errors come before any work."""
    monkeypatch.setattr("lpips_fast.cli.updating.update_index", lambda *_: pytest.fail("images were read"))
    assert "does not go to stdout" in call("index", "photos", "-o", "-", *trunk, status=2)
    assert "no folder" in call("index", "photos", "-o", "nowhere/photos.index", *trunk, status=2)
    assert "photos" in call("index", "photos", "-o", "photos", *trunk, status=2)


def test_what_is_in_the_file(call, photos, trunk, fn):
    """Names in order, without the broken image's; how the images were read; and whether they are transparent."""
    told = call("index", "photos", "-o", "photos.index", "--background", "black", "--workers", 0, *trunk, status=1)
    assert "19 images: photos.index (whole vectors; 0 from before)" in told
    assert "11.png cannot be read" in told
    index = Index.load(photos / "photos.index", fn)
    assert [*index.names] == [f"{i:02d}.png" for i in range(20) if i != 11]
    assert index.header.size == (32, 40)
    assert not index.header.resized
    assert index.header.raw is False
    assert index.header.reading == {"background": "black", "range": None}
    assert (index.header.transparent, index.header.opaque) == (False, True)


def test_options(call, photos, trunk, fn):
    make = ("index", "photos", "-o", "photos.index", "--workers", 0, *trunk)
    assert "(sketches of 128 numbers; 0 from before)" in call(*make, "--sketch", 128, status=1)
    assert Index.load(photos / "photos.index", fn).vectors is None
    assert "(sketches of 128 numbers; 19 from before)" in call(*make, status=1)
    told = call(*make, "--vectors", status=2)
    assert "photos.index was made with sketches of 128 numbers, and is asked for with whole vectors (--rebuild" in told
    told = call(*make, "--vectors", "--sketch", 64, "--rebuild", status=1)
    assert "(sketches of 64 numbers and whole vectors; 0 from before)" in told
    index = Index.load(photos / "photos.index", fn)
    assert index.header.sketch.length == 64
    assert len(index.vectors) == 19
    assert "--sketch" in call(*make, "--sketch", 63, status=2)


def test_a_killed_run_goes_on(run, call, photos, trunk, monkeypatch):
    """With one process or two, which make the same file."""
    program = photos / "program.py"
    program.write_text(PROGRAM.format(after=2))
    make = ("index", "photos", "-o", "photos.index", "--sketch", 64, "--batch-size", 2, "--workers", 0, *trunk)
    run(*make, status=-signal.SIGKILL, threads=1, script=program)
    assert not (photos / "photos.index").exists()
    assert len([*photos.glob("photos.index.partial/unit-*.index")]) == 2
    with FileLock(photos / ".photos.index.lock"):
        assert "another run is writing it" in call(*make, status=2)
    shutil.copytree(photos / "photos.index.partial", photos / "of_two.index.partial")
    monkeypatch.setattr(indexing, "_UNIT_IMAGES", 4)
    with threads(1):  # as torchrun's processes have
        assert "19 images: photos.index (sketches of 64 numbers; 8 " in call(*make, status=1)
        call(*make[:3], "whole.index", *make[4:], status=1)
    program.write_text(PROGRAM.format(after=-1))
    done = run(*make[:3], "of_two.index", *make[4:], status=1, processes=2, script=program)
    assert done.stdout.count("19 images: of_two.index (sketches of 64 numbers; 8 ") == 1
    assert done.stderr.count("11.png cannot be read") == 1
    whole = (photos / "whole.index").read_bytes()
    assert (photos / "photos.index").read_bytes() == (photos / "of_two.index").read_bytes() == whole
    left = {path.name for path in photos.iterdir()} - {"photos", "query.png", "program.py"}
    assert left == {"photos.index", "of_two.index", "whole.index"}
