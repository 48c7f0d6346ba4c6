"""Markdown tables of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from lpips_fast.bench.providers import BASELINE, PROVIDERS
from lpips_fast.bench.records import Record, by_case, distinct
from lpips_fast.trunk.nets import NETS


def markdown(results: Mapping[str, Sequence[Record]]) -> str:
    """The tables of all benchmarks, each below a line that says what it shows."""
    blocks = [block for name, records in results.items() for block in _TABLES[name](records)]
    return "\n\n".join(blocks) + "\n"


def _ceilings(records: Sequence[Record]) -> Iterable[str]:
    for of_run in by_case("ceilings", records).values():
        yield f"**The machine's limits**, {context(of_run)}"
        rows = []
        for record in of_run:
            what = "a large copy" if record["what"] == "copy" else f"a large matrix product, {record['precision']}"
            if "error" in record:
                rows.append([what, "", f"not measured: {record['error']}"])
            elif record["what"] == "copy":
                rows.append([what, ms(record), f"{_number(record['bytes_per_s'] / 1e9)} GB/s"])
            else:
                rows.append([what, ms(record), f"{_number(record['flops_per_s'] / 1e9)} GFLOP/s"])
        yield table(["what", "ms (20% to 80%)", "rate"], rows)


def _head(records: Sequence[Record]) -> Iterable[str]:
    for (*case, precision), of_run in by_case("head", records).items():
        yield f"**The head, {case_title(*case)}, {precision}**, {context(of_run)}"
        rows = []
        for layout in distinct(of_run, "layout"):
            for mode in distinct(of_run, "mode"):
                group = {r["provider"]: r for r in of_run if (r["layout"], r["mode"]) == (layout, mode)}
                of_copy = _bandwidth(group.get("copy"))
                for name, record in group.items():
                    if name == "copy" or "error" in record:
                        continue
                    bandwidth = _bandwidth(record)
                    assert bandwidth is not None
                    share = f"{bandwidth / of_copy:.0%}" if of_copy is not None else ""
                    ratio = _ratio(group.get("reference"), record)
                    gigabytes = _number(bandwidth / 1e9)
                    rows.append([layout.replace("_", "-"), mode, name, ms(record), ratio, gigabytes, share])
        yield table(["layout", "mode", "provider", "ms (20% to 80%)", "x reference", "GB/s", "share of a copy"], rows)
        yield from _failures(of_run)


def _bandwidth(record: Record | None) -> float | None:
    return None if record is None or "error" in record else record["bytes"] / record["median_s"]


def _end_to_end(records: Sequence[Record]) -> Iterable[str]:
    for case, of_run in by_case("end_to_end", records).items():
        yield f"**LPIPS, {case_title(*case)}**, {context(of_run)}"
        cells = {(r["provider"], r["precision"], r["mode"]): r for r in of_run if "error" not in r}
        baseline = {mode: r for (name, _, mode), r in cells.items() if name == BASELINE}
        rows = []
        names = [*PROVIDERS, *distinct(of_run, "provider")]
        for name, precision in sorted(dict.fromkeys(key[:2] for key in cells), key=lambda key: names.index(key[0])):
            forward, step = (cells.get((name, precision, mode)) for mode in ("forward", "step"))
            row = [f"*{name}*" if name == "limit" else name, precision]
            for mode, record in (("forward", forward), ("step", step)):
                row += [ms(record), _ratio(baseline.get(mode), record), _mebibytes(record, "peak_bytes")]
            rows.append([*row, _mebibytes(step, "kept_bytes")])
        times = f"x {BASELINE}"
        head = [
            "provider",
            "precision",
            "forward, ms (20% to 80%)",
            times,
            "peak, MiB",
            "step, ms (20% to 80%)",
            times,
            "peak, MiB",
        ]
        yield table([*head, "kept, MiB"], rows)
        yield from _failures(of_run)


def _layers(records: Sequence[Record]) -> Iterable[str]:
    for (*case, mode), of_run in by_case("layers", records).items():
        images = of_run[0]["images"]
        yield f"**The trunk's layers, {mode}, {case_title(*case)} ({images} images)**, {context(of_run)}"
        cells = {(r["layer"], r["provider"], r["precision"]): r for r in of_run if "error" not in r}
        columns = list(dict.fromkeys(key[1:] for key in cells))
        ours = next((column for column in columns if column[0] == "ours"), None)
        rows = []
        for layer in distinct(of_run, "layer"):
            of_layer = [cells.get((layer, *column)) for column in columns]
            own = cells.get((layer, *ours)) if ours is not None else None
            rate = "" if own is None else _number(own["flops"] / own["median_s"] / 1e9)
            rows.append([layer, *(_milliseconds(record) for record in of_layer), rate])
        total = ["all"]
        for column in columns:
            times = [cells.get((layer, *column)) for layer in distinct(of_run, "layer")]
            total.append(_number(1e3 * sum(r["median_s"] for r in times if r)) if all(times) else "")
        names = [f"{name}, {precision}" if name == "limit" else name for name, precision in columns]
        yield table(["ms", *names, "ours, GFLOP/s"], [*rows, [*total, ""]])
        yield from _failures(of_run)


_TABLES: Mapping[str, Callable[[Sequence[Record]], Iterable[str]]] = {
    "ceilings": _ceilings,
    "head": _head,
    "end_to_end": _end_to_end,
    "layers": _layers,
}


def case_title(net: str, pairs: int, size: int) -> str:
    return f"{NETS[net].title}, {pairs} pair{'s' * (pairs != 1)} of {size} x {size}"


def context(records: Sequence[Record]) -> str:
    first = records[0]
    commit = first["commit"] or "no commit"
    return f"{first['device']}, torch {first['torch']}, {commit}, {first['date'][:10]}"


def _failures(records: Sequence[Record]) -> Iterable[str]:
    """A list of the providers that were not measured, with the reason."""
    failed = dict.fromkeys((r["provider"], r["error"]) for r in records if "error" in r)
    if failed:
        yield "\n".join(f"- not measured: {name}: {_plain(error)}" for name, error in failed)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def ms(record: Record | None) -> str:
    """The median; with its quantiles if they differ from it."""
    if record is None:
        return ""
    q20, median, q80 = (_number(1e3 * record[key]) for key in ("q20_s", "median_s", "q80_s"))
    return median if record["q20_s"] == record["q80_s"] else f"{median} ({q20} to {q80})"


def _milliseconds(record: Record | None) -> str:
    return "" if record is None else _number(1e3 * record["median_s"])


def _ratio(slow: Record | None, fast: Record | None) -> str:
    if slow is None or fast is None or "error" in slow:
        return ""
    return f"{slow['median_s'] / fast['median_s']:.2f}"


def _mebibytes(record: Record | None, field: str) -> str:
    return "" if record is None or field not in record else f"{record[field] / 2**20:.0f}"


def _number(value: float) -> str:
    """A number with at least three digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"
