"""What the head's CUDA kernels cost, read from the compiled library.

csrc/head/cuda/ says what a kernel does with a tile. In the machine code of a main kernel there is a way for each path
of `with_tile`: in the backward within the loop over a block's tiles, in the forward through the whole function. The
ways that copy asynchronously are found by their wait; the one with barriers is `planar`. (The strided path does not
copy so, and is not counted.) A loop's trips follow from what it touches:

- over a thread's packs: from the bytes that an iteration reads, copies or stores. A full tile has PACKS packs of each
  tensor for a thread, so nothing remains of unrolled loops;
- over a thread's pixels in channels-last: from the square roots in an iteration, one for each tensor;
- a butterfly over threads: from `lanes`, the threads along a row of pixels or along the channels of a pixel.

Of the ways that are left, the longest counts (sass.py).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import networkx as nx

from benchmarks.cost import sass
from benchmarks.cost.sass import Function, Loop

THREADS, WARPS, PACKS, PACK = 256, 8, 8, 16  # of csrc/head/cuda/layer.cuh; PACK is in bytes
MAX_CHANNELS_LAST = 512
PLANAR, CHANNELS_LAST_2, CHANNELS_LAST_4 = "planar", "channels-last, 2 packs", "channels-last, 4 packs"
LANES = (2, 4, 8, 16, 32)
FORWARD, BACKWARD = "head_fwd_kernel", "head_bwd_kernel"
# What a kernel is asked for: the mean; the first image's gradient, as a training step needs; all gradients.
MODES = {FORWARD: ("mean",), BACKWARD: ("first gradient", "all gradients")}
TYPES = {"f": "float32", "d": "float64", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
_NAME = re.compile(rf"(head_[a-z_]+_kernel)I({'|'.join(TYPES)})((?:Li\d+E)*)E")


class Instance(NamedTuple):
    """An instance of a kernel's template."""

    kernel: str
    dtype: str
    packs: int = PACKS  # that a thread has of each tensor in a tile

    @classmethod
    def of(cls, mangled: str) -> Instance | None:
        """The instance with this mangled name, or None for a function that is none of the head's kernels."""
        found = _NAME.search(mangled)
        if found is None:
            return None
        numbers = re.findall(r"\d+", found[3])
        return cls(found[1], TYPES[found[2]], int(numbers[0]) if numbers else PACKS)

    @property
    def vector(self) -> int:
        return PACK // ITEMSIZE[self.dtype]

    @property
    def elements(self) -> int:
        """How many elements of both tensors a thread has in a tile."""
        return 2 * self.packs * self.vector

    @property
    def shared(self) -> int:
        """Bytes of a block's dynamic shared memory: `Shared` in csrc/head/cuda/layer.cuh."""
        if self.kernel not in MODES:
            return 0
        slots, acc = 32 * self.vector, max(4, ITEMSIZE[self.dtype])
        return 2 * self.packs * THREADS * PACK + acc * ((2 + WARPS) * slots + WARPS)


class Way:
    """The way of one path and mode through the code for a tile.

    Args:
        tile: the code for a tile: the loop over tiles or, with a tile a block, the function.
        wait: the block with the path's wait for its copies.

    Raises:
        ValueError: the code has another form than this reader knows.
    """

    def __init__(self, function: Function, instance: Instance, tile: Loop, wait: int, mode: str) -> None:
        self.function, self.instance, self.entry, self.wait, self.mode = function, instance, tile.header, wait, mode
        back = {k for k in function.usual.predecessors(tile.header) if k in tile.blocks}
        self.ends = back or {k for k in tile.blocks if function.usual.out_degree(k) == 0}
        self.blocks = self._on_the_way(tile.blocks)
        self._graph = self._entered(self.blocks)  # before anything is left out
        self._find_loops()
        if self._count(self._always(wait), "BAR") > 1:
            self.path = PLANAR
        else:
            self.path = CHANNELS_LAST_4 if any(map(self._is_over_packs, self.parents)) else CHANNELS_LAST_2
        self.blocks = self._on_the_way(self.blocks - self._left_out())
        self._find_loops()

    def executed(self, lanes: int) -> int:
        """The instructions that a thread executes for a full tile.

        Raises:
            ValueError: the way does not copy each of the thread's packs once.
        """
        if self.copies() != 4 * self.instance.packs:
            raise ValueError(f"{self.instance}, {self.mode}, {self.path}: {self.copies()} copies on the way")
        return round(self.function.longest(self.blocks, self.entry, lambda loop: self._trips(loop, lanes)))

    def copies(self) -> float:
        """The asynchronous copies that a thread starts for a full tile: two for each pack, one of them of zeros."""
        straight = self.blocks.difference(*(loop.blocks for loop in self.parents))
        in_loops = sum(self._trips(loop, 1) * self._count(loop.own, "LDGSTS") for loop in self.parents)
        return self._count(straight, "LDGSTS") + in_loops

    def passes(self) -> list[float]:
        """The instructions for an element of a tensor in each loop over packs that reads them, in order."""
        itemsize = ITEMSIZE[self.instance.dtype]
        sizes = ((sum(1 for _ in self.function.of(x.own)), self._read(x.own)) for x in self.parents)
        found = [round(itemsize * n / read, 2) for n, read in sizes if read]
        return found if self.path == PLANAR else []

    def _on_the_way(self, blocks: Iterable[int]) -> frozenset[int]:
        """Those blocks that lie on a way from the loop's entry through the wait to its end."""
        graph = self._entered(blocks)
        before, behind = nx.ancestors(graph, self.wait), nx.descendants(graph, self.wait)
        found = frozenset({self.wait} | before | behind)
        if self.entry not in before or not self.ends & behind:
            raise ValueError(f"{self.instance}, {self.mode}: no way through the wait is left")
        graph = graph.subgraph(found)
        reached = {self.entry} | nx.descendants(graph, self.entry)
        leading = self.ends.union(*(nx.ancestors(graph, k) for k in self.ends & found))
        return found & reached & leading

    def _entered(self, blocks: Iterable[int]) -> nx.DiGraph:
        graph = self.function.usual.subgraph(blocks).copy()
        graph.remove_edges_from(list(graph.in_edges(self.entry)))
        return graph

    def _find_loops(self) -> None:
        """The loops on the way, in order; each with the one around it, or None."""
        self.parents = dict(_parents(self.function.loops(self.blocks, self.entry)))

    def _left_out(self) -> set[int]:
        """Blocks that do not run for a full tile in this mode."""
        top = [loop for loop, parent in self.parents.items() if parent is None]
        stores = [loop for loop in self.parents if self._count(loop.own, "STG", PACK)]
        out: set[int] = set()
        if self.path == PLANAR:
            out.update(filter(self._is_remainder, self.blocks.difference(*(loop.blocks for loop in top))))
            if self.mode == "mean":
                _, _, of_map = (loop for loop in top if self._values(loop))
                out |= self._branch(of_map.header)
            if self.mode == "first gradient":
                if len(stores) != 2:
                    raise ValueError(f"{self.instance}: not two gradients are stored, one after the other")
                out |= self._branch(stores[1].header, stores[0].header)
                for loop in self.parents:
                    written = [k for k in sorted(loop.own) if self._moved({k}, "STS")]
                    out.update(written[1:])  # the second image's gradient takes a branch of its own, or predicates
                    if self._read(loop.own) and self._count(loop.blocks, "SHFL"):  # sums for the weights' gradients
                        out |= self._branch(loop.header, stores[0].header)
        elif self.mode == "mean":
            for loop in self.parents:
                if self._values(loop) == 1:  # a map takes a butterfly of one value at each pixel
                    out |= self._branch(loop.header)
        else:
            # Of the instances of write_gradients one runs: the first for both images, the second for the first image.
            # From sm_100 on, and for the small tile, there is the first alone. It branches around the stores of a
            # gradient that nobody needs.
            if len(stores) not in (1, 3):
                raise ValueError(f"{self.instance}: {len(stores)} instances of write_gradients")
            chosen = stores[1 if self.mode == "first gradient" and len(stores) == 3 else 0]
            for loop in stores:
                if loop is not chosen:
                    out |= self._branch(loop.header, chosen.header)
            if self.mode == "first gradient" and len(stores) == 1:
                out.update([k for k in sorted(chosen.own) if self._count({k}, "STG", PACK)][1::2])
            if self.mode == "first gradient":  # sums for the weights' gradients follow, in a branch without stores
                (over_pixels,) = (loop for loop in top if chosen.blocks <= loop.blocks)
                for k in nx.descendants(self._graph, chosen.header) - out - over_pixels.blocks:
                    branch = self._branch(k, chosen.header) if self._count({k}, "MUFU.RSQ") else frozenset()
                    if not self._count(branch, "STG", PACK):
                        out |= branch
        return out

    def _branch(self, block: int, passed: int | None = None) -> frozenset[int]:
        """The blocks of the largest branch with `block` that threads which go through `passed`, or the wait, can omit.

        Raises:
            ValueError: all of them go through the block.
        """
        before = _dominators(self._graph, self.entry)
        omitted = before[block] - self._always(self.wait if passed is None else passed)
        if not omitted:
            raise ValueError(f"{self.instance}, {self.mode}: no branch leads by block {block}")
        first = min(omitted, key=lambda k: len(before[k]))
        return frozenset(k for k, of_block in before.items() if first in of_block)

    def _always(self, passed: int) -> frozenset[int]:
        """The blocks that all threads go through which go through one of them."""
        before, behind = _dominators(self._graph, self.entry), _dominators(self._graph, passed)
        return before[passed] | frozenset.intersection(*(behind[k] for k in self.ends if k in behind))

    def _trips(self, loop: Loop, lanes: int) -> float:
        packs = self.instance.packs
        copies, roots = self._count(loop.own, "LDGSTS"), self._count(loop.own, "MUFU.RSQ")
        stores, read = self._count(loop.own, "STG", PACK), self._read(loop.own)
        parent = self.parents.get(loop)
        if copies:
            is_remainder = self.path == PLANAR and copies < self._unrolled
            return 0 if is_remainder else packs / (copies / 2)
        if self.path == PLANAR:
            if read:
                return packs / stores if stores else 2 * packs * self._width(loop) / read
            if any(self._read(inner.own) for inner in loop.inner):
                return PACK / self._width(loop)  # over the parts of packs
            return math.log2(lanes if parent else 32 / lanes) if self._values(loop) else 1
        depth = 2 if self.path == CHANNELS_LAST_2 else 4
        if roots:
            return packs / depth / (roots / 2)
        if read:
            return 2 * depth * PACK / read
        if self._values(loop):  # sums over the pixels of a warp stand alone, after all pixels
            alone = self.instance.kernel == BACKWARD and parent is None and self._values(loop) == 1
            return math.log2(32 / lanes if alone else lanes)
        return 1

    @property
    def _unrolled(self) -> int:
        """The copies in the unrolled loop over packs of the planar path. The copy of a pack is two, one of zeros."""
        return 2 * min(4, self.instance.packs)

    def _width(self, loop: Loop) -> int:
        """Bytes of the widest access to packs in a loop: a pack, or a part of it."""
        return max(x.bytes for x in self.function.of(loop.blocks) if x.kind == "LDS")

    def _is_over_packs(self, loop: Loop) -> bool:
        return bool(self._read(loop.own)) and not self._count(loop.own, "MUFU.RSQ")

    def _is_remainder(self, block: int) -> bool:
        """Whether a block outside all loops copies or stores packs, or reads the same packs of both tensors."""
        always = [x for x in self.function.blocks[block] if x.predicate is None and x.bytes == PACK]
        if 0 < self._count({block}, "LDGSTS") < self._unrolled or any(x.kind == "STG" for x in always):
            return True
        reads = (x.operands for x in always if x.kind == "LDS")
        offsets = {int(found[1] or "0", 16) for x in reads if (found := re.search(r"\[\w+(?:\+(0x\w+))?\]", x))}
        return any(offset + self.instance.packs * THREADS * PACK in offsets for offset in offsets)

    def _values(self, loop: Loop) -> int:
        """How many sums a butterfly forms."""
        return self._count(loop.own, "SHFL") // (2 if self.instance.dtype == "float64" else 1)

    def _count(self, blocks: Iterable[int], opcode: str, size: int = 0) -> int:
        found = (x for x in self.function.of(blocks) if x.opcode.startswith(opcode) and not x.never)
        return sum(x.bytes >= size for x in found)

    def _read(self, blocks: Iterable[int]) -> int:
        return self._moved(blocks, "LDS")

    def _moved(self, blocks: Iterable[int], opcode: str) -> int:
        """Bytes of packs that accesses move: packs of two-byte types also in halves."""
        size = PACK // 2 if ITEMSIZE[self.instance.dtype] == 2 else PACK
        found = (x for x in self.function.of(blocks) if x.kind == opcode and not x.never)
        return sum(x.bytes for x in found if x.bytes >= size)


@functools.cache
def _dominators(graph: nx.DiGraph, entry: int) -> dict[int, frozenset[int]]:
    """By block, itself and those that each way from the entry to it goes through."""
    found = {entry: frozenset({entry})}
    parents = nx.immediate_dominators(graph, entry)
    tree = nx.DiGraph((parents[block], block) for block in parents if block != entry)
    for parent, block in nx.bfs_edges(tree, entry):
        found[block] = found[parent] | {block}
    return found


def _parents(loops: Iterable[Loop], parent: Loop | None = None) -> Iterator[tuple[Loop, Loop | None]]:
    for loop in loops:
        yield loop, parent
        yield from _parents(loop.inner, loop)


def ways(function: Function, instance: Instance, mode: str) -> list[Way]:
    """The ways of the paths with asynchronous copies through a main kernel."""
    waits = [k for k in sorted(function.usual) if any(x.kind == "LDGDEPBAR" for x in function.blocks[k])]
    whole = frozenset(function.usual)
    loops = function.loops(whole)
    (tile,) = [loop for loop in loops if loop.blocks.issuperset(waits)] or [Loop(0, whole, loops)]
    return [Way(function, instance, tile, wait, mode) for wait in waits]


def records(code: Iterable[sass.Code], report: str) -> list[dict[str, Any]]:
    """A record of each instance of the head's kernels in the code of a library, whose report says what they take.

    `executed` is by `lanes`, and for a full tile, of which a thread has `elements`. `passes` are the instructions for
    an element in each pass of the planar path over the packs. `shared` has the bytes of a block, static and dynamic.
    """
    takes = {(architecture, name): x for architecture, name, x in sass.resources(report)}
    found = []
    for cubin in code:
        for function in cubin.functions:
            instance = Instance.of(function.name)
            if instance is None:
                continue
            resources = takes[cubin.architecture, function.name]
            static = resources.shared - (sass.RESERVED if int(cubin.architecture.rstrip("af")) >= 90 else 0)
            record = {
                "target": f"cuda {cubin.architecture}",
                "compiler": f"nvcc {cubin.compiler}",
                **instance._asdict(),
                "registers": resources.registers,
                "spills": resources.stack + resources.local,
                "shared": static + instance.shared,
                "instructions": len(function.instructions),
                "elements": instance.elements,
                "ways": {},
            }
            for mode in MODES.get(instance.kernel, ()):
                for way in ways(function, instance, mode):
                    executed = {str(lanes): way.executed(lanes) for lanes in LANES}
                    record["ways"][f"{mode}, {way.path}"] = {"executed": executed, "passes": way.passes()}
            found.append(record)
    return sorted(found, key=lambda x: (len(x["target"]), x["target"], x["kernel"], x["dtype"], x["packs"]))


class Plan(NamedTuple):
    """How the head cuts a layer of features into tiles: `plan` in csrc/head/cuda/operators.cu."""

    path: str
    lanes: int
    tiles: int


def plan(images: int, channels: int, pixels: int, layout: str, dtype: str, packs: int = PACKS) -> Plan:
    """The plan of a layer whose memory is dense in a layout, 'nchw' or 'channels_last'.

    Raises:
        ValueError: the strided path would run.
    """
    vector = PACK // ITEMSIZE[dtype]
    if layout == "channels_last" and channels % vector == 0 and channels <= min(MAX_CHANNELS_LAST, 128 * vector):
        depth, lanes = 2 if channels // vector <= 64 else 4, 4
        while lanes * depth < channels // vector:
            lanes *= 2
        path, of_tile = CHANNELS_LAST_2 if depth == 2 else CHANNELS_LAST_4, packs // depth * (THREADS // lanes)
    elif layout == "nchw" and pixels % vector == 0 and channels <= THREADS // 2 * packs:
        lanes = 32
        while lanes > 2 and (channels > THREADS // lanes * packs or pixels <= lanes // 2 * vector):
            lanes //= 2
        path, of_tile = PLANAR, lanes * vector
    else:
        raise ValueError(f"the strided path runs for {channels} channels of {pixels} pixels, {layout}, {dtype}")
    return Plan(path, lanes, images * math.ceil(pixels / of_tile))
