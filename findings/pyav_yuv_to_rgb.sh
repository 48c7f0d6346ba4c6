#!/usr/bin/env bash
# PyAV 18.1.0 (libswscale 9.5): to_ndarray(format="rgb24") of a YUV frame is up to 4 levels off, by format and by size.
#
# The default conversion makes white of 10-bit video 253, 253, 253. One colour of 8-bit 4:2:0 video comes out 2 or 3 levels
# too dark at 64 x 48, 63 x 48 and 64 x 47, and right at 63 x 47. The same picture coded with 8 and with 10 bits, or cropped
# by a line, is then compared with a bias. The flags of libswscale do not each make it better:
#
# - ACCURATE_RND alone leaves the bias, or makes it larger, except where the width is odd.
# - FULL_CHR_H_INT alone leaves it for 8 bits at even heights.
# - Both together are right for limited range. For full range of more than 8 bits they are up to 1.4 levels off (10-bit
#   values are divided by 4 and rounded up). Blue of more than twice white becomes 0, not 255, as it does by default.
#
# The conversion to planar RGB of 16 bits, "gbrp16le", is right in all of these cases, with and without flags. Its white is not
# 65535, but 65280 for limited range, and (2^b - 1) 2^(16 - b) for b bits of full range. It takes about as long as the default
# conversion to "rgb24", and a tenth of the time that this takes with both flags.
#
# One would expect: the nearest level, at each size and depth, or a flag that is documented to give it; and values that are
# clipped, not wrapped.
#
# Output seen (Python 3.11, Linux x86-64); the script compares with these lines:
#
# | av 18.1.0 libswscale 9.5.102
# | white of 10 bits, 4:2:0, 64 x 48 exact [255.0, 255.0, 255.0]
# |   rgb24, default: [253, 253, 253]
# |   rgb24, ACCURATE_RND: [253, 253, 253]
# |   rgb24, FULL_CHR_H_INT: [255, 255, 255]
# |   rgb24, both: [255, 255, 255]
# |   gbrp16le, default, scaled: [255.0, 255.0, 255.0]
# | orange of 10 bits, 4:2:0, 64 x 48 exact [188.8, 114.5, 67.8]
# |   rgb24, default: [187, 112, 66]
# |   rgb24, ACCURATE_RND: [187, 112, 66]
# |   rgb24, FULL_CHR_H_INT: [189, 115, 68]
# |   rgb24, both: [189, 115, 68]
# |   gbrp16le, default, scaled: [188.8, 114.5, 67.8]
# | 8 bits, 4:2:0, 64 x 48 exact [187.9, 114.8, 67.8]
# |   rgb24, default: [186, 112, 66]
# |   rgb24, ACCURATE_RND: [186, 112, 66]
# |   rgb24, FULL_CHR_H_INT: [186, 112, 66]
# |   rgb24, both: [188, 115, 68]
# |   gbrp16le, default, scaled: [187.9, 114.8, 67.8]
# | 8 bits, 4:2:0, 63 x 48 exact [187.9, 114.8, 67.8]
# |   rgb24, default: [186, 112, 66]
# |   rgb24, ACCURATE_RND: [188, 115, 68]
# |   rgb24, FULL_CHR_H_INT: [186, 112, 66]
# |   rgb24, both: [188, 115, 68]
# |   gbrp16le, default, scaled: [187.9, 114.8, 67.8]
# | 8 bits, 4:2:0, 64 x 47 exact [187.9, 114.8, 67.8]
# |   rgb24, default: [186, 112, 66]
# |   rgb24, ACCURATE_RND: [186, 112, 66]
# |   rgb24, FULL_CHR_H_INT: [188, 115, 68]
# |   rgb24, both: [188, 115, 68]
# |   gbrp16le, default, scaled: [187.9, 114.8, 67.8]
# | 8 bits, 4:2:0, 63 x 47 exact [187.9, 114.8, 67.8]
# |   rgb24, default: [188, 115, 68]
# |   rgb24, ACCURATE_RND: [188, 115, 68]
# |   rgb24, FULL_CHR_H_INT: [188, 115, 68]
# |   rgb24, both: [188, 115, 68]
# |   gbrp16le, default, scaled: [187.9, 114.8, 67.8]
# | light gray of 10 bits, full range, 4:4:4 exact [253.8, 253.8, 253.8]
# |   rgb24, default: [255, 255, 255]
# |   rgb24, ACCURATE_RND: [255, 255, 255]
# |   rgb24, FULL_CHR_H_INT: [255, 255, 255]
# |   rgb24, both: [255, 255, 255]
# |   gbrp16le, default, scaled: [253.8, 253.8, 253.8]
# | 8 bits, 4:4:4, more blue than white has exact [93.9, 255.0, 255.0]
# |   rgb24, default: [94, 255, 0]
# |   rgb24, ACCURATE_RND: [94, 255, 0]
# |   rgb24, FULL_CHR_H_INT: [94, 255, 0]
# |   rgb24, both: [94, 255, 0]
# |   gbrp16le, default, scaled: [93.9, 255.0, 255.0]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6

cd "$work"
venv/bin/python - >seen <<'PY'
import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

BICUBIC, ACCURATE, FULL = Interpolation.BICUBIC, Interpolation.ACCURATE_RND, Interpolation.FULL_CHR_H_INT
FLAGS = {
    "default": None,
    "ACCURATE_RND": BICUBIC | ACCURATE,
    "FULL_CHR_H_INT": BICUBIC | FULL,
    "both": BICUBIC | ACCURATE | FULL,
}


def frame_of(form, width, height, yuv, full=False):
    """A frame of one colour, tagged BT.709."""
    frame = av.VideoFrame(width, height, form)
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.dtype("<u2")
    for plane, value in zip(frame.planes, yuv):
        plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, value, kind))
    frame.colorspace, frame.color_range = 1, 2 if full else 1
    return frame


def converted(frame, form, flags):
    """The RGB of a pixel in the middle."""
    array = VideoReformatter().reformat(frame, format=form, interpolation=flags).to_ndarray()
    return array[frame.height // 2, frame.width // 2]


def exact(yuv, bits, full=False):
    y, u, v = yuv
    s = 2 ** (bits - 8)
    top = 2**bits - 1
    y, u, v = (y / top, (u - 128 * s) / top, (v - 128 * s) / top) if full else (
        (y - 16 * s) / (219 * s), (u - 128 * s) / (224 * s), (v - 128 * s) / (224 * s))
    r, b = y + 2 * (1 - 0.2126) * v, y + 2 * (1 - 0.0722) * u
    return 255 * np.clip([r, (y - 0.2126 * r - 0.0722 * b) / 0.7152, b], 0, 1)


def show(title, frame, yuv, bits, full=False):
    print(title, "exact", exact(yuv, bits, full).round(1).tolist())
    for name, flags in FLAGS.items():
        print(f"  rgb24, {name}: {converted(frame, 'rgb24', flags).tolist()}")
    white = (2**bits - 1) << (16 - bits) if full else 255 << 8
    values = converted(frame, "gbrp16le", FLAGS["default"]) * (255 / white)
    print(f"  gbrp16le, default, scaled: {np.minimum(values, 255).round(1).tolist()}")


print("av", av.__version__, "libswscale", ".".join(map(str, av.library_versions["libswscale"])))
white, orange = (940, 512, 512), (500, 400, 650)
show("white of 10 bits, 4:2:0, 64 x 48", frame_of("yuv420p10le", 64, 48, white), white, 10)
show("orange of 10 bits, 4:2:0, 64 x 48", frame_of("yuv420p10le", 64, 48, orange), orange, 10)
for height in (48, 47):
    for width in (64, 63):
        yuv = (125, 100, 162)
        show(f"8 bits, 4:2:0, {width} x {height}", frame_of("yuv420p", width, height, yuv), yuv, 8)
gray = (1018, 512, 512)
show("light gray of 10 bits, full range, 4:4:4", frame_of("yuv444p10le", 64, 48, gray, True), gray, 10, True)
blue = (246, 248, 31)
show("8 bits, 4:4:4, more blue than white has", frame_of("yuv444p", 64, 48, blue), blue, 8)
PY
diff -u expected seen
echo "As described."
