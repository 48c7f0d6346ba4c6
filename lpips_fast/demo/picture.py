"""The demo's pictures: distorted images and the maps of their distances, alone or with optimisation and speed."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from os import PathLike
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from lpips_fast.demo.speed import Comparison
from lpips_fast.demo.steps import Distorted, Optimised
from lpips_fast.trunk.nets import NETS

OURS, PLAIN = "#1b7f79", "#c9c4b8"
_WIDTH = 900  # of the small picture, in pixels
_COLOURS = 256  # of the small picture: with a palette it takes a third of the bytes
_ABOUT = (  # what stands beside the maps
    "LPIPS compares two images by their deep features, weighted as people judge.",
    "The maps show where the distance comes from.",
    "PSNR compares pixels, and puts “{farthest}” last.",
)


def draw(
    path: str | PathLike[str],
    net: str,
    calibrated: bool,
    reference: np.ndarray,
    distorted: Sequence[Distorted],
    optimised: Optimised,
    comparisons: list[Comparison],
) -> None:
    """Writes the whole picture: distances, speed and the optimisation."""
    with plt.rc_context(_style(10)):
        figure = plt.figure(figsize=(15.5, 10.2), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(2, 1.05))
        above, below = halves
        above.suptitle(_title(net, calibrated), fontsize=15, fontweight="bold")
        _speed(_distances(above, reference, distorted), comparisons)

        grid = below.add_gridspec(1, 5)
        steps = len(optimised.losses) - 1
        first, last = optimised.losses[0], optimised.losses[-1]
        _image(below.add_subplot(grid[0]), optimised.start, f"start: blurred,  LPIPS {first:.3f}")
        _image(below.add_subplot(grid[1]), optimised.result, f"after {steps} steps,  LPIPS {last:.3f}")
        _image(below.add_subplot(grid[2]), optimised.target, "target")
        axes = below.add_subplot(grid[3:])
        axes.plot(range(steps + 1), optimised.losses, color=OURS, linewidth=2)
        axes.set(xlabel="step of Adam on the pixels", title="LPIPS to the target, the only loss")
        axes.set(xlim=(0, steps), ylim=(0, None))
        axes.grid(alpha=0.25)
        figure.draw_without_rendering()  # sets the colour bar's labels, whose width the layout needs
        figure.savefig(path, dpi=110)
        plt.close(figure)


def draw_distances(
    path: str | PathLike[str], net: str, calibrated: bool, reference: np.ndarray, distorted: Sequence[Distorted]
) -> None:
    """Writes the small picture: distances alone."""
    farthest = min(distorted, key=lambda d: d.psnr).name
    about = "\n\n".join(textwrap.fill(line.format(farthest=farthest), 26) for line in _ABOUT)
    with plt.rc_context(_style(8)), io.BytesIO() as file:
        figure = plt.figure(figsize=(_WIDTH / 100, 4.1), dpi=100, layout="constrained")
        figure.suptitle(_title(net, calibrated), fontsize=11, fontweight="bold")
        axes = _distances(figure, reference, distorted)
        axes.set_axis_off()
        axes.text(0, 1, about, va="top", transform=axes.transAxes).set_in_layout(False)
        figure.savefig(file)
        plt.close(figure)
        Image.open(file).convert("RGB").quantize(_COLOURS, kmeans=5).save(path, optimize=True)


def _style(size: float) -> dict[Any, Any]:
    return {"font.size": size, "axes.titlesize": size + 1, "axes.spines.top": False, "axes.spines.right": False}


def _title(net: str, calibrated: bool) -> str:
    note = "" if calibrated else ", RANDOM trunk: the distances are uncalibrated"
    return f"LPIPS ({NETS[net].title}{note}), distance to the reference, nearest first"


def _distances(figure: Any, reference: np.ndarray, distorted: Sequence[Distorted]) -> Axes:
    """Draws the images above their maps; returns the axes that are left free, below the reference."""
    panels = figure.subplots(2, 1 + len(distorted))
    _image(panels[0, 0], reference, "reference")
    top = max(float(np.quantile(d.distance_map.numpy(), 0.995)) for d in distorted)
    shown: Any = None
    for (above, below), d in zip(panels.T[1:], distorted, strict=True):
        _image(above, d.image, f"{d.name}\nLPIPS {d.distance:.3f}\nPSNR {d.psnr:.1f} dB")
        shown = below.imshow(d.distance_map.numpy(), cmap="magma", vmin=0, vmax=top)
        below.set_axis_off()
    figure.colorbar(shown, ax=panels[1, 1:], label="LPIPS of a pixel", shrink=0.9, pad=0.01)
    return panels[1, 0]


def _image(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image)
    axes.set_title(title)
    axes.set_axis_off()


def _speed(axes: Axes, comparisons: list[Comparison]) -> None:
    """Times on a logarithmic axis, with how many times faster."""
    rows = np.arange(len(comparisons))[::-1]
    times, plain_times = ([1e3 * getattr(c, name) for c in comparisons] for name in ("seconds", "plain_seconds"))
    axes.barh(rows + 0.2, plain_times, 0.36, color=PLAIN)
    axes.barh(rows - 0.2, times, 0.36, color=OURS)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 3, max(plain_times) * 6)
    labels = [f"{c.ratio:.1f} x faster" if c.ratio >= 1 else f"{1 / c.ratio:.1f} x slower" for c in comparisons]
    labels[0] = f"lpips_fast: {labels[0]}"
    after: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
    axes.annotate("plain torch", (plain_times[0], rows[0] + 0.2), **after)
    for row, label, milliseconds in zip(rows, labels, times, strict=True):
        axes.annotate(label, (milliseconds, row - 0.2), **after)
    axes.set_yticks(rows, [c.what.replace(", ", "\n").replace("forward + backward", "fwd + bwd") for c in comparisons])
    axes.set_xlabel("ms (median), a pair of 256 x 256")
    axes.set_title(f"Speed, {NETS['vgg'].title}")
