"""The costs of the head's CUDA kernels: on code that is made up. tests/csrc/head/test_cuda.py has the library's."""

from __future__ import annotations

import pytest

from benchmarks.cost import cuda, records, sass
from benchmarks.cost.cuda import Instance, Plan

NAME = "_ZN10lpips_fast12_GLOBAL__N_115head_fwd_kernelI{}EEvNS_6LayersIT_EEfb"


@pytest.mark.parametrize(
    "arguments, instance",
    (
        ("f", ("head_fwd_kernel", "float32", 8)),
        ("13__nv_bfloat16", ("head_fwd_kernel", "bfloat16", 8)),
        ("6__halfLi4E", ("head_fwd_kernel", "float16", 4)),
    ),
)
def test_instances_are_read_from_mangled_names(arguments, instance):
    assert Instance.of(NAME.format(arguments)) == instance


def test_other_functions_are_none_of_the_heads():
    assert Instance.of("_ZN10lpips_fast5probeEv") is None


def test_shared_memory_of_a_block():
    """What csrc/head/cuda/kernels.cuh says; half the packs take half the tile."""
    assert Instance("head_bwd_kernel", "bfloat16").shared == 75808
    assert Instance("head_bwd_kernel", "bfloat16", 4).shared == 75808 - 32768
    assert Instance("head_mean_kernel", "bfloat16").shared == 0


@pytest.mark.parametrize(
    "case, plan",
    (
        ((32, 64, 256**2, "nchw", "float32"), Plan("planar", 32, 32 * 512)),
        ((1, 512, 16**2, "nchw", "bfloat16"), Plan("planar", 4, 8)),
        ((1, 384, 16**2, "nchw", "float32"), Plan("planar", 4, 16)),
        ((2, 64, 10**2, "channels_last", "bfloat16"), Plan("channels-last, 2 packs", 4, 2)),
        ((1, 512, 16**2, "channels_last", "float32"), Plan("channels-last, 4 packs", 32, 16)),
    ),
)
def test_plans(case, plan):
    assert cuda.plan(*case) == plan


@pytest.mark.parametrize("case", ((1, 64, 15**2, "nchw", "float32"), (1, 3, 16, "channels_last", "float32")))
def test_the_strided_path_is_not_counted(case):
    with pytest.raises(ValueError, match="the strided path runs for"):
        cuda.plan(*case)


# A planar path: copies of each tensor's packs, four an iteration, and of what remains; two passes over eight packs, of
# which an iteration takes two, and what remains of them; a butterfly behind each pass; the second sums what a map needs
# in a third.
COPY = """
    @P0 LDGSTS.E.BYPASS.128 [R2], [R4.64], !PT
    @!P0 LDGSTS.E.BYPASS.128 [R2], [R4.64]
"""
COPIES = f"""
    .L_x_{{0}}:
    {COPY * 4}
    @P1 BRA `(.L_x_{{0}})
    @P1 BRA `(.L_x_{{0}}1)
    .L_x_{{0}}0:
    {COPY}
    @P1 BRA `(.L_x_{{0}}0)
    .L_x_{{0}}1:
    NOP
"""
PACKS = """
    .L_x_{0}:
    LDS.128 R4, [R2]
    LDS.128 R8, [R2+0x8000]
    LDS.128 R12, [R2+0x1000]
    LDS.128 R16, [R2+0x9000]
    {1}
    @P0 BRA `(.L_x_{0})
    @P1 BRA `(.L_x_{0}0)
    LDS.128 R4, [R2]
    LDS.128 R8, [R2+0x8000]
    .L_x_{0}0:
    NOP
"""
SUMS = """
    @P0 BRA `(.L_x_{0}1)
    .L_x_{0}:
    SHFL.BFLY PT, R0, R1, R3, 0x1f
    @P0 BRA `(.L_x_{0})
    .L_x_{0}1:
    BAR.SYNC.DEFER_BLOCKING 0x0
"""
PLANAR = f"""
    S2R R0, SR_TID.X
    .L_x_1:
    NOP
    {COPIES.format(2)}
    {COPIES.format(8)}
    LDGDEPBAR
    DEPBAR.LE SB0, 0x0
    {PACKS.format(3, "FADD R0, R0, R4")}
    {SUMS.format(4)}
    {SUMS.format(5)}
    {PACKS.format(6, "FMUL R0, R0, R4")}
    {SUMS.format(7)}
    @P2 BRA `(.L_x_1)
    EXIT
"""


def way(text, instance, mode):
    code = "\n".join(
        line if line.endswith(":") else f"   /*0000*/ {line} ;" for line in map(str.strip, text.split("\n")) if line
    )
    (function,) = sass.functions(f".text.f:\n{code}\n")
    (found,) = cuda.ways(function, instance, mode)
    return found


def test_a_planar_way():
    found = way(PLANAR, Instance("head_fwd_kernel", "float32"), "mean")
    assert found.path == "planar"
    assert found.passes() == [0.38, 0.38]  # six instructions for four packs of four floats
    # In order: the start; copies of 8 packs of each tensor, without what remains; the wait; a pass and what is behind
    # it, without what remains; two butterflies, with branch and end; the second pass; no third butterfly, for there is
    # no map; the end.
    for lanes, steps in ((32, 0), (4, 3)):
        assert found.executed(lanes) == 1 + 2 * (2 * 9 + 2) + 2 + 2 * (4 * 6 + 2) + 2 * (2 + 2 * steps) + 2 + 1


def test_fewer_packs_take_fewer_trips():
    text = PLANAR.replace("+0x8000", "+0x4000").replace("+0x9000", "+0x5000")
    found = way(text, Instance("head_fwd_kernel", "float32", 4), "mean")
    assert found.executed(32) == 1 + 2 * (9 + 2) + 2 + 2 * (2 * 6 + 2) + 2 * 2 + 2 + 1
    for number in (2, 8):  # as ptxas makes it where one iteration is all
        text = text.replace(f"@P1 BRA `(.L_x_{number})\n", "")
    straight = way(text, Instance("head_fwd_kernel", "float32", 4), "mean")
    assert straight.copies() == 4 * 4
    assert straight.executed(32) == found.executed(32) - 2


def test_packs_that_are_not_copied_once_are_an_error():
    found = way(PLANAR.replace(COPY * 4, COPY * 3), Instance("head_fwd_kernel", "float32"), "mean")
    with pytest.raises(ValueError, match="copies on the way"):
        found.executed(32)


def test_code_of_another_form_is_an_error():
    with pytest.raises(ValueError, match="not two gradients are stored"):
        way(PLANAR, Instance("head_bwd_kernel", "float32"), "first gradient")


def test_recorded_passes_lie_within_what_is_executed():
    """The passes over packs are a part of a tile's instructions, and the smaller one."""
    found = [(x, way) for x in records.read("cuda") for way in x["ways"].values() if way["passes"]]
    assert len(found) >= 3 * 2 * 4
    for record, way in found:
        executed = way["executed"]["32"] / record["elements"]
        assert 0.1 * executed < sum(way["passes"]) < executed
