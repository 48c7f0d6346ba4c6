"""Which types a processor computes in: what it says of itself, and what LPIPS_FAST_CPU_ISA says instead."""

from __future__ import annotations

import sys

import pytest
import torch

from lpips_fast.trunk import processor
from tests.support.processes import run

# What torch.cpu.get_capabilities says of some processors, as far as it counts here.
BF16, FP16 = torch.bfloat16, torch.float16
PROCESSORS = {
    "haswell": ({"avx2": True, "f16c": True, "avx512_f": False, "avx512_bf16": False, "avx512_fp16": False}, set()),
    "ice lake": ({"avx2": True, "avx512_f": True, "avx512_vnni": True, "avx512_bf16": False}, set()),
    "arrow lake": ({"avx2": True, "avx_vnni": True, "avx_ne_convert": True, "avx512_bf16": False}, set()),
    "cooper lake": ({"avx512_f": True, "avx512_bf16": True, "avx512_fp16": False, "amx_bf16": False}, {BF16}),
    "sapphire rapids": ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True, "amx_fp16": False}, {BF16, FP16}),
    "amx alone": ({"avx512_bf16": False, "avx512_fp16": False, "amx_bf16": True, "amx_fp16": True}, {BF16, FP16}),
    "neoverse n1": ({"neon": True, "fp16_arith": True, "bf16": False}, {FP16}),
    "neoverse v1": ({"neon": True, "fp16_arith": True, "bf16": True, "sve": True}, {BF16, FP16}),
    "unknown": ({"architecture": "riscv64"}, set()),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_types_with_instructions(name):
    capabilities, types = PROCESSORS[name]
    assert processor.low_types(capabilities, "") == types
    assert processor.low_types(capabilities, "avx512") == types
    assert not processor.low_types(capabilities, "avx2")
    assert not processor.low_types(capabilities, "portable")


def test_the_names_are_those_of_torch():
    """On x86 and on ARM: a name that torch does not know would never be found."""
    names = {name for names in processor._INSTRUCTIONS.values() for name in names}
    known = set(torch.cpu.get_capabilities())
    if known & {"avx2", "neon"}:
        assert len(names & known) == (4 if "avx2" in known else 2)
    assert all(name in torch.cpu.get_capabilities.__doc__ for name in names)


@pytest.mark.parametrize("present", (True, False))
def test_asked_once(monkeypatch, present):
    questions = []
    answer = {name: present for names in processor._INSTRUCTIONS.values() for name in names}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: questions.append(None) or answer)
    monkeypatch.delenv("LPIPS_FAST_CPU_ISA", raising=False)
    processor._low_types.cache_clear()
    try:
        for _ in range(2):
            assert processor.computes_in(BF16) == processor.computes_in(FP16) == present
        assert len(questions) == 1
        assert processor.computes_in(torch.float32)
        assert processor.computes_in(torch.float64)
    finally:
        processor._low_types.cache_clear()


def test_the_environment_names_another_processor():
    """A process with this choice makes taps of the low type from float32."""
    program = (
        "import torch; from lpips_fast.trunk.module import Trunk; "
        "setting = Trunk('alex', 'bfloat16').setting(torch.device('cpu')); print(setting.dtype, setting.tap_dtype)"
    )
    assert run(sys.executable, "-c", program, LPIPS_FAST_CPU_ISA="portable") == "torch.float32 torch.bfloat16\n"
