"""LPIPS as a training loss: what is kept for the backward, gradient in the forward, chunks, in every combination."""

from __future__ import annotations

import os
import socket
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import lpips_fast.distance.grad_in_forward
import lpips_fast.trunk.execute
import lpips_fast.trunk.module
from lpips_fast.lpips import LPIPS
from lpips_fast.trunk.execute import run

from .conftest import NETS

SIZE = 48


def images(n=3, seed=0, dtype=torch.float32, size=SIZE):
    gen = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, 3, size, size, generator=gen, dtype=torch.float64) * 2 - 1).to(dtype) for _ in range(2)]


def gradients(fn, in0, in1, needs=(True, True), per_sample=None, **options):
    """Value and gradients of a loss that weights each pair otherwise."""
    pair = [x.detach().clone().requires_grad_(need) for x, need in zip((in0, in1), needs)]
    value = fn(*pair, **options)
    factors = torch.linspace(0.5, 2, value.numel()).view_as(value) if per_sample is None else per_sample
    wanted = [x for x in pair if x.requires_grad]
    return value, torch.autograd.grad((value * factors).sum(), wanted)


def assert_same(found, expected, rtol=1e-5):
    for f, e in zip(found, expected, strict=True):
        assert (f - e).norm() <= rtol * e.norm()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("needs", ((True, False), (False, True), (True, True)))
@pytest.mark.parametrize("batches", ((3, 3), (1, 3), (3, 1)))
def test_gradient_in_forward_equals_ordinary(make_ours, net, needs, batches):
    if net == "vgg" and (batches != (3, 3) or needs == (False, True)):
        pytest.skip("the same code as for the smaller nets, and slow in float64")
    in0, in1 = images(3)
    in0, in1 = in0[: batches[0]], in1[: batches[1]]
    ordinary = gradients(make_ours(net).double(), in0.double(), in1.double(), needs)
    for chunk_size in (None, 1, 2, "auto"):
        fn = make_ours(net, grad_in_forward=True, chunk_size=chunk_size).double()
        value, grads = gradients(fn, in0.double(), in1.double(), needs)
        assert_same([value, *grads], [ordinary[0], *ordinary[1]], rtol=1e-11)


@pytest.mark.parametrize("net", NETS)
def test_gradient_equals_lpips(make_ours, make_theirs, net):
    in0, in1 = images(2, dtype=torch.float64)
    expected = gradients(make_theirs(net, torch.float64), in0, in1)
    for options in ({}, {"grad_in_forward": True, "chunk_size": 1}):
        found = gradients(make_ours(net, **options).double(), in0, in1)
        assert_same([found[0], *found[1]], [expected[0], *expected[1]], rtol=1e-11)


@pytest.mark.parametrize("net", NETS)
def test_chunked_equals_unchunked_to_the_bit(make_ours, net, monkeypatch):
    in0, in1 = images(5)
    monkeypatch.setattr(lpips_fast.distance.grad_in_forward, "_CPU_PIXELS", 2 * in0[0, 0].numel())
    whole = gradients(make_ours(net, grad_in_forward=True), in0, in1, (True, False))
    for chunk_size in (1, 3):
        parts = gradients(make_ours(net, grad_in_forward=True, chunk_size=chunk_size), in0, in1, (True, False))
        assert torch.equal(parts[0], whole[0])
        assert torch.equal(parts[1][0], whole[1][0])


@pytest.mark.parametrize("options", ({}, {"spatial": True}))
@pytest.mark.parametrize("batches", ((5, 5), (1, 5), (5, 1)))
def test_chunks_without_gradient(make_ours, options, batches):
    """Equal but for rounding: the order of a direct convolution's sums depends on its batch."""
    in0, in1 = images(5)
    in0, in1 = in0[: batches[0]], in1[: batches[1]]
    with torch.no_grad():
        whole, parts = make_ours("alex", **options)(in0, in1, retPerLayer=True)
        for chunk_size in (1, 2):
            chunked, chunked_parts = make_ours("alex", chunk_size=chunk_size, **options)(in0, in1, retPerLayer=True)
            torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-7)
            for a, b in zip(parts, chunked_parts, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_pixel_weights(make_ours, grad_in_forward):
    """The weighted mean is that of the maps; weights of 1 change nothing, of 0 give 0 and no NaN."""
    fn = make_ours("alex", grad_in_forward=grad_in_forward, chunk_size=2 if grad_in_forward else None).double()
    in0, in1 = images(3, dtype=torch.float64)
    plain = gradients(fn, in0, in1)
    ones = gradients(fn, in0, in1, weight=torch.ones(1, 1, SIZE, SIZE))
    assert_same([ones[0], *ones[1]], [plain[0], *plain[1]], rtol=1e-11)

    weight = torch.rand(3, 1, SIZE, SIZE)
    weight[1] = 0
    value, grads = gradients(fn, in0, in1, weight=weight)
    reference = make_ours("alex", backend="reference").double()
    taps = [reference.features(x).taps for x in (in0, in1)]
    expected = torch.zeros(3, dtype=torch.float64)
    for f0, f1, lin in zip(*taps, reference.lins):
        a, b = (F.normalize(f, dim=1, eps=1e-30) for f in (f0, f1))
        d = lin((a - b) ** 2)
        m = F.adaptive_avg_pool2d(weight.double(), d.shape[2:])
        expected += torch.nan_to_num((m * d).sum(dim=(1, 2, 3)) / m.sum(dim=(1, 2, 3)))
    torch.testing.assert_close(value.flatten(), expected, rtol=1e-7, atol=1e-12)
    assert value[1] == 0
    assert all((g[1] == 0).all() and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("needs", ((True, False), (True, True)))
def test_empty_batch_has_a_gradient(make_ours, needs):
    """An empty one, not None."""
    x = torch.zeros(0, 3, 40, 40)
    value, grads = gradients(make_ours("alex", grad_in_forward=True), x, x, needs)
    assert value.shape == (0, 1, 1, 1)
    assert [grad.shape for grad in grads] == [x.shape] * sum(needs)


def test_maps_asked_for_later_take_the_ordinary_path(make_ours):
    in0, in1 = images(2)
    fn = make_ours("alex", grad_in_forward=True)
    fn.spatial = True
    assert torch.equal(fn(in0.clone().requires_grad_(), in1), make_ours("alex", spatial=True)(in0, in1))


@pytest.mark.parametrize("precision,dtype", (("bfloat16", torch.float32), ("inherit", torch.float64)))
def test_pixel_weights_leave_the_type(make_ours, precision, dtype):
    fn = make_ours("alex", precision=precision).double()
    in0, in1 = (x.double() for x in images(2))
    assert fn(in0, in1).dtype == fn(in0, in1, weight=torch.ones(1, 1, SIZE, SIZE)).dtype == dtype


def test_gradient_to_pixel_weights_takes_the_ordinary_path(make_ours):
    in0, in1 = images(2)
    weights = []
    for grad_in_forward in (False, True):
        weight = torch.ones(2, 1, SIZE, SIZE, requires_grad=True)
        in0.requires_grad_()
        make_ours("alex", grad_in_forward=grad_in_forward)(in0, in1, weight=weight).sum().backward()
        weights.append(weight.grad)
    assert torch.equal(*weights)
    assert weights[0].abs().max() > 0


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_two_backwards_through_one_forward(make_ours, grad_in_forward):
    """As taming-transformers' adaptive weight does."""
    in0, in1 = images(2)
    last_layer = torch.nn.Conv2d(3, 3, 1)
    value = make_ours("alex", grad_in_forward=grad_in_forward)(last_layer(in0), in1).mean()
    (early,) = torch.autograd.grad(value, last_layer.weight, retain_graph=True)
    value.backward()
    assert torch.equal(early, last_layer.weight.grad)
    assert early.abs().max() > 0


def test_double_backward(make_ours):
    in0, in1 = images(1)
    in0.requires_grad_()
    (grad,) = torch.autograd.grad(make_ours("alex")(in0, in1).sum(), in0, create_graph=True)
    (second,) = torch.autograd.grad((grad**2).sum(), in0)
    assert second.abs().max() > 0
    with pytest.raises(RuntimeError, match="grad_in_forward=False"):
        torch.autograd.grad(make_ours("alex", grad_in_forward=True)(in0, in1).sum(), in0, create_graph=True)


def test_per_layer_parts_and_trainable_weights_take_the_ordinary_path(make_ours):
    in0, in1 = images(2)
    fn = make_ours("alex", grad_in_forward=True)
    in0.requires_grad_()
    _, parts = fn(in0, in1, retPerLayer=True)
    (found,) = torch.autograd.grad(parts[2].sum(), in0)
    (expected,) = torch.autograd.grad(make_ours("alex")(in0, in1, retPerLayer=True)[1][2].sum(), in0)
    assert torch.equal(found, expected)

    trainable = make_ours("alex", grad_in_forward=True, eval_mode=False, use_dropout=False)
    trainable(in0, in1).sum().backward()
    assert all(weight.grad is not None for weight in trainable._linear_weights())


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_no_gradient_to_own_parameters(make_ours, grad_in_forward):
    in0, in1 = images(2)
    fn = make_ours("alex", grad_in_forward=grad_in_forward)
    fn(in0.requires_grad_(), in1.requires_grad_()).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in fn.parameters())
    with torch.no_grad():
        assert not fn(in0, in1).requires_grad
    assert not fn(in0.detach(), in1.detach()).requires_grad


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_autocast_and_grad_scaler(make_ours, grad_in_forward):
    in0, in1 = images(2)
    expected = gradients(make_ours("vgg"), in0, in1, (True, False))
    fn = make_ours("vgg", grad_in_forward=grad_in_forward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grads = gradients(fn, in0, in1, (True, False))
    assert value.dtype == torch.float32
    assert grads[0].dtype == torch.float32
    assert_same([value], [expected[0]], rtol=0.05)
    assert_same(grads, expected[1], rtol=0.5)  # a random trunk's gradient is that sensitive to bfloat16

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pred = in0.clone().requires_grad_()
    optimizer = torch.optim.SGD([pred], lr=1.0)
    scaler.scale(fn(pred, in1).mean()).backward()
    scaler.unscale_(optimizer)
    plain = in0.clone().requires_grad_()
    fn(plain, in1).mean().backward()
    assert_same([pred.grad], [plain.grad])


@pytest.mark.parametrize("precision", ("float32", "tf32", "bfloat16", "float16"))
@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_precision(make_ours, precision, grad_in_forward):
    in0, in1 = images(2)
    expected = gradients(make_ours("alex"), in0, in1, (True, False))
    fn = make_ours("alex", precision=precision, grad_in_forward=grad_in_forward)
    value, grads = gradients(fn, in0, in1, (True, False))
    assert value.dtype == grads[0].dtype == torch.float32
    if precision in ("float32", "tf32") and not grad_in_forward:  # TF32 is CUDA's
        assert torch.equal(value, expected[0])
    assert_same([value], [expected[0]], rtol=0.03)
    if precision != "float16" or grad_in_forward:  # without, the gradient underflows unless the loss is scaled
        assert F.cosine_similarity(grads[0].flatten(), expected[1][0].flatten(), dim=0) > 0.9
    half = in0.bfloat16()
    mixed, by_hand = (gradients(fn, x, in1, (True, True)) for x in (half, half.float()))
    assert torch.equal(mixed[0], by_hand[0])
    assert [grad.dtype for grad in mixed[1]] == [torch.bfloat16, torch.float32]
    assert torch.equal(mixed[1][0], by_hand[1][0].bfloat16())
    taps = fn.features(in0).taps
    assert taps[0].dtype == {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_cached_features_of_the_target(make_ours, grad_in_forward):
    in0, in1 = images(3)
    fn = make_ours("squeeze", grad_in_forward=grad_in_forward, chunk_size=2 if grad_in_forward else None)
    expected = gradients(fn, in0, in1, (True, False))
    calls = []
    target = fn.features(in1)
    fn.net.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[0]))
    pred = in0.clone().requires_grad_()
    value = fn(pred, target)
    torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad((value * torch.linspace(0.5, 2, 3).view_as(value)).sum(), pred)
    assert_same([grad], expected[1])
    assert sum(calls) <= 3  # of images, none of which is the target
    one = fn(pred, fn.features(in1[:1]))
    torch.testing.assert_close(one, fn(pred, in1[:1]), rtol=1e-6, atol=0)


def test_features_are_checked(make_ours):
    in0, in1 = images(2)
    fn = make_ours("alex")
    with pytest.raises(ValueError, match="net"):
        fn(in0, make_ours("squeeze").features(in1))
    with pytest.raises(ValueError, match="version"):
        fn(in0, make_ours("alex", version="0.0").features(in1))
    with pytest.raises(ValueError, match="size"):
        fn(in0, fn.features(in1[:, :, :40]))
    with pytest.raises(ValueError, match="type"):
        fn(in0, make_ours("alex", precision="bfloat16").features(in1))
    with pytest.raises(ValueError, match="batch"):
        fn(torch.cat((in0, in0)), fn.features(in1))
    with pytest.raises(TypeError, match="in0 must be a tensor, features go in as in1"):
        fn(fn.features(in1), in0)
    with torch.inference_mode():
        features = fn.features(in1)
    with pytest.raises(ValueError, match=r"in1 .* torch\.inference_mode.* torch\.no_grad"):
        fn(in0.clone().requires_grad_(), features)
    assert torch.equal(fn(in0, features), fn(in0, in1))
    fn.grad_in_forward = True
    found = gradients(lambda x, _: fn(x, features), in0, in1, (True, False))[1]
    assert_same(found, gradients(make_ours("alex"), in0, in1, (True, False))[1])


def test_one_image_goes_through_the_trunk_once(make_ours):
    in0, in1 = images(4)
    fn = make_ours("alex")
    seen = []
    fn.net.register_forward_pre_hook(lambda module, args: seen.append(sum(map(len, args))))
    with torch.no_grad():
        fn(in0[:1], in1)
        assert sum(seen) == 5
        seen.clear()
        fn(in0, in1)
        assert seen == [8]  # both images in one batch


@pytest.mark.parametrize("chunk_size", (0, -1, 1.5, True, "all"))
def test_chunk_size_is_checked(make_ours, chunk_size):
    with pytest.raises(ValueError, match="chunk_size"):
        make_ours("alex", chunk_size=chunk_size)


def test_bad_options(make_ours):
    with pytest.raises(ValueError, match=r"precision.*'bf16'"):
        make_ours("alex", precision="bf16")
    with pytest.raises(ValueError, match="spatial"):
        make_ours("alex", spatial=True, grad_in_forward=True)
    fn = make_ours("alex")
    in0, in1 = images(2)
    for weight in (torch.ones(2, 1, 5, 5), torch.ones(3, 1, SIZE, SIZE), torch.ones(2, 3, SIZE, SIZE)):
        with pytest.raises(ValueError, match="weight"):
            fn(in0, in1, weight=weight)
    with pytest.raises(ValueError, match=r"reduction.*'avg'"):
        fn(in0, in1, reduction="avg")
    with pytest.raises(ValueError, match="frames"):
        fn(in0, in1, frames=1)
    with pytest.raises(ValueError, match="spatial"):
        make_ours("alex", spatial=True)(in0, in1, weight=torch.ones(2, 1, SIZE, SIZE))


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
def test_reduction(make_ours, reduction):
    in0, in1 = images(3)
    fn = make_ours("alex")
    value = fn(in0, in1)
    assert value.shape == (3, 1, 1, 1)
    expected = {"none": value, "mean": value.mean(), "sum": value.sum()}[reduction]
    found, parts = fn(in0, in1, retPerLayer=True, reduction=reduction)
    assert torch.equal(found, expected)
    assert all(part.shape == expected.shape for part in parts)


class TestVideo:
    def videos(self):
        gen = torch.Generator().manual_seed(0)
        return torch.rand(2, 2, 3, 4, SIZE, SIZE, generator=gen).mul(2).sub(1).unbind(0)

    def test_frame_by_frame(self, make_ours):
        v0, v1 = self.videos()
        fn = make_ours("alex")
        found = fn(v0, v1)
        assert found.shape == (2, 4)
        for clip in range(2):
            for frame in range(4):
                expected = fn(v0[clip : clip + 1, :, frame], v1[clip : clip + 1, :, frame])
                torch.testing.assert_close(found[clip, frame], expected[0, 0, 0, 0], rtol=1e-5, atol=0)
        assert fn(v0, v1, reduction="mean").shape == ()
        assert make_ours("alex", spatial=True)(v0, v1).shape == (2, 4, 1, SIZE, SIZE)

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
                torch.testing.assert_close(whole[clip, where], pick[clip], rtol=1e-5, atol=0)

    def test_gradient_and_weights(self, make_ours):
        v0, v1 = self.videos()
        v0.requires_grad_()
        weight = torch.zeros(2, 1, 4, SIZE, SIZE)
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
        """[B, T, C, H, W], masks and picked frames too; gives what [B, C, T, H, W] does."""
        v0, v1 = (v[:, :, :length] for v in self.videos())
        fn = make_ours("alex", **options)
        weight = {} if options else {"weight": torch.rand(2, 1, length, SIZE, SIZE)}
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
            fn(v0, v1, weight=torch.ones(2, 1, SIZE, SIZE))


class Carrier(torch.Tensor):
    """A tensor that carries more with it, and has a `new_empty` of its own, as MONAI's MetaTensor."""

    def new_empty(self, size, **options):
        return super().new_empty(tuple(size), **options).as_subclass(Carrier)


def tv_image(x):
    return pytest.importorskip("torchvision.tv_tensors").Image(x)


@pytest.mark.parametrize("wrap", (lambda x: x.as_subclass(Carrier), tv_image), ids=("carrier", "tv_tensors"))
@pytest.mark.parametrize("options", ({}, {"grad_in_forward": True}, {"spatial": True}), ids=str)
def test_tensor_subclasses(make_ours, wrap, options):
    """As images, target, mask and video; the gradient reaches what they were made of."""
    in0, in1 = images(2)
    fn = make_ours("squeeze", **options)
    expected = gradients(fn, in0, in1, (True, False))
    for target in (in1, wrap(in1), fn.features(wrap(in1))):
        leaf = in0.clone().requires_grad_()
        value = fn(wrap(leaf), target)
        torch.testing.assert_close(torch.Tensor(value), expected[0], rtol=1e-6, atol=0)
        (grad,) = torch.autograd.grad((value * torch.linspace(0.5, 2, value.numel()).view_as(value)).sum(), leaf)
        assert_same([grad], expected[1])
    if not options.get("spatial"):
        mask = torch.rand(2, 1, SIZE, SIZE)
        leaf = in0.clone().requires_grad_()
        value = fn(wrap(leaf), in1, weight=wrap(mask))
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, fn(in0, in1, weight=mask))
        value.sum().backward()
        assert leaf.grad.abs().max() > 0
        clip = in0.transpose(0, 1)[None]
        torch.testing.assert_close(fn(wrap(clip), wrap(clip) * 0.5), fn(clip, clip * 0.5))


@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("needs", ((True, False), (True, True)))
def test_images_changed_in_place_before_the_backward(make_ours, needs, grad_in_forward):
    """Clamped for a log, say: nothing of them is needed any more."""
    in0, in1 = images(2)
    fn = make_ours("squeeze", grad_in_forward=grad_in_forward)
    (_, expected), scale = gradients(fn, in0, in1, needs), torch.ones((), requires_grad=True)
    pair = [x.clone().requires_grad_(need) for x, need in zip((in0, in1), needs)]
    decoded = [x * scale if need else x for x, need in zip(pair, needs)]
    value = fn(*decoded)
    for x in decoded:
        x.detach().clamp_(0, 1)
        x.mul_(0)
    wanted = [x for x in pair if x.requires_grad]
    found = torch.autograd.grad((value * torch.linspace(0.5, 2, 2).view_as(value)).sum(), wanted)
    assert_same(found, expected)


def test_images_are_given_up_with_the_graph(make_ours):
    """After the backward, though the loss lives on; with retain_graph they stay, for a double backward may come."""
    fn = make_ours("squeeze")
    in0, in1 = images(1)
    scale = torch.ones((), requires_grad=True)
    for retain in (False, True):
        image = in0 * scale
        alive = weakref.ref(image)
        loss = fn(image, in1).sum()
        loss.backward(retain_graph=retain)
        del image
        assert (alive() is not None) == retain
    loss.backward()
    assert alive() is None


def test_hooks_on_saved_tensors_have_the_images(make_ours):
    """Checkpointing and offloading take them, too: nothing of an image stays behind."""
    fn = make_ours("squeeze")
    in0, in1 = images(1)
    scale = torch.ones((), requires_grad=True)
    seen = []

    def region(x):
        image = torch.tanh(x * scale)
        seen.append(weakref.ref(image))
        return fn(image, in1).sum()

    value = checkpoint(region, in0, use_reentrant=False)
    assert seen[0]() is None
    (found,) = torch.autograd.grad(value, scale)
    (expected,) = torch.autograd.grad(region(in0), scale)
    torch.testing.assert_close(found, expected)


def test_memory_of_an_image_may_be_gone_before_the_backward(make_ours):
    """As pipelines free what they have sent on."""
    fn = make_ours("squeeze")
    in0, in1 = images(1)
    scale = torch.ones((), requires_grad=True)
    (expected,) = torch.autograd.grad(fn(in0 * scale, in1).sum(), scale)
    image = in0 + 0 * scale
    value = fn(image, in1).sum()
    image.data = torch.zeros(1)
    gradient = torch.autograd.grad(value, scale, allow_unused=True)
    assert gradient[0] is not None
    assert expected.isfinite()


def test_double_backward_needs_images_as_they_were(make_ours):
    in0, in1 = images(1)
    fn = make_ours("squeeze")
    leaf = in0.clone().requires_grad_()
    x = leaf * 1
    value = fn(x, in1).sum()
    (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
    assert grad.requires_grad
    other = in1.clone().requires_grad_() * 1
    value = fn(leaf, other).sum()
    other.detach_()  # not changed
    torch.autograd.grad(value, leaf, create_graph=True)
    value = fn(x, in1).sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after LPIPS compared it"):
        torch.autograd.grad(value, leaf, create_graph=True)


def test_activation_checkpointing_around_it(make_ours):
    in0, in1 = images(2)
    for grad_in_forward in (False, True):
        fn = make_ours("alex", grad_in_forward=grad_in_forward)
        grads = []
        for wrapped in (
            fn,
            lambda a, b, fn=fn: checkpoint(fn, a, b, use_reentrant=False),
            lambda a, b, fn=fn: checkpoint(fn, a, b, use_reentrant=True),
        ):
            pred = in0.clone().requires_grad_()
            wrapped(pred, in1).sum().backward()
            grads.append(pred.grad)
        assert_same(grads[1:], [grads[0]] * 2)


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_compiled_with_the_surrounding_model(make_ours, grad_in_forward):
    in0, in1 = images(2)
    fn = make_ours("alex", grad_in_forward=grad_in_forward, chunk_size=1 if grad_in_forward else None)
    generator = torch.nn.Conv2d(3, 3, 3, padding=1)

    def step(x, target):
        return fn(torch.tanh(generator(x)), target).mean()

    torch._dynamo.reset()
    (expected,) = torch.autograd.grad(step(in0, in1), generator.weight)
    (found,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(in0, in1), generator.weight)
    assert_same([found], [expected])


def kept_bytes(fn, in0, in1):
    """Bytes of the distinct tensors that a forward leaves for its backward, less the inputs and fn's parameters."""
    known = {t.untyped_storage().data_ptr() for t in (in0, in1, *fn.parameters(), *fn.buffers())}
    if isinstance(fn, lpips_fast.LPIPS):
        known |= {t.untyped_storage().data_ptr() for t in fn.net.tensors(fn.net.setting(in0.device), gradient=True)}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = fn(in0, in1)
    assert value.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("needs", ((True, False), (True, True)))
def test_bytes_kept(make_ours, make_theirs, needs):
    """The README's figures for VGG: gradient in the forward 1.1 images an input, the lean path 45% of lpips."""
    in0, in1 = (x.requires_grad_(need) for x, need in zip(images(2, size=128), needs))
    theirs = kept_bytes(make_theirs("vgg"), in0, in1)
    make = lambda **options: make_ours("vgg", **options)  # noqa: E731
    fn = make()
    fn(in0, in1)  # converts the weights
    assert kept_bytes(fn, in0, in1) <= 0.45 * theirs
    image = in0.numel() * 4
    assert kept_bytes(make(grad_in_forward=True), in0, in1) <= 1.1 * image * sum(needs)


def test_a_chunk_at_a_time_goes_through_the_trunk(make_ours, monkeypatch):
    """What bounds the peak memory: never more images at once than a chunk has, whatever the batch."""
    in0, in1 = images(5)
    fn = make_ours("alex", grad_in_forward=True, chunk_size=2)
    seen = []

    def spy(setting, images, *args, **options):
        seen.append(sum(map(len, images)))
        return run(setting, images, *args, **options)

    for module in (lpips_fast.distance.grad_in_forward, lpips_fast.trunk.execute, lpips_fast.trunk.module):
        monkeypatch.setattr(module, "run", spy)
    monkeypatch.setattr(lpips_fast.distance.grad_in_forward, "_CPU_PIXELS", 2 * in0[0, 0].numel())
    gradients(fn, in0, in1, (True, False))
    assert max(seen) == 2  # two pairs at a time, whose images go through in turn
    assert sum(seen) == 10
    seen.clear()
    with torch.no_grad():
        fn(in0, in1)
    assert max(seen) == 4  # both images of two pairs
    assert sum(seen) == 10


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_the_cpu_takes_large_batches_in_parts(make_ours, net, monkeypatch):
    """By itself; with a graph only where layers have as many pixels as the images."""
    in0, in1 = images(5)
    fn = make_ours(net)
    whole = fn(in0, in1)
    seen = []
    fn.net.register_forward_pre_hook(lambda module, args: seen.append(sum(map(len, args))))
    monkeypatch.setattr(lpips_fast.lpips, "_CPU_PIXELS", 2 * in0[0, 0].numel())
    torch.testing.assert_close(fn(in0, in1), whole, rtol=1e-5, atol=1e-7)
    assert seen == [4, 4, 2]
    seen.clear()
    torch.testing.assert_close(fn(in0.requires_grad_(), in1), whole, rtol=1e-5, atol=1e-7)
    assert seen == ([2, 2] * 2 + [1, 1] if net == "vgg" else [5, 5])


def test_no_large_integers_are_kept(make_ours):
    in0, in1 = images(1)
    fn = make_ours("vgg")
    dtypes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: dtypes.append(t.dtype) or t, lambda t: t):
        fn(in0.requires_grad_(), in1)
    assert torch.int64 not in dtypes


def _ddp_worker(rank, world, port, path):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(_LossModule())
    in0, in1 = images(4)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    model(in0[share], in1[share]).backward()
    if rank == 0:
        torch.save(model.module.generator.weight.grad, path)
    torch.distributed.barrier()  # none leaves while another still needs it
    torch.distributed.destroy_process_group()


class _LossModule(torch.nn.Module):
    """A generator with its loss as a submodule, as training code has it."""

    def __init__(self):
        super().__init__()
        self.generator = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.perceptual_loss = LPIPS(net="squeeze", pnet_rand=True, grad_in_forward=True, chunk_size=1)

    def forward(self, x, target):
        return self.perceptual_loss(torch.tanh(self.generator(x)), target).mean()


def test_ddp_gives_the_same_gradients(tmp_path):
    grads = []
    for world in (1, 2):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        path = tmp_path / f"{world}.pt"
        torch.multiprocessing.spawn(_ddp_worker, (world, port, path), nprocs=world)
        grads.append(torch.load(path))
    assert_same(grads[1:], grads[:1])
