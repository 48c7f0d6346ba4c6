#!/usr/bin/env bash
# PyAV 18.1.0 (libswscale 9.5): the range that a gray frame is tagged with is ignored, and to YUV its luma is compressed.
#
# A gray frame tagged as limited, where 16 is black and 235 white, becomes
#
# - RGB of 16 and 235, not of 0 and 255, also when source and destination range are given to `reformat`;
# - yuv444p of 30 and 218: the luma is compressed a second time. The same samples in yuv420p would be black and white.
#
# Decoders make such frames: HEVC without chroma (4:0:0) comes out as gray, tagged as limited.
#
# One would expect: RGB of 0 and 255, as of a YUV frame with that luma and that tag, and yuv444p of 16 and 235.
#
# Output seen (Python 3.11, Linux x86-64); the script compares with these lines:
#
# | av 18.1.0
# | gray tagged limited, 16 and 235
# |   to rgb24: 16 and 235
# |   to rgb24, MPEG to JPEG: 16 and 235
# |   to yuv444p: 30 and 218
# | yuv444p tagged limited, 16 and 235
# |   to rgb24: 0 and 255
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


def frame(form):
    made = av.VideoFrame(256, 16, form)
    for i, plane in enumerate(made.planes):
        values = np.arange(256) if i == 0 else np.full(256, 128)
        plane.update(np.tile(values.astype(np.uint8), (16, 1)).tobytes())
    made.color_range = 1
    return made


def levels(made, form, **ranges):
    plane = made.reformat(format=form, **ranges).planes[0]
    row = np.frombuffer(plane, np.uint8)
    step = 3 if form == "rgb24" else 1
    return f"{row[16 * step]} and {row[235 * step]}"


print("av", av.__version__)
print("gray tagged limited, 16 and 235")
print("  to rgb24:", levels(frame("gray"), "rgb24"))
print("  to rgb24, MPEG to JPEG:", levels(frame("gray"), "rgb24", src_color_range="MPEG", dst_color_range="JPEG"))
print("  to yuv444p:", levels(frame("gray"), "yuv444p"))
print("yuv444p tagged limited, 16 and 235")
print("  to rgb24:", levels(frame("yuv444p"), "rgb24"))
PY
diff expected seen
echo "As described."
