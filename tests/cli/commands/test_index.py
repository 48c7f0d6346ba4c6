"""`index`: where it writes, and what is in its file."""

from __future__ import annotations

import signal

import pytest
from filelock import FileLock

from lpips_fast.search import Index

# A program whose units are of 4 images. A process of one rank dies after so many units of its own.
PROGRAM = """
import os, signal
from lpips_fast.cli import indexing, main

indexing._UNIT_IMAGES = 4
build, left = indexing.Recipe.build, [{after}]

def dies(*arguments):
    if not left[0] and os.environ.get("RANK", "0") == "{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return build(*arguments)

indexing.Recipe.build = dies
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def dying(tmp_path):
    """Writes the program."""

    def dying(after, rank=0):
        path = tmp_path / "program.py"
        path.write_text(PROGRAM.format(after=after, rank=rank))
        return path

    return dying


def test_where_an_index_goes(call, photos, trunk, monkeypatch):
    """Errors come before any work."""
    monkeypatch.setattr("lpips_fast.cli.updating.update_index", lambda *_: pytest.fail("images were read"))
    assert "does not go to stdout" in call("index", "photos", "-o", "-", *trunk, status=2)
    assert "no folder" in call("index", "photos", "-o", "nowhere/photos.index", *trunk, status=2)
    assert "photos" in call("index", "photos", "-o", "photos", *trunk, status=2)


def test_what_is_in_the_file(call, photos, trunk, fn):
    """Names in order, without the broken image's; how the images were read; and whether they are transparent."""
    told = call("index", "photos", "-o", "photos.index", "--background", "black", "--workers", 0, *trunk, status=1)
    assert "19 images: photos.index (whole vectors; 0 unchanged)" in told
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
    assert "(sketches of 128 numbers; 0 unchanged)" in call(*make, "--sketch", 128, status=1)
    assert Index.load(photos / "photos.index", fn).vectors is None
    assert "(sketches of 128 numbers; 19 unchanged)" in call(*make, status=1)
    told = call(*make, "--vectors", status=2)
    assert "photos.index was made with sketches of 128 numbers, and is asked for with whole vectors (--rebuild" in told
    told = call(*make, "--vectors", "--sketch", 64, "--rebuild", status=1)
    assert "(sketches of 64 numbers and whole vectors; 0 unchanged)" in told
    index = Index.load(photos / "photos.index", fn)
    assert index.header.sketch.length == 64
    assert len(index.vectors) == 19
    assert "--sketch" in call(*make, "--sketch", 63, status=2)


def test_a_killed_run_goes_on(run, call, photos, trunk, dying):
    """One process at a time."""
    make = ("index", "photos", "-o", "photos.index", "--sketch", 64, "--batch-size", 2, "--workers", 0, *trunk)
    run(*make, status=-signal.SIGKILL, script=dying(after=2))
    assert not (photos / "photos.index").exists()
    assert len([*photos.glob("photos.index.partial/unit-*.index")]) == 2
    with FileLock(photos / ".photos.index.lock"):
        assert "another run is writing it" in call(*make, status=2)
    done = run(*make, status=1)
    assert "19 images: photos.index (sketches of 64 numbers; 8 unchanged)" in done.stdout
    assert {path.name for path in photos.iterdir()} == {"photos", "photos.index", "query.png", "program.py"}
    (photos / "photos.index").rename(photos / "resumed.index")
    run(*make, status=1)
    assert (photos / "resumed.index").read_bytes() == (photos / "photos.index").read_bytes()


def test_several_processes_make_the_same_file(run, photos, trunk, dying):
    """Also if one of them dies, and others go on."""
    make = ("index", "photos", "--sketch", 64, "--batch-size", 2, "--workers", 0, *trunk)
    run(*make, "-o", "two.index", status=1, processes=2, script=dying(after=1, rank=1))
    assert not (photos / "two.index").exists()
    assert len([*photos.glob("two.index.partial/unit-*.index")]) >= 2, "the first unit of each"
    done = run(*make, "-o", "two.index", status=1, processes=2, script=dying(after=5))
    assert done.stdout.count("19 images: two.index (sketches of 64 numbers; ") == 1
    assert "; 0 unchanged)" not in done.stdout
    assert done.stderr.count("11.png cannot be read") == 1
    run(*make, "-o", "one.index", status=1, threads=1)
    assert (photos / "one.index").read_bytes() == (photos / "two.index").read_bytes()
    assert {path.name for path in photos.glob("*.index*")} == {"one.index", "two.index"}
