"""Bad input gets an exception that names the argument, what it was and what is accepted."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import lpips_fast
from lpips_fast import functional
from lpips_fast.head import backends

from .conftest import NETS
from .images import MIN_SIZE, pair


@pytest.fixture(scope="module")
def module(make_ours):
    return make_ours()


def raises(kind, *words):
    """An exception whose message has all the words."""
    return pytest.raises(kind, match="".join(f"(?=.*{re.escape(word)})" for word in words).join(("(?s)", "")))


def image(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


GOOD = (2, 3, 40, 40)
BAD_IMAGES = {
    "no tensor": (np.zeros(GOOD, np.float32), TypeError, ("tensor", "ndarray")),
    "none": (None, TypeError, ("tensor", "NoneType")),
    "rank 3, no channels": (image(2, 40, 40), ValueError, ("[N, 3, H, W]", "[2, 40, 40]")),
    "rank 1": (image(40), ValueError, ("[N, 3, H, W]", "[40]")),
    "rank 0": (image(), ValueError, ("[N, 3, H, W]", "[]")),
    "4 channels": (image(2, 4, 40, 40), ValueError, ("3", "1", "[2, 4, 40, 40]")),
    "2 channels": (image(2, 2, 40, 40), ValueError, ("3", "1", "[2, 2, 40, 40]")),
    "channels last in shape": (image(2, 40, 40, 3), ValueError, ("[N, 3, H, W]", "[2, 40, 40, 3]")),
    "uint8": (image(*GOOD, dtype=torch.uint8), TypeError, ("floating", "torch.uint8", "[-1, 1]", "127.5")),
    "int64": (image(*GOOD, dtype=torch.int64), TypeError, ("floating", "torch.int64")),
    "bool": (image(*GOOD, dtype=torch.bool), TypeError, ("floating", "torch.bool")),
    "complex": (image(*GOOD, dtype=torch.complex64), TypeError, ("floating", "torch.complex64")),
    "float64": (image(*GOOD, dtype=torch.float64), TypeError, ("torch.float64", "torch.float32", ".to()")),
    "device": (image(*GOOD, device="meta"), ValueError, ("meta", "cpu", ".to()")),
    "too small": (image(2, 3, 30, 40), ValueError, ("31", "alex", "30 x 40")),
    "no pixels": (image(2, 3, 0, 0), ValueError, ("31", "alex", "0 x 0")),
}


@pytest.mark.parametrize("which", (0, 1))
@pytest.mark.parametrize("bad,kind,words", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image(module, which, bad, kind, words):
    images = [image(*GOOD), image(*GOOD)]
    images[which] = bad
    with raises(kind, f"in{which}", *words):
        module(*images)


@pytest.mark.parametrize(
    "shape0,shape1,words",
    (
        ((2, 3, 40, 40), (2, 3, 40, 41), ("size", "[40, 40]", "[40, 41]")),
        ((2, 3, 41, 40), (2, 3, 40, 40), ("size", "[41, 40]", "[40, 40]")),
        ((2, 3, 40, 40), (3, 3, 40, 40), ("batch", "2", "3")),
        ((0, 3, 40, 40), (2, 3, 40, 40), ("batch", "0", "2")),
    ),
)
def test_images_that_do_not_fit_together(module, shape0, shape1, words):
    with raises(ValueError, "in0", "in1", *words):
        module(image(*shape0), image(*shape1))


@pytest.mark.parametrize("net", NETS)
def test_minimum_size(make_ours, net):
    """The smallest image that is accepted works, and one pixel less on either side is refused by its name."""
    module, size = make_ours(net), MIN_SIZE[net]
    in0, in1 = pair(1, size, size)
    assert module(in0.requires_grad_(), in1).isfinite().all()
    for h, w in ((size - 1, size), (size, size - 1)):
        with raises(ValueError, "in0", str(size), net, f"{h} x {w}"):
            module(*pair(1, h, w))


@pytest.mark.parametrize(
    "options,kind,words",
    (
        ({"net": "resnet"}, ValueError, ("net", "'resnet'", "'alex'", "'vgg'", "'squeeze'")),
        ({"net": None}, ValueError, ("net", "None", "'alex'")),
        ({"version": "0.2"}, ValueError, ("version", "'0.2'", "'0.1'", "'0.0'")),
        ({"version": 0.1}, ValueError, ("version", "0.1", "'0.1'")),
        ({"backend": "gpu"}, ValueError, ("backend", "'gpu'", "'auto'", "'reference'", "'cpu'", "'cuda'", "'triton'")),
        ({"pnet_tune": True}, ValueError, ("pnet_tune", "eval_mode=False")),
        ({"network": "alex"}, TypeError, ("'network'",)),
        ({"model": "net-lin", "use_gpu": True}, TypeError, ("'model'", "2020", "LPIPS(net='alex').to('cuda')")),
    ),
    ids=str,
)
def test_bad_options(options, kind, words):
    with raises(kind, *words):
        lpips_fast.LPIPS(pnet_rand=True, **options)


def test_backend_that_is_not_there(make_ours):
    missing = {name: reason for name, reason in lpips_fast.backends().items() if reason is not None}
    for name, reason in missing.items():
        with raises(RuntimeError, name, reason):
            make_ours(backend=name)(*pair(1, 40, 40))


@pytest.mark.parametrize("name", ("lpips", "pretrained", "eval_mode", "pnet_rand", "grad_in_forward"))
def test_strings_for_flags(name):
    """'False' would be true."""
    with raises(TypeError, name, "True or False", "'False'"):
        lpips_fast.LPIPS(**{"pnet_rand": True, name: "False"})


def test_strings_for_flags_of_a_call(module):
    for name in ("normalize", "retPerLayer"):
        with raises(TypeError, name, "True or False", "'no'"):
            module(image(*GOOD), image(*GOOD), **{name: "no"})
    with raises(TypeError, "normalize", "'no'"):
        module.features(image(*GOOD), normalize="no")


@pytest.mark.parametrize("name", ("model_path", "trunk_weights"))
@pytest.mark.parametrize("given", (1, [torch.zeros(1)], torch.nn.Linear(1, 1)), ids=("int", "list", "Linear"))
def test_weights_that_are_no_path(name, given):
    with raises(TypeError, name, "path", type(given).__name__):
        lpips_fast.LPIPS(pnet_rand=True, **{name: given})


@pytest.mark.parametrize("eps", (-1.0, float("nan"), "1e-10", None, True))
def test_bad_eps(eps):
    with raises(ValueError, "eps", "from 0", repr(eps)):
        functional.lpips_head([F], [F], [W], eps=eps)


@pytest.mark.parametrize("net", ("VGG", None, ["vgg"]))
def test_unknown_net_of_any_type(net):
    with raises(ValueError, "net must be one of", repr(net)):
        lpips_fast.LPIPS(net=net)


def test_videos_with_frames_before_channels(module):
    videos = image(2, 4, 3, 40, 40)
    with raises(ValueError, "in0", "[B, 3, T, H, W]", "[2, 4, 3, 40, 40]", "layout='BTCHW'"):
        module(videos, videos)


@pytest.mark.parametrize("shape", ((2, 1, 3, 40, 40), (2, 3, 3, 40, 40)), ids=str)
def test_videos_that_can_be_read_two_ways(module, shape):
    """A guess would give a wrong number in silence, for one frame and for three."""
    with raises(ValueError, "in0", str(list(shape)), "layout='BCTHW'", "layout='BTCHW'"):
        module(image(*shape), image(*shape))
    assert module(image(*shape), image(*shape), layout="BCTHW").shape == (2, 3)
    assert module(image(*shape), image(*shape), layout="BTCHW").shape == shape[:2]


def test_layout(module):
    videos = image(2, 4, 3, 40, 40)
    with raises(ValueError, "layout", "'BCTHW'", "'BTCHW'", "'TCHW'"):
        module(videos, videos, layout="TCHW")
    with raises(ValueError, "in0", "[2, 4, 3, 40, 40]", "layout='BCTHW'"):
        module(videos, videos, layout="BCTHW")
    with raises(ValueError, "layout='BTCHW'", "videos", "[2, 3, 40, 40]"):
        module(image(*GOOD), image(*GOOD), layout="BTCHW")
    with raises(ValueError, "in1", "[2, 4, 3, 40, 40]", "[2, 5, 3, 40, 40]"):
        module(videos, image(2, 5, 3, 40, 40), layout="BTCHW")
    with raises(ValueError, "weight", "[2, 4, 1, 40, 40]", "[2, 1, 4, 40, 40]"):
        module(videos, videos, weight=image(2, 1, 4, 40, 40), layout="BTCHW")


def test_taps_that_are_not_there(make_ours):
    in0, in1 = pair(1, 40, 40)
    changed = make_ours()
    changed.net.slice2[0] = torch.nn.AvgPool2d(3, 2)
    for fn in (make_ours(), make_ours(grad_in_forward=True), changed):
        for taps in (0, 6, -1):
            fn.L = taps
            for call in (lambda fn=fn: fn(in0.requires_grad_(), in1), lambda fn=fn: fn.features(in0)):
                with raises(ValueError, "L", "from 1 to 5", str(taps)):
                    call()


@pytest.mark.parametrize("change", ("flat", "scalar", "fewer", "numbers"))
def test_linear_weights_of_other_shapes(module, change):
    """Not those either that would broadcast."""
    own = [weight.detach().clone() for weight in module._linear_weights()]
    given = {
        "flat": [weight.flatten() for weight in own],
        "scalar": [torch.zeros(()) for _ in own],
        "fewer": own[:-1],
        "numbers": [0.0] * len(own),
    }[change]
    shape = "float" if change == "numbers" else str(list(given[0].shape))
    with raises(ValueError, "linear_weights", "[1, 64, 1, 1]", shape):
        module.set_linear_weights(given)
    assert all(torch.equal(a, b) for a, b in zip(module._linear_weights(), own, strict=True))


F, W = torch.zeros(2, 5, 4, 4), torch.ones(5)
BAD_HEADS = {
    "tensor for a list": ((F, [F], [W]), TypeError, ("feats0", "list", "Tensor")),
    "no list": (([F], None, [W]), TypeError, ("feats1", "list", "NoneType")),
    "no tensor": (([F], [F.numpy()], [W]), TypeError, ("feats1[0]", "tensor", "ndarray")),
    "list for a weight": (([F], [F], [[1.0] * 5]), TypeError, ("weights[0]", "tensor", "list")),
    "no layers": (([], [], []), ValueError, ("feats0", "feats1", "0")),
    "layers differ": (([F, F], [F], [W, W]), ValueError, ("feats0", "feats1", "2", "1")),
    "weights too few": (([F, F], [F, F], [W]), ValueError, ("weights", "2", "1")),
    "rank": (([F[0]], [F], [W]), ValueError, ("feats0[0]", "[N, C, H, W]", "[5, 4, 4]")),
    "rank of the other": (([F, F], [F, F[0]], [W, W]), ValueError, ("feats1[1]", "[N, C, H, W]", "[5, 4, 4]")),
    "integer": (([F.int()], [F.int()], [W]), TypeError, ("floating", "torch.int32")),
    "types differ": (([F], [F.half()], [W]), TypeError, ("feats1[0]", "torch.float16", "torch.float32")),
    "types of layers differ": (([F, F.double()], [F, F], [W, W]), TypeError, ("feats0[1]", "torch.float64")),
    "devices differ": (([F], [F.to("meta")], [W]), ValueError, ("feats1[0]", "meta", "cpu")),
    "channels differ": (([F], [F[:, :4]], [W]), ValueError, ("feats0[0]", "feats1[0]", "[2, 5, 4, 4]", "[2, 4, 4, 4]")),
    "sizes differ": (([F], [F[..., :3]], [W]), ValueError, ("feats0[0]", "feats1[0]", "[2, 5, 4, 3]")),
    "batches differ": (([F], [F.repeat(2, 1, 1, 1)], [W]), ValueError, ("feats0[0]", "[2, 5, 4, 4]", "[4, 5, 4, 4]")),
    "batches of layers differ": (([F, F[:1]], [F, F[:1]], [W, W]), ValueError, ("batch", "[2, 1]")),
    "weights too long": (([F], [F], [torch.ones(6)]), ValueError, ("weights[0]", "5", "[6]")),
    "weights elsewhere": (([F], [F], [W.to("meta")]), ValueError, ("weights[0]", "meta", "cpu")),
}


@pytest.mark.parametrize("function", (functional.lpips_head, functional.lpips_head_maps))
@pytest.mark.parametrize("arguments,kind,words", BAD_HEADS.values(), ids=BAD_HEADS)
def test_bad_features(function, arguments, kind, words):
    with raises(kind, *words):
        function(*arguments)


def test_bad_backend_of_the_head():
    with raises(ValueError, "backend", "'gpu'", "'auto'", "'cpu'"):
        functional.lpips_head([F], [F], [W], backend="gpu")
    with pytest.raises((ValueError, RuntimeError), match="cuda"):
        functional.lpips_head([F], [F], [W], backend="cuda")


@pytest.mark.parametrize(("capability", "best"), (((7, 5), "triton"), ((8, 0), "cuda")))
def test_a_gpu_that_the_cuda_kernels_are_not_for(monkeypatch, capability, best):
    backends.is_from_ampere_on.cache_clear()
    monkeypatch.setattr(backends, "_reasons", lambda: dict.fromkeys(backends.BACKENDS))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 5)
    assert backends.choose("auto", device) == best
    if best != "cuda":
        with pytest.raises(RuntimeError, match=r"'cuda' cannot be used: .* compute capability 8\.0 or newer"):
            backends.choose("cuda", device)
    backends.is_from_ampere_on.cache_clear()
