"""The index of sketches against the index of whole vectors: what it finds, and its time, its bytes and its limits.

    python -m benchmarks.search recall|query|build|bytes|million [--net alex --size 64 --json search.jsonl]
    python -m benchmarks.search --table benchmarks/results/cpu-2core/search.jsonl [recall|query|build|bytes|million]

    recall   how many of the true k nearest a search finds, and with how many images it compares exactly; beside it what
             the 20 and 50 best by sketch alone would hold
    query    the time of a search, one query or 16 at a time, and of its parts; with FAISS; and the limit, reading the
             sketches once
    build    the time of building an index, against embedding the same batches
    bytes    bytes an image, in memory and in a file
    million  an index file of random sketches: loading, a scan, a search by estimates alone, and memory

The images are patches of photographs (benchmarks/photographs.py), with ImageNet's weights: with random ones there are
other distances. The seeds are fixed. What is compared in time takes turns. Nothing is timed unless the results agree.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import lpips_fast
from benchmarks import photographs
from benchmarks.matrix import resident_memory
from lpips_fast import sketch
from lpips_fast.bench import ceilings
from lpips_fast.bench.records import Run, append, distinct
from lpips_fast.bench.tables import context, ms, table
from lpips_fast.bench.timing import Clock, Quantiles, interleaved
from lpips_fast.pairwise import pairwise_tiles
from lpips_fast.search import Index
from lpips_fast.search.files import Table, write
from lpips_fast.search.index import Queries

TOLERANCE = 1e-5  # of distances in float32
OF_VECTORS = 5e-5  # of distances to vectors in float16
BEST = (20, 50)  # candidates by sketch alone
BATCH = 16  # queries that are searched for at once
TIMED = 32  # different queries, in turn
FAISS = ("IVF256,Flat", "HNSW32,Flat", "PQ128x4fs")  # 8 bits a part, as in PQ64, take FAISS minutes to learn
SMALL = 10_000  # images of the index whose load time must be that of the large one
WHOLE, CONFIRMING = "whole vectors", "part: the candidates' exact distances"
LOADING, ESTIMATES = "loading", "candidates and the nearest by estimate"
ROWS = 1_000  # random sketches that are made at a time
CPU = torch.device("cpu")


def score(exact, indices, k):
    """Of each query, the share of its k nearest that is among `indices`; of equally near images, any count."""
    kth = exact.topk(k, largest=False).values[:, -1:]
    return (exact.gather(1, indices) <= kth * (1 + TOLERANCE) + 1e-9).sum(dim=1).clamp(max=k).double() / k


def recall(fn, size, args):
    where = photographs.places(args.images, size, seed=0)
    patches, queries = photographs.cut(where, size), photographs.queries(args.queries, where, size, seed=1)
    exact = torch.cat([tile for _, _, tile in pairwise_tiles(fn, queries, patches, block=len(queries))], dim=1)
    index = Index.build(fn, patches, sketch=args.sketch, batch=args.batch)
    found, read, error = [], [], 0.0
    for i in range(len(queries)):
        patches.taken.clear()
        distances, indices = index.search(queries[i : i + 1], args.k)
        found.append(indices)
        read.append(len(patches.taken))
        error = max(error, (distances[0] - exact[i, indices[0]]).abs().max().item())
    if not error <= TOLERANCE:
        raise SystemExit(f"the distances are off by {error:.2e}, more than {TOLERANCE}")
    by_sketch = index.search(queries, max(BEST), estimate=True)[1]
    scores = {"search": score(exact, torch.cat(found), args.k)}
    scores |= {f"the {n} best by sketch": score(exact, by_sketch[:, :n], args.k) for n in BEST}
    for provider, of_queries in scores.items():
        record = {
            "provider": provider,
            "queries": len(queries),
            "k": args.k,
            "sketch": args.sketch,
            "recall": of_queries.mean().item(),
            "queries_with_a_miss": int((of_queries < 1).sum()),
            "worst_query": of_queries.min().item(),
        }
        if provider == "search":
            record["confirmed_mean"] = statistics.mean(read)
            record["confirmed_median"] = statistics.median(read)
            record["confirmed_max"] = max(read)
            record["largest_difference"] = error
        yield record


def query(fn, size, args):
    where = photographs.places(args.images, size, seed=0)
    patches, queries = photographs.cut(where, size), photographs.queries(args.queries, where, size, seed=1)
    whole = Index.build(fn, patches, batch=args.batch)
    index = Index.build(fn, patches, sketch=args.sketch, batch=args.batch)
    images, k = queries[: len(queries)], args.k
    expected = whole.search(images, k)
    searches = {WHOLE: functools.partial(whole.search, k=k), "sketches": functools.partial(index.search, k=k)}
    searches |= {
        f"sketches, FAISS {factory}": functools.partial(index.search, k=k, faiss=factory) for factory in args.faiss
    }
    recalls = {name: agreement(search(images), expected) for name, search in searches.items()}
    timed = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:TIMED]]
    singles = timed.split(1)
    compared = [index.queries(single) for single in singles]
    candidates = [index.candidates(one, k) for one in compared]
    patches.taken.clear()
    for pair in zip(compared, candidates):
        confirm(index, k, pair)
    confirmed = len(patches.taken) / len(compared)
    copy, copied = ceilings.copy(CPU)
    setups = {(name, 1): turns(search, singles) for name, search in searches.items()}
    setups |= {(name, BATCH): turns(search, timed.split(BATCH)) for name, search in searches.items()}
    setups |= {
        ("part: the query's vector and sketch", 1): turns(index.queries, singles),
        ("part: candidates", 1): turns(functools.partial(index.candidates, k=k), compared),
        ("of that, the distances of sketches", 1): turns(functools.partial(scan, index), compared),
        (CONFIRMING, 1): turns(functools.partial(confirm, index, k), list(zip(compared, candidates))),
        ("a copy", 1): lambda: copy,
    }
    times, failures = interleaved(setups, Clock(CPU), args.rounds)
    if failures:
        raise SystemExit(f"failed: {failures}")
    seconds = index.sketches.nbytes / (copied / times.pop(("a copy", 1)).median)
    times["limit: reading the sketches once, at the rate of a copy", 1] = Quantiles.of([seconds])
    for (name, batch), quantiles in times.items():
        record = {"provider": name, "queries": batch, "k": k, "sketch": args.sketch, **quantiles.record()}
        record["times_faster"] = times[WHOLE, batch].median / quantiles.median
        if name in recalls:
            record["recall"] = recalls[name]
        if name == CONFIRMING:
            record["confirmed_mean"] = confirmed
        yield record


def agreement(found, expected):
    """The share of the k nearest that was found; an error if an image's distance is not what is expected."""
    (distances, rows), (true, true_rows) = found, expected
    off = (distances[:, :, None] - true[:, None]).abs().where(rows[:, :, None] == true_rows[:, None], 0)
    if not off.max() <= OF_VECTORS:
        raise SystemExit(f"the distances differ by {off.max():.2e}, more than {OF_VECTORS}: nothing was timed")
    return (distances <= true[:, -1:] + OF_VECTORS).double().mean().item()


def scan(index, queries):
    return sketch.distances(queries.sketches, index.sketches)


def turns(call, arguments):
    """The setup of a call that gets the next of the arguments at each turn."""
    following = itertools.cycle(arguments)
    return lambda: functools.partial(call, next(following))


def build(fn, size, args):
    patches = photographs.cut(photographs.places(args.images, size, seed=0), size)
    calls = {
        "embedding alone": functools.partial(embed, fn, patches, args.batch),
        "sketches": functools.partial(Index.build, fn, patches, sketch=args.sketch, batch=args.batch),
        WHOLE: functools.partial(Index.build, fn, patches, batch=args.batch),
    }
    times, failures = interleaved({name: lambda c=call: c for name, call in calls.items()}, Clock(CPU), args.rounds)
    if failures:
        raise SystemExit(f"failed: {failures}")
    for name, quantiles in times.items():
        yield {
            "provider": name,
            "batch": args.batch,
            "sketch": args.sketch,
            **quantiles.record(),
            "times_embedding": quantiles.median / times["embedding alone"].median,
        }


def embed(fn, images, batch):
    for start in range(0, len(images), batch):
        fn.embed(images[start : start + batch])


def bytes_an_image(fn, size, args):
    patches = photographs.cut(photographs.places(args.images, size, seed=0), size)
    names = [f"photographs/{i:06}.png" for i in range(len(patches))]
    in_memory, in_file = {}, {}
    for kind, length in ((WHOLE, None), ("sketches", args.sketch)):
        index = Index.build(fn, patches, names=names, sketch=length, batch=args.batch)
        tensors = [tensor for tensor in (index.vectors, index.sketches) if tensor is not None]
        in_memory[kind] = sum(tensor.nbytes for tensor in tensors) / len(patches)
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder) / "index")
            in_file[kind] = (Path(folder) / "index").stat().st_size / len(patches)
    for kind in in_memory:
        yield {
            "provider": kind,
            "sketch": args.sketch,
            "bytes_in_memory": in_memory[kind],
            "bytes_in_file": in_file[kind],
            "times_less": in_file[WHOLE] / in_file[kind],
        }


def million(fn, size, args):
    image = photographs.cut(photographs.places(1, size, seed=0), size)[:1]
    header = Index.build(fn, image, sketch=args.sketch).header
    with tempfile.TemporaryDirectory() as folder:
        files = {n: Path(folder) / f"{n}.index" for n in sorted({min(SMALL, args.images), args.images})}
        setups = {}
        for n, path in files.items():
            write_random(path, header, n, Path(folder) / "sketches")
            index = Index.load(path, fn)
            compared = [stored_query(index, i * n // BATCH) for i in range(BATCH)]
            setups[LOADING, n] = lambda path=path: functools.partial(Index.load, path, fn)
            setups["distances of sketches", n] = turns(functools.partial(scan, index), compared)
            setups[ESTIMATES, n] = turns(functools.partial(estimates, index, k=args.k), compared)
        times, failures = interleaved(setups, Clock(CPU), args.rounds)
        if failures:
            raise SystemExit(f"failed: {failures}")
        memory = {n: memory_of(path, fn.pnet_type, args) for n, path in files.items()}
        for (name, n), quantiles in times.items():
            record = {"provider": name, "images": n, "sketch": args.sketch, "k": args.k, **quantiles.record()}
            yield record | {"bytes_in_file": files[n].stat().st_size / n} | memory[n].get(name, {})


def write_random(path, header, n, scratch):
    """An index of n random sketches; `scratch` is a file that holds them meanwhile.

    They lie around centres, ROWS around each, as images lie: few are near one of them, and most are far. Were they
    independent, all would be at nearly one distance from each other.
    """
    length, norm = header.sketch.length, 0.5 * (header.size[0] * header.size[1]) ** 0.5
    gen = torch.Generator().manual_seed(0)
    sketches = torch.from_file(str(scratch), shared=True, size=n * length, dtype=torch.float16).view(n, length)
    for rows in sketches.split(ROWS):
        spread = torch.rand(len(rows), 1, generator=gen)
        around = spread * torch.randn(rows.shape, generator=gen) + torch.randn(length, generator=gen)
        rows.copy_(around * (norm / length**0.5))
    write(path, header, [Table(sketches, None, None, None)])
    del sketches
    scratch.unlink()


def stored_query(index, row):
    """A query with the sketch of a row. Its vector is not known, and searching by estimates does not need it."""
    return Queries(torch.empty(1, 0), index.sketches[row : row + 1].float())


def confirm(index, k, pair):
    queries, candidates = pair
    return index.nearest(queries, k, lambda _: candidates)


def estimates(index, queries, k):
    find = functools.partial(index.candidates, queries, estimate=True)
    return index.nearest(queries, k, find, estimate=True)


def memory_of(path, net, args):
    """How far resident memory rises in a process of its own that loads an index and searches in it."""
    command = [sys.executable, "-m", "benchmarks.search", "--measure", path, "--net", net]
    command += ["--threads", args.threads, "--k", args.k]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(path, fn, k):
    Index.load(path, fn)  # what loading imports is not counted
    kinds = {"MiB_own": "RssAnon", "MiB_of_the_file": "RssFile"}
    before = {name: resident_memory(kind) for name, kind in kinds.items()}

    def risen():
        return {name: (resident_memory(kind) - before[name]) / 2**20 for name, kind in kinds.items()}

    index = Index.load(path, fn)
    found = {LOADING: risen()}
    estimates(index, stored_query(index, 0), k)
    print(json.dumps(found | {ESTIMATES: risen()}))


class Part(NamedTuple):
    """What measures it; the nets, sizes, images and rounds if none are given; and its columns beside the case."""

    measure: Callable
    nets: tuple
    sizes: tuple
    images: int
    rounds: int
    columns: dict  # by heading, what makes a cell of a record


def cell(field, form):
    return lambda record: format(record[field], form) if field in record else ""


TIMES = {"ms (20% to 80%)": ms}
PARTS = {
    "recall": Part(
        recall,
        nets=("alex", "squeeze"),
        sizes=(64, 128),
        images=20_000,
        rounds=0,
        columns={
            "recall": cell("recall", ".2%"),
            "queries with a miss": cell("queries_with_a_miss", ""),
            "the worst": cell("worst_query", ".0%"),
            "compared exactly: mean": cell("confirmed_mean", ".1f"),
            "median": cell("confirmed_median", ".0f"),
            "most": cell("confirmed_max", ""),
        },
    ),
    "query": Part(
        query,
        nets=("alex",),
        sizes=(64,),
        images=100_000,
        rounds=9,
        columns={
            "queries a call": cell("queries", ""),
            **TIMES,
            "times faster": cell("times_faster", ".3g"),
            "recall": cell("recall", ".2%"),
            "candidates": cell("confirmed_mean", ".1f"),
        },
    ),
    "build": Part(
        build,
        nets=("alex", "squeeze"),
        sizes=(64, 128),
        images=4_000,
        rounds=3,
        columns={**TIMES, "x embedding alone": cell("times_embedding", ".3f")},
    ),
    "bytes": Part(
        bytes_an_image,
        nets=("alex", "squeeze"),
        sizes=(64, 128),
        images=2_000,
        rounds=0,
        columns={
            "bytes an image in memory": cell("bytes_in_memory", ",.0f"),
            "in the file": cell("bytes_in_file", ",.0f"),
            "times less": cell("times_less", ".1f"),
        },
    ),
    "million": Part(
        million,
        nets=("alex",),
        sizes=(64,),
        images=1_000_000,
        rounds=15,
        columns={
            **TIMES,
            "bytes an image in the file": cell("bytes_in_file", ",.0f"),
            "own memory, MiB": cell("MiB_own", ".0f"),
            "the file's pages in memory, MiB": cell("MiB_of_the_file", ".0f"),
        },
    ),
}


def tables(records):
    """The last record of each measurement, a table for each part and run."""
    key = ("benchmark", "net", "size", "images", "provider", "queries")
    last = {tuple(record.get(field) for field in key): record for record in records}.values()
    blocks = []
    for name, part in PARTS.items():
        of_part = [record for record in last if record["benchmark"] == name]
        for run in distinct(of_part, "run"):
            of_run = [record for record in of_part if record["run"] == run]
            rows = [
                [r["net"], f"{r['images']:,} of {r['size']} x {r['size']}", r["provider"]]
                + [column(r) for column in part.columns.values()]
                for r in of_run
            ]
            blocks += [f"**{name}**, {context(of_run)}", table(["net", "images", "", *part.columns], rows)]
    return "\n\n".join(blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=tuple(PARTS))
    parser.add_argument("--net", nargs="+", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--size", nargs="+", type=int)
    parser.add_argument("--images", type=int)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--sketch", type=int, default=sketch.LENGTH)
    parser.add_argument("--batch", type=int, default=16, help="images that are embedded at once")
    parser.add_argument("--faiss", nargs="*", default=FAISS, metavar="FACTORY", help="what `query` searches by, too")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--table", type=Path, help="print the tables of these records")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        records = [json.loads(line) for line in args.table.read_text().splitlines()]
        print(tables([record for record in records if args.part in (None, record["benchmark"])]))
        return
    torch.set_num_threads(args.threads)
    if args.measure:
        print_memory(args.measure, lpips_fast.LPIPS(net=args.net[0], verbose=False), args.k)
        return
    if args.part is None:
        parser.error(f"name a part: {', '.join(PARTS)}")
    part = PARTS[args.part]
    args.images, args.rounds = args.images or part.images, args.rounds or part.rounds
    run = Run(CPU)
    for net, size in itertools.product(args.net or part.nets, args.size or part.sizes):
        fn = lpips_fast.LPIPS(net=net, verbose=False)
        for measured in part.measure(fn, size, args):
            record = {"benchmark": args.part, "net": net, "size": size, "images": args.images, **measured}
            print("  ".join(f"{key} {value}" for key, value in record.items()), flush=True)
            if args.json:
                append(args.json, {**record, **run.context})


if __name__ == "__main__":
    main()
