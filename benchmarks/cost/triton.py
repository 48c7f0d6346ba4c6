"""Compiles the Triton kernels for one GPU target ahead of time, with no GPU, and prints what they cost.

    python -m benchmarks.cost.triton cuda 90 32                 the arguments of triton's GPUTarget
    python -m benchmarks.cost.triton cuda 90 32 --executed      with the instructions that a thread executes
    python -m benchmarks.cost.triton cuda 90 32 --tile 262144   only one backward kernel, with this as its BWD_TILE

Each line is a JSON record. It names the variant, the target and the compiler, and has the registers, the spills to
memory, the fused multiply-adds, the instructions of the code, the bytes of shared memory, the warps of a program, the
programs of the launch, and the bytes that the launch moves if each tensor is read or written once. `executed` counts
the instructions on the longest way through the code (sass.py; NVIDIA only); it takes as long as compiling.

The variants are the ones that the operators launch on the tensors below: recorders replace the kernels, and turn the
arguments of a launch into a signature as Triton's just-in-time compiler does. The process must not have
TRITON_INTERPRET set.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.cost import sass
from lpips_fast.kernels import head, trunk

COMPILER = f"triton {triton.__version__}"
ALIGNMENT = 16  # of pointers from the caching allocator; Triton also knows which integers it divides
NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8"}

IN_PLACE = ("_bias_relu_kernel", "_mask_by_signs_kernel")  # they read and write their first tensor

# Calls of the head: the operator, and the features' channels, size, layout and type.
FORWARD, MAPS, BACKWARD = "fwd", "maps", "bwd"
CASES = [
    *(
        (kind, channels, size, layout, dtype)
        for kind in (FORWARD, BACKWARD)
        for channels, size in ((64, 256), (512, 32))
        for layout in (torch.contiguous_format, torch.channels_last)
        for dtype in (torch.float32, torch.bfloat16)
    ),
    (MAPS, 512, 32, torch.contiguous_format, torch.float32),
    (MAPS, 64, 255, torch.contiguous_format, torch.bfloat16),
    (BACKWARD, 512, 32, torch.channels_last, torch.float16),
    (BACKWARD, 512, 32, torch.contiguous_format, torch.float64),
    (BACKWARD, 384, 15, torch.contiguous_format, torch.float32),
    (BACKWARD, 2048, 7, torch.contiguous_format, torch.float32),
]
NO_POOL, POOL = (0, 1), (2, 2)
TRUNK_CASES = [  # kind, channels, size, pool, type
    *(("first_conv_relu", c, size, NO_POOL, torch.bfloat16) for c, size in ((64, 256), (8, 1))),
    ("first_conv_relu", 64, 256, NO_POOL, torch.float32),
    *((kind, 8, 1, NO_POOL, torch.bfloat16) for kind in ("bias_relu", "pack_signs", "mask_by_signs", "tap_bwd")),
    ("head_tap_bwd", 8, 1, NO_POOL, torch.bfloat16),
    *(
        (kind, channels, size, pool, dtype)
        for dtype in (torch.bfloat16, torch.float32)
        for kind, channels, size, pool in (
            ("bias_relu", 64, 256, POOL),
            ("bias_relu", 512, 32, NO_POOL),
            ("pack_signs", 128, 128, NO_POOL),
            ("max_pool", 64, 256, POOL),
            ("max_pool", 192, 31, (3, 2)),
            ("mask_by_signs", 256, 64, NO_POOL),
            ("tap_bwd", 64, 256, POOL),
            ("tap_bwd", 192, 31, (3, 2)),
            ("head_tap_bwd", 64, 256, POOL),
            ("head_tap_bwd", 512, 32, POOL),
            ("head_tap_bwd", 512, 16, NO_POOL),
            ("head_tap_bwd", 192, 31, (3, 2)),
        )
    ),
]


class Recorder:
    """Replaces a kernel, and keeps the signature of each launch."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.launches = []

    def __getitem__(self, grid):
        return functools.partial(self.record, grid)

    def record(self, grid, *args, **kwargs):
        params = self.kernel.params
        values = dict(zip((p.name for p in params), args))
        options = {k: v for k, v in kwargs.items() if k not in {p.name for p in params}}
        values.update((k, v) for k, v in kwargs.items() if k not in options)
        signature, constexprs, attributes = {}, {}, {}
        for index, param in enumerate(params):
            value = values[param.name]
            divisible = not param.do_not_specialize
            if isinstance(value, torch.Tensor):
                signature[param.name] = "*" + NAMES[value.dtype]
            elif param.is_constexpr or value is None or value == 1:
                signature[param.name] = "constexpr"
                constexprs[(index,)] = value
                divisible = False
            else:
                signature[param.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                divisible = divisible and value % ALIGNMENT == 0
            if divisible:
                attributes[(index,)] = [["tt.divisibility", ALIGNMENT]]
        moved = sum(touched(value) for value in values.values() if isinstance(value, torch.Tensor))
        if self.kernel.__name__ in IN_PLACE:
            moved += touched(args[0])
        source = ASTSource(self.kernel, signature, constexprs, attributes)
        self.launches.append((source, options, {"programs": math.prod(grid), "bytes": moved}))


def touched(x):
    """Bytes of a tensor in memory: an expanded dimension counts once."""
    return x.element_size() * math.prod(n for n, stride in zip(x.shape, x.stride()) if stride)


def recorded(module, kernel_name, call):
    """The launches of one of a module's kernels during a call."""
    kernel = getattr(module, kernel_name)
    recorder = Recorder(kernel)
    setattr(module, kernel_name, recorder)
    call()
    setattr(module, kernel_name, kernel)
    return recorder.launches


def head_launches(kind, channels, size, layout, dtype):
    """The launches of one call of the head, with all gradients, on features without memory."""
    f0, f1 = (torch.empty(2, channels, size, size, dtype=dtype, device="meta", memory_format=layout) for _ in range(2))
    weight = torch.empty(channels, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="meta")
    arguments = ([f0], [f1], [weight], 1e-10, False)
    if kind == FORWARD:
        return recorded(head, "_head_fwd_kernel", lambda: head.head_fwd_triton(*arguments))
    if kind == MAPS:
        return recorded(head, "_head_fwd_kernel", lambda: head.head_maps_fwd_triton(*arguments))
    grads = [weight.new_empty(2, 1)]
    return recorded(head, "_head_bwd_kernel", lambda: head.head_bwd_triton(grads, *arguments, True, True, True, True))


def trunk_launches(kind, channels, size, pool, dtype, backend):
    """The launches of one call of a trunk's operator; pool is its kernel and stride, 0 and 1 for none."""

    def empty(n, c, side, dtype=dtype):
        return torch.empty(n, c, side, side, dtype=dtype, device="meta", memory_format=torch.channels_last)

    pairs = 1 if size == 1 else 2  # Triton compiles 1 in as a constant, with which some code is illegal
    tap, kernel, stride = empty(2 * pairs, channels, size), *pool
    behind = empty(2 * pairs, channels, (size - kernel) // stride + 1 if kernel else size)
    vector = torch.empty(channels, device="meta")
    signs = torch.empty(2 * pairs, size, size, channels // 8, dtype=torch.uint8, device="meta")
    if kind == "first_conv_relu":
        image, weight = torch.empty(pairs, 3, size, size, device="meta"), empty(channels, 3, 3)
        arguments = [image, image], vector, vector, weight, vector.to(dtype), 1, 1, None, True
        return recorded(trunk, "_first_conv_relu_kernel", lambda: trunk.first_conv_relu_triton(*arguments))
    if kind == "bias_relu":
        pooled = behind if kernel else None
        return recorded(trunk, "_bias_relu_kernel", lambda: trunk.bias_relu_triton(tap, vector, signs, pooled))
    if kind == "pack_signs":
        return recorded(trunk, "_pack_signs_kernel", lambda: trunk.pack_signs_triton(tap))
    if kind == "max_pool":
        sides = behind.shape[2:]
        return recorded(trunk, "_max_pool_kernel", lambda: trunk.max_pool_triton(tap, *pool, *sides))
    if kind == "mask_by_signs":
        return recorded(trunk, "_mask_by_signs_kernel", lambda: trunk.mask_by_signs_triton(tap, signs, tap))
    if kind == "tap_bwd":
        return recorded(trunk, "_tap_bwd_kernel", lambda: trunk.tap_bwd_triton(tap, tap, behind, *pool))
    grad = torch.empty(pairs, 1, 1, 1, device="meta").expand(pairs, 1, size, size)
    halves = tap.split(pairs)
    arguments = grad, *halves, vector, 1e-10, size**2, True, behind, *pool
    return recorded(trunk, "_head_tap_bwd_kernel", lambda: trunk.head_tap_bwd_triton(*arguments))


def nvidia_cost(compiled):
    """From the machine code, whose stack frame holds the spilled registers; the PTX has the fused multiply-adds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        ((_, _, resources),) = sass.resources(sass.report(path))
    return {
        "registers": resources.registers,
        "spills": resources.stack + resources.local,
        "fused": len(re.findall(r"\bfma\.", compiled.asm["ptx"])),
        "instructions": sass.instructions(compiled.asm["cubin"]),
    }


def executed(compiled, pool):
    """The instructions that a thread executes. `pool` is a pool's kernel and stride."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        (function,) = sass.disassembled(path)
    kernel, stride = pool

    def trips(loop):
        """Only a pool with overlapping windows has loops: over the windows of a pixel, and over each one's pixels."""
        return math.ceil(kernel / stride) ** 2 if loop.inner else kernel**2

    return round(function.longest(frozenset(function.usual), 0, trips))


def amd_cost(compiled):
    """From the assembler's metadata. Spills of scalar registers do not count: they go into lanes of vector registers.

    Divisions and roots consist of fused multiply-adds there, so the number of these says nothing and is given as 0.
    """
    code = compiled.asm["amdgcn"]
    fields = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
    registers, *spills = (int(re.search(rf"\.{name}:\s*(\d+)", code)[1]) for name in fields)
    instructions = len(re.findall(r"^\s+(?:[vs]|ds|global|buffer|flat|scratch)_\w+", code, re.MULTILINE))
    return {"registers": registers, "spills": sum(spills), "fused": 0, "instructions": instructions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", choices=("cuda", "hip"))
    parser.add_argument("arch")
    parser.add_argument("warp_size", type=int)
    parser.add_argument("--executed", action="store_true")
    parser.add_argument("--tile", type=int)
    args = parser.parse_args()
    target = GPUTarget(args.backend, int(args.arch) if args.backend == "cuda" else args.arch, args.warp_size)
    if args.backend == "hip":
        torch.version.hip = "any"  # the launchers look at it
    before_ampere = args.backend == "cuda" and int(args.arch) < 80  # there the trunk uses torch's operators
    cases = CASES if before_ampere else CASES + TRUNK_CASES
    if args.tile is not None:
        head.BWD_TILE = args.tile
        cases = [(BACKWARD, 512, 32, torch.channels_last, torch.float32)]
    for case in cases:
        of_trunk = isinstance(case[3], tuple)
        launches = trunk_launches(*case, args.backend) if of_trunk else head_launches(*case)
        for source, options, launch in launches:
            compiled = triton.compile(source, target=target, options=options)
            name = {"variant": " ".join(map(str, case)), "target": f"{args.backend} {args.arch}", "compiler": COMPILER}
            cost = nvidia_cost(compiled) if args.backend == "cuda" else amd_cost(compiled)
            if args.executed and args.backend == "cuda":
                cost["executed"] = executed(compiled, case[3] if of_trunk else NO_POOL)
            of_program = {"shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps}
            print(json.dumps({**name, **cost, **of_program, **launch}), flush=True)


if __name__ == "__main__":
    main()
