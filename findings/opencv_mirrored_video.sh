#!/usr/bin/env bash
# OpenCV 5.0.0 ignores the mirroring of a video's display matrix, and turns a mirrored frame by 180 degrees.
#
# The display matrix of an MP4, MOV or Matroska stream says how frames are to be shown. It can turn them, mirror them, or
# both, as front cameras do. cv2.VideoCapture turns frames by default (CAP_PROP_ORIENTATION_AUTO), and takes no more than
# the angle from the matrix. Of a mirrored one the angle alone is meaningless: "mirrored left to right" reads as 180 degrees,
# "mirrored top to bottom" as 0. PyAV's frame.rotation is that same angle; frame.side_data has the matrix.
#
# One would expect: the picture that the matrix asks for, as ffmpeg, whose libraries OpenCV uses, makes it with -autorotate;
# or the frame as it is stored.
#
# Output seen (Python 3.11, Linux x86-64); the script compares with these lines:
#
# | opencv-python-headless 5.0.0 av 18.1.0
# | stored: R G / B W
# | display matrix 0 1 -1 0
# |   as it is to be shown: B R / W G
# |   OpenCV:               B R / W G
# |   PyAV's frame.rotation: -90
# | display matrix -1 0 0 -1
# |   as it is to be shown: W B / G R
# |   OpenCV:               W B / G R
# |   PyAV's frame.rotation: -180
# | display matrix -1 0 0 1
# |   as it is to be shown: G R / W B
# |   OpenCV:               W B / G R
# |   PyAV's frame.rotation: -180
# | display matrix 1 0 0 -1
# |   as it is to be shown: B W / R G
# |   OpenCV:               R G / B W
# |   PyAV's frame.rotation: 0
# | display matrix 0 1 1 0
# |   as it is to be shown: R B / G W
# |   OpenCV:               B R / W G
# |   PyAV's frame.rotation: -90
# | display matrix 0 -1 -1 0
# |   as it is to be shown: W G / B R
# |   OpenCV:               G W / R B
# |   PyAV's frame.rotation: 90
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 av==18.1.0 numpy==2.4.6

cd "$work"
venv/bin/python - >seen <<'PY'
import av
import cv2
import numpy as np

QUARTERS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def picture():
    """R G over B W."""
    image = np.zeros((48, 64, 3), np.uint8)
    for n, color in enumerate(QUARTERS.values()):
        image[n // 2 * 24 :, n % 2 * 32 :] = color
    return image


def named(image):
    """The quarters of an RGB image, row by row."""
    height, width = image.shape[:2]
    rows = [[tuple(image[y, x]) for x in (width // 4, 3 * width // 4)] for y in (height // 4, 3 * height // 4)]
    names = {color: name for name, color in QUARTERS.items()}
    return " / ".join(" ".join(names[color] for color in row) for row in rows)


def shown(image, matrix):
    """By the definition of the display matrix a, b, u, c, d, v, x, y, w: (x, y) is shown at (ax + cy, bx + dy)."""
    a, b, _, c, d = matrix[:5]
    if a == d == 0:
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: int(np.sign(d)), :: int(np.sign(a))]


print("opencv-python-headless", cv2.__version__, "av", av.__version__)
print("stored:", named(picture()))
for degrees, hflip in ((-90, False), (180, False), (0, True), (180, True), (-90, True), (90, True)):
    with av.open("clip.mov", "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        stream.set_display_rotation(degrees, hflip=hflip)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture())))
        container.mux(stream.encode())
    with av.open("clip.mov") as container:
        frame = next(container.decode(video=0))
    matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)
    _, read = cv2.VideoCapture("clip.mov").read()
    print("display matrix", *(matrix[[0, 1, 3, 4]] // 65536).tolist())
    print("  as it is to be shown:", named(shown(frame.to_ndarray(format="rgb24"), matrix)))
    print("  OpenCV:              ", named(read[:, :, ::-1]))
    print("  PyAV's frame.rotation:", frame.rotation)
PY
diff -u expected seen
echo "As described."
