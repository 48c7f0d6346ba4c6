"""Reading images: every format and kind of pixel comes out as documented; an error names a broken or hostile file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from lpips_fast.cli import app
from lpips_fast.images import (
    im2tensor,
    image_size,
    list_images,
    load_image,
    read_image,
    resize_image,
    suffixes,
    tensor2im,
)
from tests.support.damage import damaged, outcome
from tests.support.raises import raises

LOSSLESS = "apng avif bmp dds dib icb j2k jp2 png pnm ppm qoi sgi tga tif TIFF webp".split()
OPTIONS = {"avif": {"quality": 100, "subsampling": "4:4:4"}, "webp": {"lossless": True}}


@pytest.fixture
def pixels():
    """RGB noise over a gradient, uint8 [20, 31, 3]."""
    y, x = np.mgrid[:20, :31]
    smooth = np.stack([8 * x, 12 * y, 4 * (x + y)], axis=-1)
    return (smooth + np.random.default_rng(0).integers(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_keep_every_pixel(tmp_path, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **OPTIONS.get(suffix, {}))
    found = load_image(path)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - pixels).max() <= (3 if suffix == "avif" else 0)  # its colours are YCbCr
    assert image_size(path) == (31, 20)
    assert list_images(tmp_path) == [Path(path.name)]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
def test_lossy_formats_come_near(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name, quality=95)
    assert np.abs(load_image(tmp_path / name).astype(int) - pixels).mean() < 8


def test_gray_is_repeated(tmp_path, pixels):
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    assert np.array_equal(load_image(tmp_path / "gray.png"), np.repeat(pixels[..., :1], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_arrays_can_be_written_to(tmp_path, pixels, mode):
    deep = np.full((20, 31), 999, np.uint16)
    image = Image.fromarray(deep if mode == "I;16" else pixels).convert(mode)
    image.save(tmp_path / "a.tif")
    found = load_image(tmp_path / "a.tif")
    for array in (found, resize_image(found, 31, 20), resize_image(found, 15, 10)):
        array[:] = 0


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
    """Values are relative to the file's white, whatever its value."""
    values = np.random.default_rng(0).integers(0, top + 1, (20, 31)).astype(">u2")
    values[0, :2] = 0, top
    pixels = values.tobytes() if magic == "P5" else " ".join(map(str, values.flatten())).encode()
    (tmp_path / "deep.pgm").write_bytes(f"{magic}\n31 20\n{top}\n".encode() + pixels)
    found = load_image(tmp_path / "deep.pgm")
    assert np.array_equal(found[..., 1], np.rint(values * (65535 / top)).astype(int) >> 8)


BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#0a80Ff": (10, 128, 255)}


@pytest.mark.parametrize("background", [*BACKGROUNDS, "drop", None])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "tga"])
def test_transparency_is_composited_over_the_background(tmp_path, pixels, suffix, background):
    """The background is white or the given one; with 'drop', colours are the stored ones, as in lpips."""
    alpha = np.full((20, 31, 1), 255, np.uint8)
    alpha[:10] = 0
    alpha[10] = 51
    path = tmp_path / f"alpha.{suffix}"
    exact = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(path, **exact)
    found = load_image(path) if background is None else load_image(path, background)
    color = BACKGROUNDS.get(background or "white", pixels)
    mixed = alpha / 255 * pixels + (1 - alpha / 255) * color
    assert np.abs(found - (pixels if background == "drop" else mixed)).max() <= 1
    assert np.array_equal(found[11:], pixels[11:])


@pytest.mark.parametrize("background, shown", [*BACKGROUNDS.items(), ("drop", None)])
def test_gray_and_palette_transparency(tmp_path, pixels, background, shown):
    alpha = np.where(np.arange(31) < 15, 0, 255).astype(np.uint8) * np.ones((20, 1), np.uint8)
    Image.merge("LA", [Image.fromarray(pixels[..., 0]), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    found = load_image(tmp_path / "la.png", background)
    assert (found[:, :15] == (pixels[:, :15, :1] if shown is None else shown)).all()
    assert np.array_equal(found[:, 15:, 0], pixels[:, 15:, 0])

    palette = Image.fromarray((np.arange(31) % 3 * np.ones((20, 1))).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for transparency in (0, b"\0\xff\xff"):
        palette.save(tmp_path / "palette.png", transparency=transparency)
        found = load_image(tmp_path / "palette.png", background)
        assert found[0, :3].tolist() == [[*(shown or (255, 0, 0))], [0, 255, 0], [0, 0, 255]]

    Image.fromarray(pixels).save(tmp_path / "key.png", transparency=tuple(pixels[7, 7].tolist()))
    found = load_image(tmp_path / "key.png", background)
    hidden = (pixels == pixels[7, 7]).all(axis=2)
    assert np.array_equal(found, pixels if shown is None else np.where(hidden[..., None], np.uint8(shown), pixels))

    values = np.uint16([[0x1234, 0x1235, 0x5678]])
    key = (b"tRNS", struct.pack(">H", 0x1234))
    (tmp_path / "deep.png").write_bytes(
        _png(3, 1, depth=16, color=0, rows=[b"\0" + values.astype(">u2").tobytes()], key=key)
    )
    found = load_image(tmp_path / "deep.png", background)
    assert found.tolist() == [[[*(shown or [0x12] * 3)], [0x12] * 3, [0x56] * 3]]


def test_what_shows_the_background(tmp_path, pixels):
    """Only images with transparent pixels: not those with an opaque alpha channel, also if a codec changed it."""
    alpha = np.full((20, 31, 1), 255, np.uint8)
    for least in (255, 254, 240, 239, 0):
        alpha[3, 4] = least
        Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").transparent is (least < 240)
        black = read_image(tmp_path / "a.png", "black")
        assert black.transparent is (least < 240)
        mixed = least / 255 * pixels[3, 4]
        assert np.abs(black.pixels[3, 4] - mixed).max() <= 0.51, "composited, whether it is said or not"
        assert not read_image(tmp_path / "a.png", "drop").transparent
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").transparent


@pytest.mark.parametrize("given", ["blue", "#fff", "#12345g", "White", "white\n", "", None, (0, 0, 0), 0])
def test_what_is_no_background(given):
    with pytest.raises(ValueError, match=r"background must be white, black, #rrggbb or drop, got "):
        load_image("nowhere.png", given)


DEEP = {
    "png": (np.uint16, 0, 65535),
    "tif": (np.uint16, 0, 65535),
    "int.tif": (np.int32, -(2**31), 2**31 - 1),
    "float.tif": (np.float32, -1e30, 1e30),
    "pfm": (np.float32, -1e30, 1e30),
}


@pytest.mark.parametrize("low, high", [(27000, 29000), (0.0, 0.5), (-100, 100), (0, 65535)])
@pytest.mark.parametrize("suffix", DEEP)
def test_a_range_of_values(tmp_path, suffix, low, high):
    """The ends of the range become 0 and 255, and so do values beyond them."""
    dtype, least, largest = DEEP[suffix]
    inside = np.random.default_rng(0).uniform(low, high, (20, 31))
    values = np.clip(inside, least, largest).astype(dtype)
    values[0, :4] = np.clip([low, high, -(2**31), 2**31 - 1], least, largest).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    found = load_image(tmp_path / f"deep.{suffix}", value_range=(low, high))
    expected = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255
    assert found.dtype == np.uint8
    assert np.abs(found - expected[..., None]).max() <= 0.5 + 1e-9
    assert read_image(tmp_path / f"deep.{suffix}", value_range=(low, high)).narrow is None


def test_a_range_of_a_pgm(tmp_path):
    """Values are in 65535ths of the file's white."""
    values = np.arange(0, 1024, dtype=">u2")[None]
    (tmp_path / "deep.pgm").write_bytes(b"P5\n1024 1\n1023\n" + values.tobytes())
    found = load_image(tmp_path / "deep.pgm", value_range=(0, 65535 / 2))
    assert np.abs(found[0, :, 1] - np.clip(values[0] / 511.5, 0, 1) * 255).max() <= 0.51


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_a_range_is_not_for_eight_bits(tmp_path, pixels, mode):
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match=rf"a\.tif cannot be read.*not for pixels of mode '{mode}', 8 bits a channel"):
        load_image(tmp_path / "a.tif", value_range=(0, 100))


def test_a_range_is_not_for_color_of_sixteen_bits(tmp_path):
    """Pillow gives only the high bytes."""
    values = np.zeros((5, 7, 3), ">u2")
    (tmp_path / "deep.png").write_bytes(_png(7, 5, depth=16, color=2, rows=[b"\0" + row.tobytes() for row in values]))
    with pytest.raises(OSError, match=r"not for pixels of mode 'RGB'.*Pillow reduces 16 bits of colour"):
        load_image(tmp_path / "deep.png", value_range=(0, 100))


def test_gray_with_alpha_of_sixteen_bits_is_its_high_byte(tmp_path):
    row = b"\0" + np.array([[0x1280, 0xFFFF], [0xFEFF, 0x0000]], ">u2").tobytes()
    (tmp_path / "deep.png").write_bytes(_png(2, 1, depth=16, color=4, rows=[row]))
    assert load_image(tmp_path / "deep.png", "drop").tolist() == [[[0x12] * 3, [0xFE] * 3]]
    assert load_image(tmp_path / "deep.png", "black").tolist() == [[[0x12] * 3, [0] * 3]]
    with pytest.raises(OSError, match="Pillow reduces 16 bits of colour, or of gray with alpha"):
        load_image(tmp_path / "deep.png", value_range=(0, 100))


def test_a_range_and_transparency(tmp_path):
    key = (b"tRNS", struct.pack(">H", 900))
    row = b"\0" + np.array([900, 901, 1000], ">u2").tobytes()
    (tmp_path / "deep.png").write_bytes(_png(3, 1, depth=16, color=0, rows=[row], key=key))
    found = load_image(tmp_path / "deep.png", "#010203", (900, 1000))
    assert found.tolist() == [[[1, 2, 3], [3, 3, 3], [255, 255, 255]]]


def test_values_that_are_nan_or_infinite(tmp_path):
    Image.fromarray(np.float32([[np.inf, -np.inf, 0.5]])).save(tmp_path / "float.tif")
    assert load_image(tmp_path / "float.tif", value_range=(0, 1))[0, :, 0].tolist() == [255, 0, 128]
    Image.fromarray(np.float32([[0.5, np.nan]])).save(tmp_path / "float.tif")
    with pytest.raises(OSError, match=r"float\.tif cannot be read as an image: some of its values are NaN"):
        load_image(tmp_path / "float.tif", value_range=(0, 1))


@pytest.mark.parametrize(
    "given", [(1, 1), (2, 1), (0, np.inf), (np.nan, 1), (0,), (0, 1, 2), "09", ("0", "9"), 255, (0, 10**400), (0, 1j)]
)
def test_what_is_no_range(given):
    with pytest.raises(ValueError, match=r"value_range must be None or two finite numbers, \(low, high\)"):
        load_image("nowhere.png", value_range=given)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_that_the_high_byte_hardly_tells_apart(tmp_path, suffix):
    def narrow(values: np.ndarray) -> tuple[int, int] | None:
        Image.fromarray(np.uint16(values)).save(tmp_path / f"deep.{suffix}")
        return read_image(tmp_path / f"deep.{suffix}").narrow

    values = np.arange(64 * 64).reshape(64, 64)
    assert narrow(27000 + values) == (27000, 27000 + 64 * 64 - 1)  # of a thermal camera
    assert narrow(values * 31 // 16) == (0, 4095 * 31 // 16)
    assert narrow(values * 2) is None
    assert narrow(values % 2 * 65535) is None  # a mask
    assert narrow(values % 16 * 0x1111) is None  # of 4 bits
    assert narrow(np.full((64, 64), 1234)) is None


@pytest.mark.parametrize("background, expected", [("black", (6600, 7539)), ("drop", (0, 7539))])
def test_values_under_transparency_are_not_seen(tmp_path, background, expected):
    values = np.arange(6600, 7540).reshape(20, 47).astype(np.uint16)
    values[:4] = 0  # no data
    values[4, 0] = 6600
    Image.fromarray(values).save(tmp_path / "deep.png", transparency=0)
    assert read_image(tmp_path / "deep.png", background).narrow == expected
    Image.fromarray(0 * values).save(tmp_path / "deep.png", transparency=0)
    assert read_image(tmp_path / "deep.png").narrow is None


def test_eight_bits_are_not_narrow(tmp_path):
    Image.fromarray(np.uint8([[1, 2, 3]])).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").narrow is None


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


@pytest.mark.parametrize(
    "belongs, named",
    [
        (
            True,
            "apng avif bmp dds gif ico j2c j2k jfif jp2 jpe jpeg jpg jpx mpo pbm pcx pfm pgm png pnm ppm psd qoi sgi",
        ),
        (True, "tga tif tiff webp"),
        (False, "eps ps pdf mpg mpeg mp4 h5 hdf grib bufr wmf emf pcd gbr fit blp txt npy"),
    ],
)
def test_which_files_are_images(belongs, named):
    for suffix in named.split():
        assert (f".{suffix}" in suffixes()) is belongs, suffix


def test_every_suffix_is_of_a_format_that_is_read(tmp_path):
    """All formats that Pillow can write, under their suffixes."""
    kinds = Image.registered_extensions()
    for suffix in suffixes():
        if kinds[suffix] in Image.SAVE:
            image = Image.new("1" if suffix == ".xbm" else "RGB", (32, 32))
            image.save(tmp_path / f"a{suffix}")
            assert not load_image(tmp_path / f"a{suffix}").any()


def test_list_images(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.tiff", ".hidden/d.png", ".e.png", "notes.txt", "page.pdf", "cloud.pcd"):
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


def _png(
    width: int, height: int, *, depth: int, color: int, rows: list[bytes], key: tuple[bytes, bytes] | None = None
) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(rows))
    chunks = [(b"IHDR", header), *([] if key is None else [key]), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*of) for of in chunks)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of what it finds odd
@pytest.mark.parametrize("kind", "PNG JPEG WEBP BMP TIFF GIF PPM AVIF JPEG2000 TGA QOI SGI DDS PCX MPO ICO DIB".split())
@given(data=st.data())
def test_damaged_images(tmp_path_factory, kind, data):
    """Reading gives pixels or an error that names the file, never anything else."""
    path = tmp_path_factory.getbasetemp() / f"image.{kind.lower()}"
    path.write_bytes(data.draw(damaged(picture(kind))))
    found = outcome(load_image, path, OSError)
    if isinstance(found, OSError):
        assert str(found).startswith(f"{path} cannot be read as an image: ")
    else:
        assert found.dtype == np.uint8
        assert found.shape == (*reversed(image_size(path)), 3)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(ran) (w) file closefile\n%%EOF\n"
IMAGES = {
    "empty.png": b"",
    "text.jpg": b"hello",
    "cut.png": picture("PNG")[:150],
    "program.png": EPS,
    "folder.png": None,
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(trunk_states, tmp_path, name):
    path = tmp_path / name
    path.mkdir() if IMAGES[name] is None else path.write_bytes(IMAGES[name])
    with raises(OSError, str(path), "cannot be read as an image"):
        load_image(path)
    Image.new("RGB", (40, 40)).save(tmp_path / "sound.png")
    torch.save(trunk_states["squeeze"], tmp_path / "trunk.pth")
    options = ["--net", "squeeze", "--trunk-weights", str(tmp_path / "trunk.pth")]
    result = CliRunner().invoke(app, ["pair", str(path), str(tmp_path / "sound.png"), *options])
    assert result.exit_code == 1, result.output
    assert "cannot be read as an image" in result.output


def test_the_suffix_does_not_decide(tmp_path):
    """A PNG with another suffix is read as PNG."""
    (tmp_path / "a.jpg").write_bytes(picture("PNG"))
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    assert np.array_equal(load_image(tmp_path / "a.jpg"), load_image(tmp_path / "a.png"))


def test_eps_is_not_run(trunk_states, tmp_path, monkeypatch):
    """Pillow would call Ghostscript."""
    trunk = tmp_path / "trunk.pth"
    torch.save(trunk_states["squeeze"], trunk)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("it was called"))
    (tmp_path / "eps.png").write_bytes(EPS)
    for read in (load_image, image_size):
        with raises(OSError, "eps.png", "EPS is a program"):
            read(tmp_path / "eps.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "sound.png")
    for pair in (("eps.png", "sound.png"), ("sound.png", "eps.png")):
        arguments = [str(tmp_path / name) for name in pair]
        result = CliRunner().invoke(app, ["video", *arguments, "--net", "squeeze", "--trunk-weights", str(trunk)])
        assert result.exit_code == 1, result.output
        assert "EPS is a program" in result.output


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        for read in (load_image, image_size):
            with raises(OSError, f"{path} cannot be read as an image", "a device or a pipe"):
                read(path)
