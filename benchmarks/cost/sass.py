"""Reads machine code of NVIDIA GPUs (SASS): functions, the ways through them, loops, and what they take.

`nvdisasm` prints the code of a cubin, and `cuobjdump` the registers and memory of its functions. Both come with the
CUDA toolkit and with Triton.

How many instructions a thread executes follows from the graph of basic blocks: the number on the longest way through
it, on which a loop counts as its longest iteration times its trips. The caller knows the trips. So where the code
branches, the longer branch counts. Two kinds of blocks count never: those with a call, for what nvcc calls as a
function is the slow way of a division or a root (subnormal or huge numbers), and those behind a BRA.DIV, the way of
warps whose threads diverge.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import networkx as nx

_FUNCTION = re.compile(r"\.text\.(\S+):")
_LABEL = re.compile(r"(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_CONDITION = re.compile(r"!?U?P\d")  # as the first operand of a branch
_WIDTH = re.compile(r"\.(64|128)\b")
_SHARED = re.compile(r"LDS|STS|ATOMS|LD\b|ST\b|ATOM\b")  # generic accesses, too, may be to shared memory
SHF_EXECINSTR = 4  # of ELF
RESERVED = 1024  # bytes of shared memory that a block takes for the system


class Instruction(NamedTuple):
    predicate: str | None
    opcode: str
    operands: str

    @property
    def kind(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def bytes(self) -> int:
        """What a load or store of one thread moves."""
        width = _WIDTH.search(self.opcode)
        return int(width[1]) // 8 if width else 4

    @property
    def jumps(self) -> bool:
        """Whether it goes to a label. sm_80 has calls of a label, which never return, for some conditional jumps."""
        return self.kind in ("BRA", "CALL") and self.opcode != "BRA.DIV" and "`(.L_" in self.operands

    @property
    def calls(self) -> bool:
        return self.kind == "CALL" and not self.jumps

    @property
    def never(self) -> bool:
        """Whether it has no effect: ptxas fills in such instructions."""
        return self.predicate == "!PT"


class Loop(NamedTuple):
    header: int
    blocks: frozenset[int]
    inner: tuple[Loop, ...]

    @property
    def own(self) -> frozenset[int]:
        """The blocks that lie in no loop within this one."""
        return self.blocks.difference(*(loop.blocks for loop in self.inner))


class Function:
    """The code of one function, as a graph of basic blocks.

    Args:
        name: its mangled name.
        instructions: its code.
        labels: by label, the index of the instruction behind it.

    Raises:
        ValueError: the code jumps to an address that it computes.
    """

    def __init__(self, name: str, instructions: list[Instruction], labels: Mapping[str, int]) -> None:
        self.name = name
        self.instructions = instructions
        unknown = [x.opcode for x in instructions if x.kind in ("BRX", "BRXU", "JMX", "JMXU", "JMP")]
        if unknown:
            raise ValueError(f"{name}: {unknown[0]} jumps to where this reader cannot follow")
        ends = {i + 1 for i, x in enumerate(instructions) if x.jumps or x.kind in ("BRA", "EXIT", "RET")}
        starts = sorted({0, *labels.values(), *ends} - {len(instructions)})
        self.blocks = [instructions[a:b] for a, b in zip(starts, [*starts[1:], len(instructions)])]
        index = {start: k for k, start in enumerate(starts)}
        self.graph = nx.DiGraph()
        self.graph.add_nodes_from(range(len(self.blocks)))
        for k, block in enumerate(self.blocks):
            last = block[-1]
            if last.jumps:
                self.graph.add_edge(k, index[labels[_TARGET.search(last.operands)[1]]])
            always = last.predicate is None and not _CONDITION.match(last.operands)
            leaves = always and (last.jumps or last.kind in ("EXIT", "RET"))
            if not leaves and k + 1 < len(self.blocks):
                self.graph.add_edge(k, k + 1)

    @functools.cached_property
    def usual(self) -> nx.DiGraph:
        """The graph of the blocks that numbers of usual size reach."""
        called = [k for k, block in enumerate(self.blocks) if any(x.calls for x in block)]
        graph = self.graph.copy()
        graph.remove_nodes_from(called)
        return graph.subgraph({0} | nx.descendants(graph, 0)).copy()

    def of(self, blocks: Iterable[int]) -> Iterator[Instruction]:
        """The instructions of some blocks."""
        return (x for k in sorted(blocks) for x in self.blocks[k])

    @functools.cache  # noqa: B019  it goes with the process
    def loops(self, blocks: frozenset[int], entry: int = 0) -> tuple[Loop, ...]:
        """The outermost loops among blocks that are entered at `entry`; a loop back to `entry` is none of them."""
        return tuple(sorted(part for part, _ in self._parts(blocks, entry).values() if isinstance(part, Loop)))

    def longest(self, blocks: frozenset[int], entry: int, trips: Callable[[Loop], float]) -> float:
        """The most instructions that a thread executes from `entry` until it leaves the blocks or is back there."""
        longest: dict[int, float] = {}
        for k, (part, successors) in self._parts(blocks, entry).items():
            if isinstance(part, Loop):
                own = trips(part) * self.longest(part.blocks, part.header, trips)
            else:
                own = len(self.blocks[part])
            longest[k] = own + max((longest[successor] for successor in successors), default=0)
        return longest[k]

    @functools.cache  # noqa: B019
    def _parts(self, blocks: frozenset[int], entry: int) -> dict[int, tuple[int | Loop, list[int]]]:
        """The blocks and loops that are reached from `entry`, each behind its successors; that of `entry` is last."""
        graph = self.usual.subgraph(blocks).copy()
        graph.remove_edges_from(list(graph.in_edges(entry)))
        graph = graph.subgraph({entry} | nx.descendants(graph, entry))
        whole = nx.condensation(graph)
        parts: dict[int, tuple[int | Loop, list[int]]] = {}
        for k in reversed(list(nx.topological_sort(whole))):
            members = frozenset(whole.nodes[k]["members"])
            part: int | Loop = min(members)
            if len(members) > 1 or graph.has_edge(part, part):
                header = min(x for x in members if any(p not in members for p in graph.predecessors(x)))
                part = Loop(header, members, self.loops(members, header))
            parts[k] = part, list(whole.successors(k))
        return parts


def functions(text: str) -> list[Function]:
    """The functions in what `nvdisasm -c` prints."""
    found: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    instructions, labels = [], {}
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            instructions.append(Instruction(*match.groups()))
        elif match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := _FUNCTION.match(line):
            instructions, labels = found[match[1]] = [], {}
    return [Function(name, *code) for name, code in found.items() if code[0]]


def accesses_before_wait(function: Function) -> list[str]:
    """Accesses to shared memory that a thread can reach between an asynchronous copy and the wait for it.

    Such a copy (LDGSTS) is complete when the thread has committed it (LDGDEPBAR) and then waited for all that it has
    committed (DEPBAR.LE SB0, 0x0). A way out of the function without a wait counts as an access, too.
    """
    wrong: dict[str, None] = {}
    seen: set[tuple[int, str]] = set()
    left = [(k, "none") for k in range(len(function.blocks))]
    while left:
        k, state = left.pop()
        for x in function.blocks[k]:
            if x.never:
                continue
            if x.kind == "LDGSTS":
                state = "copying"
            elif x.kind == "LDGDEPBAR" and state == "copying" and x.predicate is None:
                state = "committed"
            elif x.kind == "DEPBAR" and state == "committed" and x.predicate is None and x.operands == "SB0, 0x0":
                state = "none"
            elif state != "none" and (_SHARED.match(x.opcode) or x.kind in ("EXIT", "RET")):
                wrong[f"{x.opcode} {x.operands}"] = None
        for successor in function.graph.successors(k):
            if state != "none" and (successor, state) not in seen:
                seen.add((successor, state))
                left.append((successor, state))
    return list(wrong)


class Resources(NamedTuple):
    """What a function takes: registers of a thread; bytes of its stack frame, spilled registers among them, and of its
    local memory; bytes of a block's static shared memory, from sm_90 on with RESERVED."""

    registers: int
    stack: int
    local: int
    shared: int


def resources(report: str) -> Iterator[tuple[str, str, Resources]]:
    """The architecture and mangled name of each function in what `cuobjdump --dump-resource-usage` prints."""
    architecture = function = ""
    for line in report.splitlines():
        if found := re.match(r"\s*arch = sm_(\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            function = found[1]
        elif "REG:" in line:
            figures = dict(re.findall(r"(\w+):(\d+)", line))
            yield architecture, function, Resources(*(int(figures[k]) for k in ("REG", "STACK", "LOCAL", "SHARED")))


def tool(name: str) -> str:
    """The path of `cuobjdump` or `nvdisasm`: the toolkit's, or the one that comes with Triton.

    Raises:
        FileNotFoundError: neither is there.
    """
    found = shutil.which(name)
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        found = str(bundled) if bundled.exists() else None
    if found is None:
        raise FileNotFoundError(f"no {name}, neither the CUDA toolkit's nor Triton's")
    return found


def output(name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """What a tool prints."""
    return subprocess.run([tool(name), *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def instructions(cubin: bytes) -> int:
    """How many instructions a cubin has, by the size of its sections with code: one takes 16 bytes."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count = struct.unpack_from("<HH", cubin, 58)
    sections = [struct.unpack_from("<8xQ16xQ", cubin, table + i * size) for i in range(count)]
    return sum(n_bytes for flags, n_bytes in sections if flags & SHF_EXECINSTR) // 16


def report(file: Path) -> str:
    """What functions of a cubin or library take, for `resources`."""
    return output("cuobjdump", "--dump-resource-usage", file)


def disassembled(cubin: Path) -> list[Function]:
    return functions(output("nvdisasm", "-c", cubin))


class Code(NamedTuple):
    """One cubin of a library."""

    architecture: str  # '90'
    compiler: str  # '13.0.88'
    functions: list[Function]


def of_library(library: Path) -> list[Code]:
    """The code for GPUs that was compiled into a library."""
    with tempfile.TemporaryDirectory() as folder:
        output("cuobjdump", "--extract-elf", "all", library.resolve(), cwd=Path(folder))
        found = []
        for path in sorted(Path(folder).iterdir()):  # NAME.sm_90.cubin
            compiler = re.search(rb"release [\d.]+, V([\d.]+)", path.read_bytes())
            version = compiler[1].decode() if compiler else "unknown"
            found.append(Code(path.suffixes[-2].removeprefix(".sm_"), version, disassembled(path)))
    return found
