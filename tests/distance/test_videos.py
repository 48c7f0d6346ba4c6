"""Videos, frame by frame, in both layouts; and the errors for other shapes."""

from __future__ import annotations

import pytest
import torch

from tests.support.images import NOISE_SIZE, blank
from tests.support.raises import raises
from tests.support.tolerances import REORDERED_TOLERANCE


class TestVideo:
    def videos(self):
        gen = torch.Generator().manual_seed(0)
        return torch.rand(2, 2, 3, 4, NOISE_SIZE, NOISE_SIZE, generator=gen).mul(2).sub(1).unbind(0)

    def test_frame_by_frame(self, make_ours):
        v0, v1 = self.videos()
        fn = make_ours("alex")
        found = fn(v0, v1)
        assert found.shape == (2, 4)
        for clip in range(2):
            for frame in range(4):
                expected = fn(v0[clip : clip + 1, :, frame], v1[clip : clip + 1, :, frame])
                torch.testing.assert_close(found[clip, frame], expected[0, 0, 0, 0], rtol=REORDERED_TOLERANCE, atol=0)
        assert fn(v0, v1, reduction="mean").shape == ()
        assert make_ours("alex", spatial=True)(v0, v1).shape == (2, 4, 1, NOISE_SIZE, NOISE_SIZE)

    def test_frames_are_picked_alike_and_reproducibly(self, make_ours):
        v0, v1 = self.videos()
        fn = make_ours("alex")
        whole = fn(v0, v1)
        picks = [fn(v0, v1, frames=2, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1, 2, 3)]
        assert torch.equal(picks[0], picks[1])
        assert any(not torch.equal(picks[0], p) for p in picks[2:])
        for pick in picks:
            for clip in range(2):
                where = [(whole[clip] - d).abs().argmin().item() for d in pick[clip]]
                assert where[0] < where[1]  # two frames, in their order
                torch.testing.assert_close(whole[clip, where], pick[clip], rtol=REORDERED_TOLERANCE, atol=0)

    def test_gradient_and_weights(self, make_ours):
        v0, v1 = self.videos()
        v0.requires_grad_()
        weight = torch.zeros(2, 1, 4, NOISE_SIZE, NOISE_SIZE)
        weight[:, :, 1] = 1
        for grad_in_forward in (False, True):
            value = make_ours("alex", grad_in_forward=grad_in_forward)(v0, v1, weight=weight)
            assert (value[:, [0, 2, 3]] == 0).all()
            assert (value[:, 1] > 0).all()
            (grad,) = torch.autograd.grad(value.sum(), v0)
            assert grad[:, :, 1].abs().max() > 0
            assert (grad[:, :, [0, 2, 3]] == 0).all()

    @pytest.mark.parametrize("length", (1, 3, 4))
    @pytest.mark.parametrize("options", ({}, {"spatial": True}), ids=str)
    def test_frames_before_channels(self, make_ours, options, length):
        """[B, T, C, H, W] gives what [B, C, T, H, W] gives, also with masks and with some of the frames."""
        v0, v1 = (v[:, :, :length] for v in self.videos())
        fn = make_ours("alex", **options)
        weight = {} if options else {"weight": torch.rand(2, 1, length, NOISE_SIZE, NOISE_SIZE)}
        turned = {name: mask.transpose(1, 2) for name, mask in weight.items()}
        for frames in (None, 1):
            calls = [
                ((v0, v1), {**weight, "layout": "BCTHW"}),
                ((v0.transpose(1, 2), v1.transpose(1, 2)), {**turned, "layout": "BTCHW"}),
            ]
            found = [
                fn(*videos, frames=frames, generator=frames and torch.Generator().manual_seed(0), **arguments)
                for videos, arguments in calls
            ]
            assert torch.equal(*found)
            assert found[0].shape[:2] == (2, frames or length)

    def test_bad_videos(self, make_ours):
        v0, v1 = self.videos()
        fn = make_ours("alex")
        for frames in (5, 0, 2.0, "2", True):
            with pytest.raises(ValueError, match=f"frames must be .* from 1 to the videos' length, 4, got {frames!r}"):
                fn(v0, v1, frames=frames)
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got int"):
            fn(v0, v1, frames=2, generator=0)
        with pytest.raises(ValueError, match=r"weight must be .*, got float"):
            fn(v0, v1, weight=1.0)
        with pytest.raises(ValueError, match="in1"):
            fn(v0, v1[:, :, :3])
        with pytest.raises(ValueError, match="weight"):
            fn(v0, v1, weight=torch.ones(2, 1, NOISE_SIZE, NOISE_SIZE))


@pytest.fixture(scope="module")
def module(make_ours):
    return make_ours()


GOOD = (2, 3, 40, 40)


def test_videos_with_frames_before_channels(module):
    videos = blank(2, 4, 3, 40, 40)
    with raises(ValueError, "in0", "[B, 3, T, H, W]", "[2, 4, 3, 40, 40]", "layout='BTCHW'"):
        module(videos, videos)


@pytest.mark.parametrize("shape", ((2, 1, 3, 40, 40), (2, 3, 3, 40, 40)), ids=str)
def test_videos_that_can_be_read_two_ways(module, shape):
    """A wrong guess would give a wrong number silently, for one frame and for three."""
    with raises(ValueError, "in0", str(list(shape)), "layout='BCTHW'", "layout='BTCHW'"):
        module(blank(*shape), blank(*shape))
    assert module(blank(*shape), blank(*shape), layout="BCTHW").shape == (2, 3)
    assert module(blank(*shape), blank(*shape), layout="BTCHW").shape == shape[:2]


def test_layout(module):
    videos = blank(2, 4, 3, 40, 40)
    with raises(ValueError, "layout", "'BCTHW'", "'BTCHW'", "'TCHW'"):
        module(videos, videos, layout="TCHW")
    with raises(ValueError, "in0", "[2, 4, 3, 40, 40]", "layout='BCTHW'"):
        module(videos, videos, layout="BCTHW")
    with raises(ValueError, "layout='BTCHW'", "videos", "[2, 3, 40, 40]"):
        module(blank(*GOOD), blank(*GOOD), layout="BTCHW")
    with raises(ValueError, "in1", "[2, 4, 3, 40, 40]", "[2, 5, 3, 40, 40]"):
        module(videos, blank(2, 5, 3, 40, 40), layout="BTCHW")
    with raises(ValueError, "weight", "[2, 4, 1, 40, 40]", "[2, 1, 4, 40, 40]"):
        module(videos, videos, weight=blank(2, 1, 4, 40, 40), layout="BTCHW")
