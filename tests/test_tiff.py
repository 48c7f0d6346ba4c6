"""TIFF: every kind is read right, or refused by an error that names it, also where Pillow gets it wrong."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image

from lpips_fast.cli.masks import gray_of
from lpips_fast.images import alpha_of, load_image, open_image

SHAPE = (33, 50)  # rows and columns: the last strip and the last tile are cut short
LAYOUTS = {"one strip": {}, "strips": {"rowsperstrip": 10}, "tiles": {"tile": (16, 16)}}


OLD_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="read from Pillow 13 on, before an error"
)


def samples(dtype: str, channels: int | None = None) -> np.ndarray:
    """Noise over all values of a type, [H, W] or [H, W, channels]; floats from -50 to 1000."""
    rng = np.random.default_rng(0)
    shape = SHAPE if channels is None else (*SHAPE, channels)
    if np.dtype(dtype).kind == "f":
        return rng.uniform(-50, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def planes(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -1, 0)


def gray(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=2)


@pytest.fixture(params=LAYOUTS)
def read(request, tmp_path):
    """Writes a file with tifffile and reads it."""

    def read(array, *, value_range=None, **options):
        tifffile.imwrite(tmp_path / "a.tif", array, **options, **LAYOUTS[request.param])
        return load_image(tmp_path / "a.tif", value_range=value_range)

    return read


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_color(read, dtype, compression, byteorder):
    rgb = samples(dtype, 3)
    levels = rgb if dtype == "u1" else rgb >> 8
    options = {"photometric": "rgb", "compression": compression, "byteorder": byteorder}
    assert np.array_equal(read(rgb, **options), levels)
    if dtype == "u2" and compression is None:
        with pytest.raises(OSError, match=r"Pillow scrambles uncompressed samples of 16 bits in separate planes: save"):
            read(planes(rgb), planarconfig="separate", **options)
    else:
        assert np.array_equal(read(planes(rgb), planarconfig="separate", **options), levels)


@pytest.mark.parametrize("photometric, extra", [("rgb", ["unassalpha"]), ("separated", None)])
def test_four_planes_of_sixteen_bits(read, photometric, extra):
    with pytest.raises(OSError, match=r"Pillow scrambles uncompressed samples of 16 bits in separate planes"):
        read(planes(samples("u2", 4)), photometric=photometric, planarconfig="separate", extrasamples=extra)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_of_gray_with_alpha(read, compression):
    both = samples("u1", 2)
    options = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "compression": compression}
    alpha = both[..., 1:] / 255
    expected = gray(both[..., 0]) * alpha + 255 * (1 - alpha)
    assert np.abs(read(both, planarconfig="contig", **options) - expected).max() <= 1
    told = "Pillow scrambles compressed gray with alpha in separate planes: save" if compression else "unknown raw mode"
    with pytest.raises(OSError, match=told):
        read(planes(both), planarconfig="separate", **options)


@OLD_PILLOW
def test_premultiplied_gray(read):
    alpha = samples("u1", 1)
    both = np.concatenate([alpha // 2, alpha], axis=2)
    found = read(both, photometric="minisblack", extrasamples=["assocalpha"], planarconfig="contig")
    assert np.abs(found - (both[..., :1] + 255.0 - alpha)).max() <= 1


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_is_zero(read, compression):
    options = {"photometric": "miniswhite", "compression": compression}
    assert np.array_equal(read(samples("u1"), **options), gray(255 - samples("u1")))
    for value_range in (None, (0, 999)):
        for dtype in ("u2", "f4"):
            with pytest.raises(OSError, match=r"a\.tif cannot .* Pillow does not invert WhiteIsZero of more than 8 bi"):
                read(samples(dtype), value_range=value_range, **options)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_signed_bytes(read, compression):
    with pytest.raises(OSError, match="Pillow reads signed samples of 8 bits as unsigned: save"):
        read(samples("i1"), photometric="minisblack", compression=compression)


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "f4"])
def test_a_range_of_values(read, dtype, compression, byteorder):
    values = samples(dtype)
    ends = (-50.0, 1000.0) if dtype == "f4" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    options = {"photometric": "minisblack", "compression": compression, "byteorder": byteorder, "value_range": ends}
    if byteorder == ">" and dtype == "u4":
        with pytest.raises(OSError, match="no format that Pillow knows"):
            read(values, **options)
    elif byteorder == ">" and compression and dtype != "u2":
        with pytest.raises(OSError, match="Pillow swaps the bytes of signed and float samples that are big-endian"):
            read(values, **options)
    else:
        expected = np.interp(values.astype(float), ends, (0, 255))
        assert np.abs(read(values, **options) - gray(expected)).max() <= 0.5 + 1e-4


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Rows of values packed into bytes, uint8 [H, bytes]."""
    return np.packbits(((values[..., None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(len(values), -1), 1)


def retag(path, data: bytes, **tags: object) -> None:
    """Replaces data and tags, by name, in a file that tifffile wrote with one strip."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages[0]
        file.filehandle.seek(page.dataoffsets[0])
        file.filehandle.write(data)
        for name, value in tags.items():
            page.tags[name].overwrite(value)


@pytest.mark.parametrize("value_range", [None, (0, 4095)])
def test_twelve_bits(tmp_path, value_range):
    """White is 4095, as the file says."""
    values = np.random.default_rng(0).integers(0, 4096, SHAPE)
    data = packed(values, 12)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(data.shape, np.uint8), photometric="minisblack")
    retag(tmp_path / "a.tif", data.tobytes(), ImageWidth=SHAPE[1], BitsPerSample=12)
    found = load_image(tmp_path / "a.tif", value_range=value_range)
    assert np.array_equal(found, gray(values >> 4 if value_range is None else np.rint(values * (255 / 4095))))


def rationals(code: int, *numerators: int, denominator: int = 1) -> tuple[object, ...]:
    """A tag as tifffile writes it."""
    return code, "2I", len(numerators), tuple(n for pair in numerators for n in (pair, denominator)), True


@OLD_PILLOW
@pytest.mark.parametrize(
    "tag, changed, added",
    [
        ("PlanarConfiguration", 2, []),
        ("YCbCrSubSampling", (2, 1), []),
        ("YCbCrCoefficients", None, [rationals(529, 2126, 7152, 722, denominator=10000)]),
        ("ReferenceBlackWhite", None, [rationals(532, 16, 235, 128, 240, 128, 240)]),
    ],
)
def test_uncompressed_ycbcr(tmp_path, tag, changed, added):
    rgb = samples("u1", 3)
    ycbcr = np.array(Image.fromarray(rgb).convert("YCbCr"))
    usual = [rationals(529, 299, 587, 114, denominator=1000), rationals(532, 0, 255, 128, 255, 128, 255)]
    for extra in ([], usual):
        tifffile.imwrite(tmp_path / "a.tif", ycbcr, photometric="ycbcr", extratags=extra)
        assert np.abs(load_image(tmp_path / "a.tif") - rgb.astype(int)).max() <= 4
    tifffile.imwrite(tmp_path / "a.tif", ycbcr, photometric="ycbcr", extratags=added)
    if changed is not None:
        retag(tmp_path / "a.tif", b"", **{tag: changed})
    with pytest.raises(OSError, match=f"Pillow ignores {tag} of uncompressed YCbCr: save the image as RGB"):
        load_image(tmp_path / "a.tif")


def test_inks_that_are_not_cmyk(read):
    inks = samples("u1", 4)
    expected = np.array(Image.fromarray(inks, "CMYK").convert("RGB"))
    assert np.array_equal(read(inks, photometric="separated"), expected)
    with pytest.raises(OSError, match="Pillow reads its inks as CMYK, and InkSet says that they are others: save"):
        read(inks, photometric="separated", extratags=[(332, "H", 1, 2, True)])


def test_palettes(read):
    values = samples("u1")
    colors = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    found = read(values, photometric="palette", colormap=colors)
    assert np.array_equal(found, np.moveaxis(colors >> 8, 0, -1)[values])
    with pytest.raises(OSError, match="Pillow shows a palette of 8-bit values, where TIFF has 16 bits, as black: save"):
        read(values, photometric="palette", colormap=colors >> 8)
    assert not read(values, photometric="palette", colormap=0 * colors).any()


def test_masks_are_held_to_the_same(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", samples("u2"), photometric="miniswhite")
    rgba = planes(samples("u2", 4))
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"])
    for name, weights_of in (("mask.tif", gray_of), ("a.tif", alpha_of)):
        with (
            pytest.raises(OSError, match=f"{name} cannot be read as an image: Pillow "),
            open_image(tmp_path / name) as i,
        ):
            weights_of(i)
