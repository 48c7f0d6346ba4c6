"""The demo's picture: distortions and where their distance comes from, the optimisation, the speed."""

from __future__ import annotations

from os import PathLike
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from lpips_fast.demo.run import Optimised
from lpips_fast.demo.speed import PAIRS, SIZE, Comparison

OURS, PLAIN = "#1b7f79", "#c9c4b8"


def draw(
    path: str | PathLike[str],
    net: str,
    calibrated: bool,
    sample: np.ndarray,
    maps: dict[str, tuple[np.ndarray, float, Tensor]],
    optimised: Optimised,
    comparisons: list[Comparison],
) -> None:
    """Writes the picture."""
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=(15.5, 10.2), layout="constrained")
        note = "" if calibrated else "   (random trunk: distances are UNCALIBRATED)"
        figure.suptitle(f"lpips_fast: LPIPS with the {net} trunk{note}", fontsize=15, fontweight="bold")
        grid = figure.add_gridspec(3, 10, height_ratios=(1, 1, 1.05))

        _image(figure.add_subplot(grid[0, 0:2]), sample, "reference")
        top = max(float(np.quantile(m.numpy(), 0.995)) for _, _, m in maps.values())
        shown: Any = None
        map_axes = []
        for column, (name, (distorted, value, distance_map)) in enumerate(maps.items(), start=1):
            columns = slice(2 * column, 2 * column + 2)
            _image(figure.add_subplot(grid[0, columns]), distorted, f"{name}:  LPIPS {value:.3f}")
            axes = figure.add_subplot(grid[1, columns])
            shown = axes.imshow(distance_map.numpy(), cmap="magma", vmin=0, vmax=top)
            axes.set_title(f"{name}: distance map")
            axes.set_axis_off()
            map_axes.append(axes)
        figure.colorbar(shown, ax=map_axes, label="LPIPS of a pixel", shrink=0.9, pad=0.01)
        _speed(figure.add_subplot(grid[1, 0:2]), comparisons)

        steps = len(optimised.losses)
        _image(figure.add_subplot(grid[2, 0:2]), optimised.start, f"start: blurred,  LPIPS {optimised.losses[0]:.3f}")
        _image(
            figure.add_subplot(grid[2, 2:4]),
            optimised.result,
            f"after {steps} steps,  LPIPS {optimised.losses[-1]:.3f}",
        )
        _image(figure.add_subplot(grid[2, 4:6]), optimised.target, "target")
        axes = figure.add_subplot(grid[2, 6:10])
        axes.plot(range(1, steps + 1), optimised.losses, color=OURS, linewidth=2)
        axes.set(xlabel="step of Adam on the pixels", title="LPIPS to the target, the only loss")
        axes.set(xlim=(0, steps), ylim=(0, None))
        axes.grid(alpha=0.25)
        figure.savefig(path, dpi=110)
        plt.close(figure)


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
    axes.set_xlabel(f"ms (median), {PAIRS} pair{'s' * (PAIRS > 1)} of {SIZE} x {SIZE}")
    axes.set_title("Speed, VGG16")
