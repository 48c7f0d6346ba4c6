"""The reader of machine code, on code that is made up."""

from __future__ import annotations

import struct

import pytest

from benchmarks.cost import sass


def function(text, name="f"):
    """The function with these lines: instructions, and labels that end in a colon."""
    lines = (line.strip() for line in text.strip().splitlines())
    code = [line if line.endswith(":") else f"        /*{16 * i:04x}*/    {line} ;" for i, line in enumerate(lines)]
    (found,) = sass.functions("\n".join([f".text.{name}:", *code]))
    return found


def longest(found, trips=lambda loop: 1):
    return found.longest(frozenset(found.usual), 0, trips)


NESTED = """
    MOV R0, RZ
    .L_x_1:
    IADD3 R1, R1, 0x1, RZ
    .L_x_2:
    LDS.128 R4, [R2]
    FADD R3, R3, R4
    @P0 BRA `(.L_x_2)
    STG.E [R6.64], R3
    @!P1 BRA `(.L_x_1)
    EXIT
"""


def test_functions_and_instructions():
    text = ".text.first:\n        /*0000*/  @!UP0 LDS.64 R2, [R4+0x10] ;  \n.text.second:\n  /*0000*/  EXIT ;\n"
    first, second = sass.functions(text)
    assert (first.name, second.name) == ("first", "second")
    assert first.instructions == [("!UP0", "LDS.64", "R2, [R4+0x10]")]
    assert [x.bytes for x in (*first.instructions, *second.instructions)] == [8, 4]


def test_loops_are_nested():
    (outer,) = function(NESTED).loops(frozenset(range(5)))
    (inner,) = outer.inner
    assert (outer.header, inner.header, inner.inner) == (1, 2, ())
    assert outer.own == outer.blocks - inner.blocks == {1, 3}


def test_loops_count_by_their_trips():
    found = function(NESTED)
    assert longest(found) == len(found.instructions) == 8
    # Ten of the outer loop, each with three instructions and five of the inner loop; two around them.
    assert longest(found, lambda loop: 10 if loop.inner else 5) == 2 + 10 * (3 + 5 * 3)


def test_the_longer_branch_counts():
    text = "@P0 BRA `(.L_x_1)\nNOP\nNOP\nBRA `(.L_x_2)\n.L_x_1:\nNOP\n.L_x_2:\nEXIT"
    assert longest(function(text)) == 1 + 3 + 1
    assert longest(function(text.replace("@P0 ", ""))) == 1 + 1 + 1


def test_a_uniform_branch_is_conditional():
    assert longest(function("BRA.U !UP0, `(.L_x_1)\nNOP\n.L_x_1:\nEXIT")) == 3


def test_slow_ways_do_not_count():
    """They call a function, or begin where the threads of a warp diverge."""
    slow = "@!P0 BRA `(.L_x_1)\nMOV R2, 0x10\nCALL.REL.NOINC `($__internal_1_$rcp)\nBRA `(.L_x_2)\n"
    assert longest(function(slow + ".L_x_1:\nMUFU.RCP R0, R1\n.L_x_2:\nEXIT")) == 3
    diverged = "BRA.DIV ~URZ, `(.L_x_1)\nSHFL.BFLY PT, R0, R1, 0x1, 0x1f\n.L_x_2:\nEXIT\n"
    assert longest(function(diverged + ".L_x_1:\n" + "NOP\n" * 9 + "BRA `(.L_x_2)")) == 3


def test_a_call_of_a_label_is_a_jump():
    """As sm_80 has where a loop ends."""
    found = function("NOP\n.L_x_1:\nNOP\n@P0 CALL.REL.NOINC `(.L_x_2)\nBRA `(.L_x_1)\n.L_x_2:\nEXIT")
    assert len(found.loops(frozenset(found.usual))) == 1
    assert longest(found, lambda loop: 4) == 1 + 4 * 3 + 1


def test_a_jump_to_an_address_is_an_error():
    with pytest.raises(ValueError, match="f: BRX jumps"):
        function("BRX R2 -0x10\nEXIT")


COPY = """
    LDGSTS.E.BYPASS.128 [R0], [R2.64]
    {between}
    LDGDEPBAR
    {committed}
    DEPBAR.LE SB0, 0x0
    LDS.128 R4, [R0]
    EXIT
"""


@pytest.mark.parametrize("place", ("between", "committed"))
@pytest.mark.parametrize("access", ("LDS R4, [R0]", "@P0 STS.128 [R0], R4", "ATOMS.ADD RZ, [R0], R1", "LD.E R4, [R0]"))
def test_accesses_before_the_wait_are_seen(place, access):
    found = function(COPY.format(**{"between": "NOP", "committed": "NOP", place: access}))
    assert sass.accesses_before_wait(found) == [access.removeprefix("@P0 ")]


@pytest.mark.parametrize("other", ("@!PT LDS RZ, [RZ]", "LDG.E R4, [R2.64]", "STG.E.128 [R2.64], R4"))
def test_other_instructions_may_stand_before_the_wait(other):
    assert sass.accesses_before_wait(function(COPY.format(between=other, committed=other))) == []


def test_each_copy_is_committed():
    copy = "LDGSTS.E.128 [R0+0x10], [R2.64]"
    assert sass.accesses_before_wait(function(COPY.format(between=copy, committed="NOP"))) == []
    assert sass.accesses_before_wait(function(COPY.format(between="NOP", committed=copy))) == [
        "LDS.128 R4, [R0]",
        "EXIT ",
    ]


def test_accesses_before_the_wait_are_seen_around_a_loop():
    """The access stands above the copy, and the jump leads back to it."""
    looping = (
        ".L_x_1:\nLDS R4, [R0]\nLDGSTS.E.128 [R0], [R2.64]\n@P0 BRA `(.L_x_1)\nLDGDEPBAR\nDEPBAR.LE SB0, 0x0\nEXIT"
    )
    assert sass.accesses_before_wait(function(looping)) == ["LDS R4, [R0]"]


@pytest.mark.parametrize("left_out", ("LDGDEPBAR\n", "DEPBAR.LE SB0, 0x0\n"))
def test_a_copy_without_its_wait_is_seen(left_out):
    text = "LDGSTS.E.128 [R0], [R2.64]\nLDGDEPBAR\nDEPBAR.LE SB0, 0x0\n@P0 LDS R4, [R0]\nEXIT"
    assert sass.accesses_before_wait(function(text)) == []
    assert sass.accesses_before_wait(function(text.replace(left_out, ""))) == ["LDS R4, [R0]", "EXIT "]


FLAGS_AND_SIZES = ((3, 4096), (6, 128), (0x100006, 64))


def test_a_wait_for_some_copies_is_none():
    text = COPY.format(between="NOP", committed="NOP").replace("SB0, 0x0", "SB0, 0x1")
    assert sass.accesses_before_wait(function(text)) == ["LDS.128 R4, [R0]", "EXIT "]


def test_instructions_are_counted_by_the_size_of_the_code():
    """In an ELF file whose table of sections has one of data and two of code."""
    header = bytes(40) + struct.pack("<Q", 64) + bytes(10) + struct.pack("<HHH", 64, 3, 0)
    sections = [bytes(8) + struct.pack("<QQQQ", flags, 0, 0, size) + bytes(24) for flags, size in FLAGS_AND_SIZES]
    assert sass.instructions(header + b"".join(sections)) == (128 + 64) // 16


def test_resources():
    report = "arch = sm_90\n Function f:\n  REG:80 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:1 TEXTURE:0\n"
    assert list(sass.resources(report)) == [("90", "f", (80, 16, 0, 1024))]


def test_a_tool_that_is_not_there(monkeypatch):
    monkeypatch.setattr(sass.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no nvdisassemble, neither"):
        sass.tool("nvdisassemble")
    monkeypatch.setattr(sass.shutil, "which", lambda name: f"/toolkit/{name}")
    assert sass.tool("nvdisasm") == "/toolkit/nvdisasm"
