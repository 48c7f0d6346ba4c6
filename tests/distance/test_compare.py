"""The comparison of a chunk: both images go through the trunk in one batch."""

from __future__ import annotations

import torch

from tests.support.images import noise


def test_one_image_goes_through_the_trunk_once(make_ours):
    in0, in1 = noise(4)
    fn = make_ours("alex")
    seen = []
    fn.net.register_forward_pre_hook(lambda module, args: seen.append(sum(map(len, args))))
    with torch.no_grad():
        fn(in0[:1], in1)
        assert sum(seen) == 5
        seen.clear()
        fn(in0, in1)
        assert seen == [8]  # both images in one batch
