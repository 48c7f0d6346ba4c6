#!/usr/bin/env bash
# Pillow 13.0.0 returns wrong pixels, without an error or a warning, for six kinds of TIFF files.
#
# Each is written by tifffile, which reads the same values back. Pillow
#
# - scrambles RGB of 16 bits in separate planes (PlanarConfiguration 2) without compression, since the raw decoder takes
#   each plane as 8-bit samples; the same planes with compression, and 8-bit planes, come out right;
# - scrambles gray with alpha in separate planes with compression;
# - does not invert WhiteIsZero (PhotometricInterpretation 0) of 16 bits and of floats; that of 8 bits it does invert;
# - swaps the bytes of big-endian samples that are compressed, if they are int16, int32 or float32: libtiff returns them
#   in native order, and Pillow unpacks them as big-endian nevertheless. uint16 comes out right
#   (python-pillow/Pillow#388 mended that, and left the others to be checked);
# - reads signed 8-bit samples as unsigned: -128 becomes 128 and 127 stays, so black is brighter than white;
# - gives uint32 from 2^31 on as negative numbers.
#
# One would expect: the values of the file, as for the neighbours of each kind, or an error as Pillow has for most kinds
# that it does not support (UnidentifiedImageError).
#
# Output seen (Python 3.11, Linux x86-64); the script compares with these lines:
#
# | pillow 13.0.0
# | separate planes
# |   RGB, uint8, None               right
# |   RGB, uint8, zlib               right
# |   RGB, uint16, None              wrong
# |   RGB, uint16, zlib              right
# |   gray and alpha, uint8, zlib    wrong
# |   the same, interleaved          right
# | WhiteIsZero
# |   uint8                          right
# |   uint16                         wrong
# |   float32                        wrong
# | big-endian
# |   uint16, None                   right
# |   int16, None                    right
# |   int32, None                    right
# |   float32, None                  right
# |   uint16, zlib                   right
# |   int16, zlib                    wrong
# |   int32, zlib                    wrong
# |   float32, zlib                  wrong
# | signed and unsigned
# |   int8                           wrong
# |   int16                          right
# |   int32                          right
# |   uint32                         wrong
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6

cd "$work"
venv/bin/python -W error - >seen <<'PY'
import numpy as np
import PIL
import tifffile
from PIL import Image

SHAPE = (20, 30)
rng = np.random.default_rng(0)


def samples(dtype, channels=()):
    if np.dtype(dtype).kind == "f":
        return rng.uniform(0, 1, (*channels, *SHAPE)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (*channels, *SHAPE), dtype, endpoint=True)


def show(title, array, expected=None, **options):
    """Compares what Pillow reads with the array, or with what is expected of 8 bits."""
    tifffile.imwrite("a.tif", array, **options)
    assert np.array_equal(tifffile.imread("a.tif"), array), "tifffile reads what it wrote"
    with Image.open("a.tif") as image:
        found = np.array(image)
    if array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if expected is None:
        expected = array >> 8 if found.ndim == 3 and array.dtype == np.uint16 else array
    print(f"  {title:<30}", "right" if np.array_equal(found, expected) else "wrong")


print("pillow", PIL.__version__)
print("separate planes")
planes = {"planarconfig": "separate"}
for dtype in ("uint8", "uint16"):
    for compression in (None, "zlib"):
        show(f"RGB, {dtype}, {compression}", samples(dtype, (3,)), photometric="rgb", compression=compression, **planes)
both = {"photometric": "minisblack", "extrasamples": ["unassalpha"]}
show("gray and alpha, uint8, zlib", samples("uint8", (2,)), compression="zlib", **both, **planes)
gray = samples("uint8", (2,))
tifffile.imwrite("a.tif", np.ascontiguousarray(np.moveaxis(gray, 0, -1)), planarconfig="contig", compression="zlib", **both)
right = np.array_equal(np.array(Image.open("a.tif")), np.moveaxis(gray, 0, -1))
print(f"  {'the same, interleaved':<30}", "right" if right else "wrong")
print("WhiteIsZero")
for dtype in ("uint8", "uint16", "float32"):
    array = samples(dtype)
    white = 1 if dtype == "float32" else np.iinfo(dtype).max
    show(dtype, array, white - array, photometric="miniswhite")
print("big-endian")
for compression in (None, "zlib"):
    for dtype in ("uint16", "int16", "int32", "float32"):
        show(f"{dtype}, {compression}", samples(dtype), photometric="minisblack", byteorder=">", compression=compression)
print("signed and unsigned")
for dtype in ("int8", "int16", "int32", "uint32"):
    show(dtype, samples(dtype), photometric="minisblack")
PY
diff -u expected seen
echo "As described."
