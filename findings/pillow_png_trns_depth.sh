#!/usr/bin/env bash
# Pillow 13.0.0 reads the transparent colour of a 2-bit, 4-bit or 16-bit PNG without bringing it to the depth of the pixels.
#
# A PNG without an alpha channel can name one colour that is transparent (its tRNS chunk), in the bit depth of the file.
# Pillow brings the pixels of 2-bit and 4-bit gray files, and of 16-bit RGB files, to 8 bits, and leaves the transparent
# colour as the file has it. The two then no longer match:
#
# - 2-bit and 4-bit gray: info["transparency"] is 1 where the pixels are 0, 85, 170 and 255, and convert("RGBA") makes no
#   pixel transparent. Saving the picture as PNG writes that 1 into an 8-bit file, so other readers lose it, too.
# - 16-bit RGB: the pixels keep their high bytes, and convert("RGBA") compares these with the low bytes of the transparent
#   colour. The transparent pixel becomes opaque, and an opaque one whose high bytes happen to be those low bytes becomes
#   transparent in its place. (White, 65535, comes out right: both of its bytes are 255.)
#
# 1-bit gray is brought along (transparency is 0 or 255), and 8-bit files need nothing.
#
# One would expect: info["transparency"] as a value of the pixels, since Pillow's documentation calls it the colour of the
# fully transparent pixels in the image, and alpha 0 after convert("RGBA") exactly where the file says so. pypng
# 0.20220715.0 reads the same bytes so.
#
# Output seen (Python 3.11, Linux x86-64); the script compares with these lines:
#
# | pillow 13.0.0
# | 2-bit gray, transparent 1 of 0 1 2 3
# |   mode L, pixels [0, 85, 170, 255], transparency 1
# |   alpha with Pillow [255, 255, 255, 255]
# |   alpha with pypng  [255, 0, 255, 255]
# |   saved and read again with pypng [255, 255, 255, 255]
# | 4-bit gray, transparent 5 of 0 5 10 15
# |   mode L, pixels [0, 85, 170, 255], transparency 5
# |   alpha with Pillow [255, 255, 255, 255]
# |   alpha with pypng  [255, 0, 255, 255]
# |   saved and read again with pypng [255, 255, 255, 255]
# | 16-bit RGB, first pixel transparent
# |   mode RGB, pixels [(18, 86, 154), (171, 205, 239), (52, 120, 188)], transparency (4660, 22136, 39612)
# |   alpha with Pillow [255, 255, 0]
# |   alpha with pypng  [0, 255, 255]
# | 1-bit gray, transparent 1 of 0 1
# |   mode 1, pixels [0, 255], transparency 255
# |   alpha with Pillow [255, 0]
# |   alpha with pypng  [255, 0]
# | 8-bit gray, transparent 85 of 0 85 170 255
# |   mode L, pixels [0, 85, 170, 255], transparency 85
# |   alpha with Pillow [255, 0, 255, 255]
# |   alpha with pypng  [255, 0, 255, 255]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pillow==13.0.0 pypng==0.20220715.0

cd "$work"
venv/bin/python - >seen <<'PY'
import io
import struct
import zlib

import PIL
import png
from PIL import Image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def one_row(width, depth, rgb, row, transparent):
    """A PNG of one row; row is its packed bytes."""
    header = struct.pack(">IIBBBBB", width, 1, depth, 2 if rgb else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


def alpha_with_pypng(data):
    _, _, rows, info = png.Reader(bytes=data).asRGBA()
    top = 2 ** info["bitdepth"] - 1
    return [value * 255 // top for row in rows for value in list(row)[3::4]]


def show(title, data, save=False):
    image = Image.open(io.BytesIO(data))
    pixels = list(image.get_flattened_data())
    print(title)
    print(f"  mode {image.mode}, pixels {pixels}, transparency {image.info['transparency']}")
    print("  alpha with Pillow", list(image.convert("RGBA").getchannel("A").get_flattened_data()))
    print("  alpha with pypng ", alpha_with_pypng(data))
    if save:
        again = io.BytesIO()
        image.save(again, "PNG")
        print("  saved and read again with pypng", alpha_with_pypng(again.getvalue()))


print("pillow", PIL.__version__)
show("2-bit gray, transparent 1 of 0 1 2 3", one_row(4, 2, False, bytes([0b00_01_10_11]), [1]), save=True)
show("4-bit gray, transparent 5 of 0 5 10 15", one_row(4, 4, False, bytes([0x05, 0xAF]), [5]), save=True)
colours = ((0x1234, 0x5678, 0x9ABC), (0xAB00, 0xCD00, 0xEF00), (0x3400, 0x7800, 0xBC00))
row = b"".join(struct.pack(">3H", *colour) for colour in colours)
show("16-bit RGB, first pixel transparent", one_row(3, 16, True, row, colours[0]))
show("1-bit gray, transparent 1 of 0 1", one_row(2, 1, False, bytes([0b01_000000]), [1]))
show("8-bit gray, transparent 85 of 0 85 170 255", one_row(4, 8, False, bytes([0, 85, 170, 255]), [85]))
PY
diff -u expected seen
echo "As described."
