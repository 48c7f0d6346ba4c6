"""The demo's comparison with plain torch: both agree, and both are timed."""

from __future__ import annotations

from lpips_fast.demo import speed
from tests.support.tolerances import JUMP_TOLERANCE, OTHERS_TOLERANCE


def test_compare(monkeypatch):
    monkeypatch.setattr(speed, "SIZE", 32)
    backend, comparisons = speed.compare(rounds=1)
    assert backend in ("cpu", "reference")
    assert len(comparisons) == 4
    for c in comparisons:
        assert c.seconds > 0
        assert c.plain_seconds > 0
        assert c.difference < OTHERS_TOLERANCE
        assert (c.gradient_difference is None) == ("backward" not in c.what)
        assert c.gradient_difference is None or c.gradient_difference < JUMP_TOLERANCE
