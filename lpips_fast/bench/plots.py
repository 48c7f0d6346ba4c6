"""Pictures of records, with matplotlib: time against batch and size, memory against batch, layers and the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lpips_fast.bench.ceilings import Ceilings, of_records
from lpips_fast.bench.end_to_end import LIMIT, MODES
from lpips_fast.bench.providers import PROVIDERS
from lpips_fast.bench.records import Record, by_case, distinct
from lpips_fast.bench.tables import case_title
from lpips_fast.trunk.nets import NETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_GRAYS = {"float32": "black", "tf32": "dimgray", "bfloat16": "darkgray", "float16": "lightgray"}
_MARKS = "osD^vP*X"


def figures(results: Mapping[str, Sequence[Record]]) -> dict[str, Figure]:
    """The figures that the records suffice for, by name. Raises ImportError without matplotlib."""
    found = {}
    whole = [r for of_run in by_case("end_to_end", results.get("end_to_end", ())).values() for r in of_run]
    measured = [r for r in whole if "error" not in r]
    for name, x, fixed, y in (
        ("time_against_batch", "pairs", "size", "median_s"),
        ("time_against_size", "size", "pairs", "median_s"),
        ("memory_against_batch", "pairs", "size", "peak_bytes"),
    ):
        figure = _against([r for r in measured if y in r], x, fixed, y)
        if figure is not None:
            found[name] = figure
    ceilings = [r for of_run in by_case("ceilings", results.get("ceilings", ())).values() for r in of_run]
    layers = [r for of_run in by_case("layers", results.get("layers", ())).values() for r in of_run]
    if ceilings and layers:
        found["roofline"] = _roofline(ceilings, [r for r in layers if "error" not in r])
    return found


def _against(records: Sequence[Record], x: str, fixed: str, y: str) -> Figure | None:
    """A row of axes for each net and value of `fixed` with several values of x, and a column for each mode."""
    groups = []
    for net in distinct(records, "net"):
        for value in sorted(set(distinct(records, fixed))):
            group = [r for r in records if r["net"] == net and r[fixed] == value]
            if len(set(distinct(group, x))) > 1:
                groups.append((net, value, group))
    if not groups:
        return None
    figure = _figure((13, 4.2 * len(groups)))
    panels = figure.subplots(len(groups), len(MODES), squeeze=False)
    for row, (net, value, group) in zip(panels, groups, strict=True):
        for axes, mode in zip(row, MODES, strict=True):
            _lines(axes, [r for r in group if r["mode"] == mode], x, y)
            shown = f"{value} pair{'s' * (value != 1)}" if fixed == "pairs" else f"{value} x {value}"
            what = "metric" if mode == "forward" else "training step"
            axes.set_title(f"{NETS[net].title}, {shown}: {what}")
            axes.set_xlabel("pairs" if x == "pairs" else "pixels a side")
            axes.set_ylabel("ms" if y == "median_s" else "peak memory, MiB")
    lines: dict[str, Any] = {}
    for axes in figure.axes:
        lines |= {str(line.get_label()): line for line in axes.get_lines()}
    known = list(PROVIDERS)
    labels = sorted(lines, key=lambda label: known.index(label) if label in known else len(known))  # the limit last
    figure.legend([lines[label] for label in labels], labels, loc="outside right upper", fontsize=8)
    figure.suptitle(records[0]["device"], fontsize=10)
    return figure


def _lines(axes: Axes, records: Sequence[Record], x: str, y: str) -> None:
    scale = 1e3 if y == "median_s" else 2**-20
    for name, precision in dict.fromkeys((r["provider"], r["precision"]) for r in records):
        own = sorted((r for r in records if (r["provider"], r["precision"]) == (name, precision)), key=lambda r: r[x])
        if len(own) < 2:
            continue
        xs, ys = [r[x] for r in own], [scale * r[y] for r in own]
        style = _style(name, precision)
        axes.plot(xs, ys, **style)
        if y == "median_s" and name != LIMIT:
            low, high = ([scale * r[q] for r in own] for q in ("q20_s", "q80_s"))
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({r[x] for r in records})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.minorticks_off()
    _label_logarithms(axes.yaxis)
    axes.grid(alpha=0.25)


def _label_logarithms(axis: Axis) -> None:
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def _style(name: str, precision: str) -> dict[str, Any]:
    """Ours are solid, peers dashed, limits dotted. A provider has the same colour and mark in all pictures."""
    if name == LIMIT:
        return {"color": _GRAYS[precision], "linestyle": ":", "label": f"limit, {precision}", "linewidth": 1.8}
    index = list(PROVIDERS).index(name) if name in PROVIDERS else len(PROVIDERS)
    own = name.startswith("ours")
    return {
        "color": f"C{index % 10}",
        "marker": _MARKS[index % len(_MARKS)],
        "linestyle": "-" if own else "--",
        "linewidth": 2 if own else 1.2,
        "markersize": 4,
        "label": name,
    }


def _roofline(ceilings: Sequence[Record], layers: Sequence[Record]) -> Figure:
    """The rate of each layer over its arithmetic intensity, below the machine's limits; a row for each case."""
    limits = of_records(ceilings)
    cases = list(dict.fromkeys((r["net"], r["pairs"], r["size"]) for r in layers))
    modes = distinct(layers, "mode")
    figure = _figure((13, 5 * len(cases)))
    panels = figure.subplots(len(cases), len(modes), squeeze=False)
    for row, case in zip(panels, cases, strict=True):
        for axes, mode in zip(row, modes, strict=True):
            of_panel = [r for r in layers if (r["net"], r["pairs"], r["size"], r["mode"]) == (*case, mode)]
            _roofs(axes, limits, _points(axes, of_panel))
            axes.set_title(f"{case_title(*case)}: layers, {mode}")
            axes.set(xscale="log", yscale="log", ylabel="GFLOP/s")
            axes.set_xlabel("floating-point operations a byte that must move")
            _label_logarithms(axes.xaxis)
            _label_logarithms(axes.yaxis)
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8)
    figure.suptitle(f"{layers[0]['device']}; operations counted as direct convolution's", fontsize=10)
    return figure


def _points(axes: Axes, records: Sequence[Record]) -> list[float]:
    """Draws the layers and returns their intensities."""
    n_bytes = {(r["layer"], r["precision"]): r["bytes"] for r in records if r["provider"] == LIMIT}
    intensities: list[float] = []
    own = [r for r in records if r["provider"] != LIMIT and (r["layer"], r["precision"]) in n_bytes]
    for i, name in enumerate(distinct(own, "provider")):
        of_provider = [r for r in own if r["provider"] == name]
        xs = [r["flops"] / n_bytes[r["layer"], r["precision"]] for r in of_provider]
        ys = [r["flops"] / r["median_s"] / 1e9 for r in of_provider]
        axes.scatter(xs, ys, marker=_MARKS[i % len(_MARKS)], s=24, color=f"C{i}", label=name)
        intensities += xs
    return intensities


def _roofs(axes: Axes, limits: Ceilings, intensities: Sequence[float]) -> None:
    """Draws the rate that bandwidth and arithmetic allow in each precision."""
    if not intensities or limits.bytes_per_s is None:
        return
    left, right = min(intensities) / 2, max(intensities) * 2
    for precision, rate in limits.flops_per_s.items():
        bends = [left, min(max(rate / limits.bytes_per_s, left), right), right]
        roof = [min(rate, x * limits.bytes_per_s) / 1e9 for x in bends]
        axes.plot(bends, roof, color="black", linewidth=1)
        axes.annotate(precision, (right, roof[-1]), ha="right", va="bottom", fontsize=8)


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
