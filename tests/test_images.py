"""Reading images: every format and kind of pixel comes out as documented, and what is broken says so."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpips_fast.images import im2tensor, image_size, list_images, load_image, resize_image, tensor2im


@pytest.fixture
def pixels():
    """RGB noise over a gradient, uint8 [20, 31, 3]."""
    y, x = np.mgrid[:20, :31]
    smooth = np.stack([8 * x, 12 * y, 4 * (x + y)], axis=-1)
    return (smooth + np.random.default_rng(0).integers(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.ppm", "lossless.webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    found = load_image(tmp_path / name)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)
    assert image_size(tmp_path / name) == (31, 20)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
def test_lossy_formats_come_near(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name, quality=95)
    assert np.abs(load_image(tmp_path / name).astype(int) - pixels).mean() < 8


def test_gray_is_repeated(tmp_path, pixels):
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    assert np.array_equal(load_image(tmp_path / "gray.png"), np.repeat(pixels[..., :1], 3, axis=2))


def test_one_bit(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (20, 31)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(load_image(tmp_path / "bits.png")[..., 1], bits * np.uint8(255))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bit_gray_keeps_the_high_byte(tmp_path, name):
    values = np.random.default_rng(0).integers(0, 65536, (20, 31)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(load_image(tmp_path / name)[..., 2], values >> 8)


def test_sixteen_bit_color_keeps_the_high_byte(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    (tmp_path / "deep.png").write_bytes(_png(7, 5, depth=16, color=2, rows=[b"\0" + row.tobytes() for row in values]))
    assert np.array_equal(load_image(tmp_path / "deep.png"), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("top", [65535, 1023, 256])
@pytest.mark.parametrize("magic", ["P5", "P2"])
def test_sixteen_bit_pgm_keeps_the_high_byte(tmp_path, magic, top):
    """Of values whose largest is the white of the file, whatever that is."""
    values = np.random.default_rng(0).integers(0, top + 1, (20, 31)).astype(">u2")
    values[0, :2] = 0, top
    pixels = values.tobytes() if magic == "P5" else " ".join(map(str, values.flatten())).encode()
    (tmp_path / "deep.pgm").write_bytes(f"{magic}\n31 20\n{top}\n".encode() + pixels)
    found = load_image(tmp_path / "deep.pgm")
    assert np.array_equal(found[..., 1], np.rint(values * (65535 / top)).astype(int) >> 8)


def test_transparency_is_composited_over_white(tmp_path, pixels):
    alpha = np.full((20, 31, 1), 255, np.uint8)
    alpha[:10] = 0
    alpha[10] = 51
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(tmp_path / "alpha.png")
    found = load_image(tmp_path / "alpha.png")
    assert (found[:10] == 255).all()
    assert np.abs(found[10] - (0.2 * pixels[10] + 0.8 * 255)).max() <= 1
    assert np.array_equal(found[11:], pixels[11:])


def test_gray_and_palette_transparency(tmp_path, pixels):
    alpha = np.where(np.arange(31) < 15, 0, 255).astype(np.uint8) * np.ones((20, 1), np.uint8)
    Image.merge("LA", [Image.fromarray(pixels[..., 0]), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    found = load_image(tmp_path / "la.png")
    assert (found[:, :15] == 255).all()
    assert np.array_equal(found[:, 15:, 0], pixels[:, 15:, 0])

    palette = Image.fromarray((np.arange(31) % 3 * np.ones((20, 1))).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png", transparency=0)
    found = load_image(tmp_path / "palette.png")
    assert found[0, :3].tolist() == [[255, 255, 255], [0, 255, 0], [0, 0, 255]]


def test_palette_without_transparency(tmp_path):
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.gif")
    assert load_image(tmp_path / "palette.gif").tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(load_image(tmp_path / "cmyk.jpg").astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    as_viewed = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert np.array_equal(load_image(tmp_path / "turned.png"), as_viewed)
    assert image_size(tmp_path / "turned.png") == (as_viewed.shape[1], as_viewed.shape[0])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.01, 0.6])
def test_truncated_file(tmp_path, suffix, share):
    path = tmp_path / f"whole{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OSError, match=f"whole{suffix} cannot be read as an image"):
        load_image(path)


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image file .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "empty.png", "."):
        with pytest.raises(OSError, match="cannot be read as an image"):
            load_image(tmp_path / name)
        with pytest.raises(OSError, match="cannot be read as an image"):
            image_size(tmp_path / name)


@pytest.mark.parametrize(
    "given, got",
    (
        (Image.new("RGB", (8, 8)), "Image"),
        (3, "int"),
        (None, "NoneType"),
        (np.zeros((4, 4, 3), np.uint8), r"ndarray \[4, 4, 3\]"),
        (io.BytesIO(b""), "BytesIO"),
    ),
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_path(given, got):
    for call in (load_image, image_size):
        with pytest.raises(TypeError, match=f"path must be the path of an image file, a str or a Path, got {got}"):
            call(given)


def test_pixels_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.ones((8, 8), np.int32)).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        with pytest.raises(OSError, match=r"32 bits.* no set range"):
            load_image(tmp_path / name)


def test_decompression_bomb_is_refused(tmp_path):
    side = 20_000
    (tmp_path / "bomb.png").write_bytes(_png(side, side, depth=8, color=0, rows=[bytes(side + 1)] * 10))
    with pytest.raises(OSError, match=r"bomb\.png cannot be read as an image: .*decompression bomb"):
        load_image(tmp_path / "bomb.png")


def test_tensors_and_back(pixels):
    tensor = im2tensor(pixels)
    assert tensor.shape == (1, 3, 20, 31)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert np.abs(tensor2im(tensor).astype(int) - pixels).max() <= 1  # truncated, as lpips does


@pytest.mark.parametrize(
    "given,got", ((np.zeros((4, 4)), r"ndarray \[4, 4\]"), (None, "NoneType")), ids=("rank", "none")
)
def test_no_image_to_convert(given, got):
    with pytest.raises(ValueError, match=rf"image must be an array \[H, W, 3\], got {got}"):
        im2tensor(given)
    with pytest.raises(ValueError, match=rf"image_tensor must be a tensor \[N, 3, H, W\], got {got}"):
        tensor2im(given)


def test_resize(pixels):
    assert resize_image(pixels, 31, 20) is pixels
    assert resize_image(pixels, 15, 10).shape == (10, 15, 3)


def test_list_images(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.tiff", ".hidden/d.png", ".e.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.as_posix() for p in list_images(tmp_path)] == ["a.JPG", "b.png", "sub/c.tiff"]


def test_an_unreadable_folder_is_no_empty_one(tmp_path, monkeypatch):
    for name in ("a.png", "sub/b.png", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    scandir = os.scandir

    def forbidden(path):
        if Path(path).name in (".hidden", "sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)  # root may read everything
    with pytest.raises(OSError, match=r"folder .*sub cannot be read: Permission denied"):
        list_images(tmp_path)
    (tmp_path / "sub").rename(tmp_path / ".sub")
    assert list_images(tmp_path) == [Path("a.png")]


def _png(width: int, height: int, *, depth: int, color: int, rows: list[bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
