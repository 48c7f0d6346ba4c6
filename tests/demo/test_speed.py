"""The demo's comparison with plain torch: both agree, and both are timed."""

from __future__ import annotations

from lpips_fast.demo import speed
from tests.support.images import pair
from tests.support.tolerances import JUMP_TOLERANCE, OTHERS_TOLERANCE


def test_compare(make_ours):
    backend, comparisons = speed.compare(make_ours("vgg"), *pair(1, 32, 32), rounds=1)
    assert backend in ("cpu", "reference")
    assert len(comparisons) == 4
    for c in comparisons:
        assert c.seconds > 0
        assert c.plain_seconds > 0
        assert c.difference < OTHERS_TOLERANCE
        assert (c.gradient_difference is None) == ("backward" not in c.what)
        assert c.gradient_difference is None or c.gradient_difference < JUMP_TOLERANCE
