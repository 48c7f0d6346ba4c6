"""Heat maps and curves, with matplotlib (`pip install "lpips-fast[plot]"`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpips_fast._files import replacing
from lpips_fast.cli.drawing import one_line
from lpips_fast.cli.options import UsageError

if TYPE_CHECKING:
    import numpy as np

_MOST_LABELS = 50


def check_plot(path: Path | None, option: str) -> None:
    """Refuses, before the work, what could not be drawn at its end."""
    if path is None:
        return
    figure = _figure((1, 1), option)
    if path.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{option} {path}: no format for plots has the suffix {path.suffix!r}; use .png or .svg")


def save_heatmap(path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """A matrix of distances as colours; names at its sides where they are few."""
    side = min(16.0, 4 + 0.2 * max(values.shape))
    figure = _figure((side + 1, side), "")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="magma", vmin=0, interpolation="nearest", aspect="auto")
    figure.colorbar(image, label="LPIPS")
    for axis, names, turned in ((axes.yaxis, rows, 0), (axes.xaxis, columns, 90)):
        if len(names) <= _MOST_LABELS:
            axis.set_ticks(range(len(names)), [_plain(name) for name in names], rotation=turned, fontsize=7)
    axes.set_title(_plain(title))
    _save(figure, path)


def save_curve(path: Path, x: Sequence[float], y: Sequence[float], x_label: str, title: str) -> None:
    """Distances over time, with their mean."""
    import numpy as np

    figure = _figure((10, 4), "")
    axes = figure.add_subplot()
    axes.plot(x, y, linewidth=1)
    axes.axhline(float(np.nanmean(y)), color="gray", linestyle="--", linewidth=1, label=f"mean {np.nanmean(y):.4f}")
    axes.set(xlabel=x_label, ylabel="LPIPS", title=_plain(title))
    axes.set_ylim(bottom=0)
    axes.legend()
    _save(figure, path)


def _figure(size: tuple[float, float], option: str) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f'{option} needs matplotlib: pip install "lpips-fast[plot]"') from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _plain(text: str) -> str:
    return one_line(text).replace("$", r"\$")  # no formulas in file names
