"""Index files that are built, brought up to date, cut short and gone on with: the bytes are always the same."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lpips_fast import im2tensor, load_image
from lpips_fast.cli import indexing, processes, updating
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.indexing import Kind, Recipe
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.settings import Reading
from lpips_fast.cli.updating import update_index
from lpips_fast.search import Index, files
from tests.support.image_files import ODD_NAMES, save_noise
from tests.support.indexes import rewrite
from tests.support.tolerances import INDEX_EMBEDDING_TOLERANCE

KINDS = Kind(64, False), Kind(None, True), Kind(64, True)


@pytest.fixture
def folder(tmp_path):
    for i in range(9):
        save_noise(tmp_path / "photos" / f"{i}.png", i)
    return tmp_path / "photos"


@pytest.fixture
def update(folder, settings):
    """Brings an index file beside the folder up to date. Units are of 4 images, and batches of 2."""

    def update(name="photos.index", kind=KINDS[0], size=None, *, rebuild=False, where=folder, reading=None, **options):
        model = Model(dataclasses.replace(settings, **{"batch_size": 2, **options}))
        reading = reading or Reading()
        path = folder.parent / name
        return update_index(where, path, model, size, reading, Notices(reading), kind, rebuild)

    return update


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(indexing, "_UNIT_IMAGES", 4)


@pytest.fixture
def read(monkeypatch):
    """The names of the images that are read."""
    names = []
    monkeypatch.setattr(Notices, "image", lambda self, name, image: (names.append(name.name), image.pixels)[1])
    return names


def cut_short(monkeypatch, after):
    """Makes the unit after so many fail, once."""
    build, left = Recipe.build, [after]

    def fail(*arguments):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return build(*arguments)

    monkeypatch.setattr(Recipe, "build", fail)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_update_gives_the_bytes_of_a_new_index(folder, update, read, kind):
    """Also where an image goes through the trunk among others than before."""
    for name in ("4.png", "6.png"):
        os.rename(folder / name, folder.parent / name)
    assert update(kind=kind, batch_size=8) == (7, 0, kind, [])
    for name in ("4.png", "6.png"):
        os.rename(folder.parent / name, folder / name)
    save_noise(folder / "1.png", 100)
    (folder / "2.png").unlink()
    os.utime(folder / "8.png", ns=(0, 0))
    save_noise(folder / "sub" / "5.png", 101)
    save_noise(folder / ODD_NAMES[1], 102)
    read.clear()
    assert update(kind=kind, batch_size=8) == (10, 4, kind, [])
    assert sorted(read) == sorted(["1.png", "4.png", "5.png", "6.png", "8.png", ODD_NAMES[1]])
    read.clear()
    assert update("new.index", kind, batch_size=8) == (10, 0, kind, [])
    assert len(read) == 10
    assert (folder.parent / "photos.index").read_bytes() == (folder.parent / "new.index").read_bytes()
    read.clear()
    before = (folder.parent / "photos.index").stat()
    assert update(kind=kind, batch_size=8) == (10, 10, kind, [])
    assert not read
    assert (folder.parent / "photos.index").stat() == before, "it is not written if nothing has changed"
    assert update(kind=kind, rebuild=True, batch_size=8) == (10, 0, kind, [])
    assert len(read) == 10
    assert (folder.parent / "photos.index").read_bytes() == (folder.parent / "new.index").read_bytes()
    assert {path.name for path in folder.parent.iterdir()} == {"photos", "photos.index", "new.index"}


def test_an_update_of_all_images(folder, update):
    update()
    for i, path in enumerate(sorted(folder.rglob("*.*"))):
        save_noise(path, 200 + i)
    assert update()[:2] == (9, 0)
    update("new.index")
    assert (folder.parent / "photos.index").read_bytes() == (folder.parent / "new.index").read_bytes()


def test_the_rows(folder, update, fn):
    """In the order of the folder, each with the stamps of its file."""
    update(kind=Kind(64, True))
    index = Index.load(folder.parent / "photos.index", fn)
    assert [*index.names] == [f"{i}.png" for i in range(9)]
    stats = [(folder / name).stat() for name in index.names]
    assert index.stamps.tolist() == [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    assert index.header.folder == str(folder)
    images = torch.cat([im2tensor(load_image(folder / name)) for name in index.names])
    expected = Index.build(fn, images, sketch=64, vectors=True)
    torch.testing.assert_close(index.vectors, expected.vectors, **INDEX_EMBEDDING_TOLERANCE)
    torch.testing.assert_close(index.sketches, expected.sketches, **INDEX_EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("after", (0, 1, 2))
def test_a_run_that_was_cut_short_goes_on(folder, update, read, monkeypatch, after):
    """With what is finished, also if images were added or changed since."""
    cut_short(monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        update()
    assert not (folder.parent / "photos.index").exists()
    assert len([*folder.parent.glob("photos.index.partial/*")]) == after
    save_noise(folder / "3 and a half.png", 100)
    os.utime(folder / "2.png", ns=(0, 0))
    read.clear()
    finished = max(0, 4 * after - 1)
    assert update() == (10, finished, KINDS[0], [])
    assert len(read) == 10 - finished
    update("new.index")
    assert (folder.parent / "photos.index").read_bytes() == (folder.parent / "new.index").read_bytes()
    assert not (folder.parent / "photos.index.partial").exists()


def test_an_update_that_was_cut_short_goes_on(folder, update, read, monkeypatch):
    """The file stays as it is until the end."""
    for i in range(6):
        os.rename(folder / f"{i}.png", folder.parent / f"{i}.png")
    update()
    before = (folder.parent / "photos.index").read_bytes()
    for i in range(6):
        os.rename(folder.parent / f"{i}.png", folder / f"{i}.png")
    cut_short(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        update()
    assert (folder.parent / "photos.index").read_bytes() == before
    read.clear()
    assert update() == (9, 7, KINDS[0], [])
    assert read == ["4.png", "5.png"]


def test_a_rebuild_takes_what_a_rebuild_has_made(folder, update, read, monkeypatch):
    """And nothing else. A run without --rebuild takes it, too."""
    update("new.index")

    def cut(**options):
        cut_short(monkeypatch, 1)
        with pytest.raises(KeyboardInterrupt):
            update(**options)
        return sorted(path.name for path in folder.parent.glob("photos.index.partial/*"))

    assert cut() == ["unit-000000.index"]
    for rebuild in (True, False):
        read.clear()
        assert cut(rebuild=True) == ["rebuilt-000000.index"]
        assert read == [f"{i}.png" for i in range(4)], "none is taken from the unit"
        read.clear()
        assert update(rebuild=rebuild) == (9, 4, KINDS[0], [])
        assert read == [f"{i}.png" for i in range(4, 9)]
        assert (folder.parent / "photos.index").read_bytes() == (folder.parent / "new.index").read_bytes()
        assert not (folder.parent / "photos.index.partial").exists()
        (folder.parent / "photos.index").unlink()


def test_a_file_is_replaced_once_it_is_whole(folder, update, read, monkeypatch):
    """If the run ends before it is, or before what was finished is removed, the next one has nothing to embed."""
    path, replace = folder.parent / "photos.index", os.replace

    def failing(source, to):
        return 1 / 0 if to == path else replace(source, to)

    def keeping(rmdir):
        return 1 / 0 if path.exists() else None

    for module, function, fails in ((updating.os, "replace", failing), (updating.Path, "rmdir", keeping)):
        with monkeypatch.context() as patched:
            patched.setattr(module, function, fails)
            with pytest.raises(ZeroDivisionError):
                update()
        assert path.exists() == (function == "rmdir")
        read.clear()
        assert update() == (9, 9, KINDS[0], [])
        assert not read
        assert not (folder.parent / "photos.index.partial").exists()
        path.unlink()


def test_units_that_do_not_fit_are_made_again(folder, update, read, monkeypatch):
    cut_short(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        update()
    partial = folder.parent / "photos.index.partial"
    first, _ = sorted(partial.iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    (partial / f".{first.name}.abc.index").write_bytes(b"cut short")
    shutil.copytree(partial, folder.parent / "other.index.partial")
    read.clear()
    assert update() == (9, 4, KINDS[0], [])
    assert read == ["0.png", "1.png", "2.png", "3.png", "8.png"]
    assert update("other.index", Kind(128, False)) == (9, 0, Kind(128, False), [])
    assert not [*folder.parent.glob("*.partial")]


def test_a_file_that_is_refused_is_not_read_through(update, monkeypatch):
    update()
    monkeypatch.setattr(files, "sound_rows", lambda path: pytest.fail("it was read"))
    with pytest.raises(UsageError, match="is asked for with --size"):
        update(size=(48, 40))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_that_are_damaged_are_made_again(folder, update, read, monkeypatch, capsys, kind):
    """Of the file, also if nothing else is to do, and of units."""
    update("new.index", kind)
    path, column = folder.parent / "photos.index", "vectors" if kind.vectors else "sketches"

    def damage(path, row):
        with safe_open(path, "pt") as file:
            numbers = file.get_tensor(column)
        numbers[row, 0] = -numbers[row, 0] + 1
        rewrite(path, {column: numbers})

    update(kind=kind)
    damage(path, 3)
    read.clear()
    assert update(kind=kind) == (9, 8, kind, [])
    assert read == ["3.png"]
    assert "photos.index is damaged: 1 of its 9 images are not taken from it" in capsys.readouterr().err
    assert path.read_bytes() == (folder.parent / "new.index").read_bytes()
    path.unlink()
    cut_short(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        update(kind=kind)
    damage(folder.parent / "photos.index.partial" / "unit-000000.index", 2)
    read.clear()
    assert update(kind=kind) == (9, 3, kind, [])
    assert read == ["2.png", *(f"{i}.png" for i in range(4, 9))]
    assert path.read_bytes() == (folder.parent / "new.index").read_bytes()
    assert not capsys.readouterr().err


def test_an_unreadable_image_is_tried_again(folder, update, monkeypatch):
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[:500])
    cut_short(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        update()
    for finished in (3, 8):
        count, kept, _, (why,) = update()
        assert (count, kept) == (8, finished)
        assert "2.png cannot be read" in why
    with pytest.raises(ReadError, match=r"2\.png cannot be read"):
        update(strict=True)
    (folder / "2.png").write_bytes(content)
    assert update() == (9, 8, KINDS[0], [])
    update("new.index")
    assert (folder.parent / "photos.index").read_bytes() == (folder.parent / "new.index").read_bytes()


def test_no_readable_image(folder, update):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ReadError, match=r"none of the 9 images can be read: .*0\.png"):
        update(size=(40, 32))
    assert [path.name for path in folder.parent.iterdir()] == ["photos"]


def test_transparent_images_are_remembered(folder, update, fn, settings):
    """Also after they are gone, since rows do not say which they were."""

    def transparency():
        header = Index.load(folder.parent / "photos.index", fn).header
        return header.transparent, header.opaque

    update()
    assert transparency() == (False, True)
    with Image.open(folder / "3.png") as image:
        image.putalpha(100)
        image.save(folder / "clear.png")
    update()
    assert transparency() == (True, True)
    (folder / "clear.png").unlink()
    update()
    assert transparency() == (True, True)


def test_a_transparent_image_among_opaque_ones_is_told_of(folder, settings, capsys):
    """Also if the opaque ones were there before."""

    def told():
        notices = Notices(Reading())
        update_index(folder, folder.parent / "photos.index", Model(settings), None, Reading(), notices)
        notices.tell("other images are not")
        return capsys.readouterr().err

    assert told() == ""
    with Image.open(folder / "3.png") as image:
        image.putalpha(100)
        image.save(folder / "clear.png")
    assert "clear.png: transparent, and other images are not" in told()
    assert told() == ""


@pytest.mark.parametrize(
    ("made", "asked", "why"),
    (
        ({}, {"size": (48, 40)}, "with no --size, and is asked for with --size 48x40"),
        ({"size": (48, 40)}, {"size": (40, 48)}, "with --size 48x40, and is asked for with --size 40x48"),
        ({"size": (48, 40)}, {}, "with --size 48x40, and is asked for with no --size"),
        ({}, {"kind": Kind(128, False)}, "with sketches of 64 numbers, and is asked for with sketches of 128 numbers"),
        ({}, {"kind": Kind(64, True)}, "is asked for with sketches of 64 numbers and whole vectors"),
        ({}, {"normalize": False}, "with --normalize, and is asked for with --no-normalize"),
        ({}, {"reading": Reading(background="black")}, "with --background 'white', and is asked for with --background"),
        ({}, {"reading": Reading(range="0:9")}, "with no --range, and is asked for with --range 0:9"),
        ({}, {"precision": "bfloat16"}, "with --precision float32, and is asked for with --precision bfloat16"),
        ({}, {"version": "0.0"}, r"with --version 0\.1, and is asked for with --version 0\.0"),
    ),
)
def test_other_options_are_refused(folder, update, made, asked, why):
    update(**made)
    before = (folder.parent / "photos.index").read_bytes()
    with pytest.raises(UsageError, match=rf"photos\.index .*{why}.*\(--rebuild builds it anew\)"):
        update(**asked)
    assert (folder.parent / "photos.index").read_bytes() == before
    if "reading" not in asked or asked["reading"].range is None:  # PNG of 8 bits have no range
        assert update(**asked, rebuild=True).images == 9


def test_the_default_precision_has_a_name(update):
    update()
    assert update(precision="float32") == (9, 9, KINDS[0], [])


def test_other_files_are_refused(folder, update, fn):
    Index.build(fn, torch.rand(2, 3, 32, 40)).save(folder.parent / "python.index")
    with pytest.raises(UsageError, match=r"python\.index was made in Python.*\(--rebuild builds it anew\)"):
        update("python.index")
    (folder.parent / "notes.txt").write_text("no index")
    with pytest.raises(UsageError, match=r"notes\.txt cannot be read as an index.*\(--rebuild builds it anew\)"):
        update("notes.txt")
    assert update("python.index", rebuild=True).images == update("notes.txt", rebuild=True).images == 9
    (folder.parent / "photos.index.partial").write_text("a journal of another command")
    with pytest.raises(UsageError, match=r"photos\.index\.partial, which is no folder"):
        update()


@pytest.mark.parametrize("name", ("notes.txt", "unit-1.index", "unit-000001.index.bak", "sub/unit-000001.index"))
def test_files_of_others_are_not_removed(folder, update, monkeypatch, name):
    """Neither before nor after, wherever they came from."""
    cut_short(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        update()
    theirs = folder.parent / "photos.index.partial" / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs")
    for rebuild in (False, True):
        with pytest.raises(UsageError, match=rf"index\.partial, and {name.split('/')[0]} there is none of it: move it"):
            update(rebuild=rebuild)
    assert len([*theirs.parents[name.count("/")].iterdir()]) == 2
    monkeypatch.setattr(updating._File, "check_partial", lambda _: None)  # it came later
    assert update() == (9, 4, KINDS[0], [])
    assert theirs.read_text() == "theirs"
    assert [*theirs.parents[name.count("/")].iterdir()] == [folder.parent / "photos.index.partial" / name.split("/")[0]]


def test_new_images_of_another_size(folder, update):
    update()
    save_noise(folder / "wide.png", 0, width=50)
    with pytest.raises(UsageError, match="is of images of 40 x 32 pixels, new ones are 50 x 32: use --rebuild --size"):
        update()
    content = (folder / "1.png").read_bytes()
    (folder / "wide.png").write_bytes(content[:20])  # not even its size can be read
    count, kept, _, (why,) = update()
    assert (count, kept) == (9, 9)
    assert "wide.png cannot be read" in why


def test_the_kind_stays(update, monkeypatch):
    """Without options the size decides for a new file, and the file for an update."""
    assert update(kind=None).kind == Kind(None, True)
    monkeypatch.setattr(indexing, "_VECTOR_BYTES", 0)
    assert update(kind=None) == (9, 9, Kind(None, True), [])
    assert update("new.index", kind=None).kind == Kind(1024, False)
    assert update(kind=None, rebuild=True).kind == Kind(1024, False)
    monkeypatch.undo()
    assert update(kind=None) == (9, 9, Kind(1024, False), [])


def test_a_folder_that_has_moved(folder, update, fn):
    """Nothing is read again, and the index knows the new place."""
    update()
    moved = folder.rename(folder.parent / "moved")
    assert update(where=moved) == (9, 9, KINDS[0], [])
    assert Index.load(folder.parent / "photos.index", fn).header.folder == str(moved)


def test_another_folder_is_refused(folder, update, read):
    """If nothing of the file would stay."""
    update()
    before = (folder.parent / "photos.index").read_bytes()
    other = folder.parent / "other"
    for i in range(3):
        save_noise(other / f"{i}.png", 100 + i)
    read.clear()
    with pytest.raises(UsageError, match=rf"photos\.index is of {folder}, and {other} has none of its images: name "):
        update(where=other)
    assert not read
    assert (folder.parent / "photos.index").read_bytes() == before
    assert update(where=other, rebuild=True).images == 3
    shutil.copytree(folder, folder.parent / "copy", copy_function=shutil.copy2)
    update("copy.index")
    save_noise(folder.parent / "copy" / "new.png", 9)
    assert update("copy.index", where=folder.parent / "copy") == (10, 9, KINDS[0], [])


def test_units_of_other_processes_must_be_there(folder, update, monkeypatch):
    monkeypatch.setattr(processes, "own", lambda units: units[::2])
    with pytest.raises(RuntimeError, match="each machine must see it"):
        update()
    monkeypatch.undo()
    assert update().images == 9


def test_memory_is_that_of_a_unit(folder, update, monkeypatch):
    """No table that is embedded is larger; the rows of the file stay in it."""
    written = []
    write = files.write

    def noted(path, header, tables, order=None):
        written.append((path.name, [table.rows for table in tables]))
        write(path, header, tables, order)

    monkeypatch.setattr(files, "write", noted)
    update()
    units = [(f"unit-{i:06d}.index", [rows]) for i, rows in enumerate((4, 4, 1))]
    assert written == [*units, ("whole.index", [4, 4, 1])]
