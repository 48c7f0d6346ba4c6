"""The demo's picture: distortions and where their distance comes from, the optimisation, the speed."""

from __future__ import annotations

from os import PathLike

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from .run import Optimised
from .speed import PAIRS, SIZE, Comparison

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
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure = plt.figure(figsize=(15.5, 10.2), layout="constrained")
        note = "" if calibrated else "   (random trunk: distances are UNCALIBRATED)"
        figure.suptitle(f"lpips_fast: LPIPS with the {net} trunk{note}", fontsize=15, fontweight="bold")
        grid = figure.add_gridspec(3, 10, height_ratios=(1, 1, 1.05))

        _image(figure.add_subplot(grid[0, 0:2]), sample, "reference")
        top = max(float(np.quantile(m.numpy(), 0.995)) for _, _, m in maps.values())
        shown, map_axes = None, []
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
        _image(figure.add_subplot(grid[2, 2:4]), optimised.result, f"after {steps} steps,  LPIPS {optimised.losses[-1]:.3f}")
        _image(figure.add_subplot(grid[2, 4:6]), optimised.target, "target")
        axes = figure.add_subplot(grid[2, 6:10])
        axes.plot(range(1, steps + 1), optimised.losses, color=OURS, linewidth=2)
        axes.set(xlabel="step of Adam on the pixels", ylabel="LPIPS to the target", title="Optimising an image against LPIPS")
        axes.set_yscale("log")
        axes.grid(alpha=0.25, which="both")
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
    axes.barh(rows + 0.2, plain_times, 0.36, color=PLAIN, label="plain torch")
    axes.barh(rows - 0.2, times, 0.36, color=OURS, label="lpips_fast")
    axes.set_xscale("log")
    axes.set_xlim(min(times + plain_times) / 3, max(times + plain_times) * 6)
    for row, comparison, milliseconds in zip(rows, comparisons, times, strict=True):
        axes.annotate(
            f"{comparison.ratio:.1f} x", (milliseconds, row - 0.2), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(rows, [c.what.replace(", ", "\n").replace("forward + backward", "fwd + bwd") for c in comparisons])
    axes.set_xlabel(f"ms, median, {PAIRS} pairs {SIZE} x {SIZE}, VGG16")
    axes.set_title("Speed")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.08), ncol=2, frameon=False)
