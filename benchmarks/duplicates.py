"""Near-duplicates: how far changed photographs are from themselves, how well sketches estimate that, pairs a second.

    python -m benchmarks.duplicates changes|estimates|pairs [--net alex --size 64 128 256 --json duplicates.jsonl]
    python -m benchmarks.duplicates --table benchmarks/results/cpu-2core/duplicates.jsonl [changes|estimates|pairs]

    changes    LPIPS of patches of photographs (benchmarks/photographs.py) and the same patches changed: compressed,
               resized, moved, brightened; and of different patches
    estimates  the distances of sketches with many seeds, whole and folded, relative to LPIPS, for these patches; and
               how many are above what the search allows a pair at its limit
    pairs      the time of looking for near-duplicates among random sketches, of which none are near

The weights are ImageNet's, and the seeds are fixed.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

import lpips_fast
from benchmarks import photographs
from benchmarks.search import cell
from lpips_fast.bench.records import Run, append, distinct
from lpips_fast.bench.tables import context, ms, table
from lpips_fast.bench.timing import Clock, interleaved
from lpips_fast.search import Index, duplicates
from lpips_fast.search.header import make_header, tap_shapes
from lpips_fast.search.index import Table
from lpips_fast.sketch import Sketch, fold, sketch_embeddings

LIMIT = 0.1
QUANTILES = 0.05, 0.5, 0.95
UNLIKE = 0.5  # LPIPS of random sketches
CPU = torch.device("cpu")


def compressed(patch, quality):
    file = io.BytesIO()
    patch.save(file, "JPEG", quality=quality)
    return Image.open(file)


def resized(patch):
    small = patch.resize((patch.width // 2, patch.height // 2), Image.Resampling.BICUBIC)
    return small.resize(patch.size, Image.Resampling.BICUBIC)


CHANGES = {
    "JPEG, quality 75": functools.partial(compressed, quality=75),
    "JPEG, quality 50": functools.partial(compressed, quality=50),
    "JPEG, quality 30": functools.partial(compressed, quality=30),
    "half the size, and back": resized,
    "10 % brighter": lambda patch: ImageEnhance.Brightness(patch).enhance(1.1),
}
MOVED, DIFFERENT = "one pixel to the right and down", "another patch"


def versions(fn, images, size):
    """The embeddings of patches, and those of each change of them by name."""
    larger = photographs.cut(photographs.places(images, size + 1, seed=0), size + 1).values  # so that they can move
    patches = [Image.fromarray(values[:size, :size]) for values in larger]

    def embed(values):
        return fn.embed(photographs.Patches(np.stack(values)))

    own = embed(larger[:, :size, :size])
    changed = {name: embed([np.asarray(change(patch)) for patch in patches]) for name, change in CHANGES.items()}
    return own, changed | {MOVED: embed(larger[:, 1:, 1:]), DIFFERENT: own.roll(1, dims=0)}


def changes(fn, size, args):
    own, changed = versions(fn, args.images, size)
    for name, other in changed.items():
        distances = (own - other).square().sum(dim=1)
        low, median, high = distances.quantile(torch.tensor(QUANTILES)).tolist()
        near = (distances < LIMIT).double().mean().item()
        yield {"provider": name, "low": low, "median": median, "high": high, "near": near}


def estimates(fn, size, args):
    own, changed = versions(fn, args.images, size)
    differences = torch.cat([other - own for other in changed.values()])
    exact = differences.square().sum(dim=1)
    differences, exact = differences[exact > 0], exact[exact > 0]
    ratios = {length: [] for length in (args.sketch, duplicates._FOLDED)}
    for seed in range(args.seeds):
        sketches = sketch_embeddings(Sketch(args.sketch, seed), differences, tap_shapes(fn, (size, size)))
        for length, found in ratios.items():
            found.append(fold(sketches, length).square().sum(dim=1) / exact)
    for length, found in ratios.items():
        ratio = torch.cat(found)
        yield {
            "provider": f"sketches of {length}",
            "pairs": len(ratio),
            "spread": ratio.std().item(),
            "bound": Sketch(length).spread,
            "largest": ratio.max().item(),
            "allowed": duplicates._margin(length),
            "above": int((ratio > duplicates._margin(length)).sum()),
        }


def pairs(fn, size, args):
    generator = torch.Generator().manual_seed(0)
    scale = size * math.sqrt(UNLIKE / 2 / args.sketch)
    sketches = (torch.randn(args.images, args.sketch, generator=generator) * scale).half()
    header = make_header(fn, (size, size), False, False, False, Sketch(args.sketch))
    index = Index(fn, header, Table(sketches, None, None, None))
    find = functools.partial(duplicates.duplicates, index, below=LIMIT)
    if find():
        raise SystemExit("random sketches are near each other: nothing was timed")
    times, failures = interleaved({"random sketches": lambda: find}, Clock(CPU), args.rounds)
    if failures:
        raise SystemExit(f"failed: {failures}")
    count = args.images * (args.images - 1) / 2
    for name, quantiles in times.items():
        yield {"provider": name, **quantiles.record(), "pairs_per_s": count / quantiles.median}


PARTS = {
    "changes": (
        changes,
        {
            "5 %": cell("low", ".4f"),
            "median": cell("median", ".4f"),
            "95 %": cell("high", ".4f"),
            f"below {LIMIT}": cell("near", ".1%"),
        },
    ),
    "estimates": (
        estimates,
        {
            "pairs": cell("pairs", ","),
            "spread": cell("spread", ".1%"),
            "bound": cell("bound", ".1%"),
            "largest estimate / LPIPS": cell("largest", ".2f"),
            "allowed": cell("allowed", ".2f"),
            "above": cell("above", ""),
        },
    ),
    "pairs": (
        pairs,
        {
            "ms (20% to 80%)": ms,
            "million pairs a second": lambda record: f"{record['pairs_per_s'] / 1e6:.0f}",
            "hours for a million images": lambda record: f"{5e11 / record['pairs_per_s'] / 3600:.1f}",
        },
    ),
}


def tables(records):
    """The last record of each measurement, a table for each part and run."""
    key = ("benchmark", "net", "size", "images", "provider")
    last = {tuple(record[field] for field in key): record for record in records}.values()
    blocks = []
    for name, (_, columns) in PARTS.items():
        of_part = [record for record in last if record["benchmark"] == name]
        for run in distinct(of_part, "run"):
            of_run = [record for record in of_part if record["run"] == run]
            rows = [
                [r["net"], f"{r['images']:,} of {r['size']} x {r['size']}", r["provider"]]
                + [column(r) for column in columns.values()]
                for r in of_run
            ]
            blocks += [f"**{name}**, {context(of_run)}", table(["net", "images", "", *columns], rows)]
    return "\n\n".join(blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=tuple(PARTS))
    parser.add_argument("--net", default="alex", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--size", nargs="+", type=int, default=(64, 128, 256))
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=30, help="sketches of each pair")
    parser.add_argument("--sketch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--table", type=Path, help="print the tables of these records")
    args = parser.parse_args()
    if args.table:
        records = [json.loads(line) for line in args.table.read_text().splitlines()]
        print(tables([record for record in records if args.part in (None, record["benchmark"])]))
        return
    if args.part is None:
        parser.error(f"name a part: {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    fn, run = lpips_fast.LPIPS(net=args.net, verbose=False), Run(CPU)
    measure, _ = PARTS[args.part]
    for size in args.size:
        for measured in measure(fn, size, args):
            record = {"benchmark": args.part, "net": args.net, "size": size, "images": args.images, **measured}
            print("  ".join(f"{key} {value}" for key, value in record.items()), flush=True)
            if args.json:
                append(args.json, {**record, **run.context})


if __name__ == "__main__":
    main()
