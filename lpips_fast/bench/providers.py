"""Providers of LPIPS: the packages people use today, and this package with its options.

Each provider is made from an LPIPS and gets its weights. It gives a function from two images [N, 3, H, W] in [-1, 1] to
N distances. Other packages are set up as their users do it, except for the source of their weights.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
from torch import Tensor, nn

from lpips_fast.bench.cases import plain_taps
from lpips_fast.functional import lpips_head
from lpips_fast.lpips import LPIPS
from lpips_fast.trunk.nets import NETS

Distance = Callable[[Tensor, Tensor], Tensor]
Sample = tuple[Tensor, Tensor]


class Provider(NamedTuple):
    """A way to compute LPIPS.

    `make` takes an LPIPS and a pair of images. It uses the weights of the LPIPS, and computes on the images' device.
    """

    make: Callable[[LPIPS, Sample], Distance]
    precision: str = "inherit"  # of the trunk; 'inherit' is the precision that torch's flags give float32
    package: str | None = None  # the package that it needs, other than this one
    devices: tuple[str, ...] = ("cpu", "cuda")  # on which it works
    default: tuple[str, ...] = ("cpu", "cuda")  # on which it is measured without being named
    nets: tuple[str, ...] = tuple(NETS)
    modes: tuple[str, ...] = ("forward", "step")
    wrapper: str | None = None  # 'compile' for torch.compile, 'graph' for a CUDA graph

    def distance(self, weights: LPIPS, in0: Tensor, in1: Tensor, gradient: bool) -> Distance:
        """The function for images of this shape, with or without a gradient to the first."""
        sample = in0.detach().requires_grad_(gradient), in1
        with torch.set_grad_enabled(gradient):
            made = self.make(weights, sample)
            if self.wrapper == "compile":
                return torch.compile(made, dynamic=False)
            return graphed(made, sample) if self.wrapper == "graph" else made

    def missing(self) -> str | None:
        """Why it cannot be measured in this environment, or None."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None

    def precision_on(self, device: torch.device) -> str:
        return inherited_precision(device) if self.precision == "inherit" else self.precision


def inherited_precision(device: torch.device) -> str:
    """The precision that torch's flags give float32 convolutions."""
    flags = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # not in torch's stubs
    return "tf32" if device.type == "cuda" and flags.fp32_precision == "tf32" else "float32"


def lpips_eager(weights: LPIPS, sample: Sample) -> Distance:
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
        module = lpips.LPIPS(net=weights.pnet_type, pretrained=False, pnet_rand=True, verbose=False)
    module.to_empty(device="cpu").load_state_dict(weights.state_dict())
    return module.to(sample[0].device)


def lpips_in_bfloat16(weights: LPIPS, sample: Sample) -> Distance:
    """With autocast and channels-last, which users are advised to try beside torch.compile."""
    module = cast(nn.Module, lpips_eager(weights, sample)).to(memory_format=torch.channels_last)

    def distance(in0: Tensor, in1: Tensor) -> Tensor:
        with torch.autocast(in0.device.type, torch.bfloat16):
            return module(*(x.contiguous(memory_format=torch.channels_last) for x in (in0, in1)))

    return distance


def torchmetrics_metric(weights: LPIPS, sample: Sample) -> Distance:
    from torchmetrics.functional.image import lpips as functional
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with mock.patch.object(functional, "_get_tv_model_features", return_value=_features(weights)):
        metric = LearnedPerceptualImagePatchSimilarity(weights.pnet_type, reduction="none")  # type: ignore[arg-type]
    metric.to(sample[0].device)

    def distance(in0: Tensor, in1: Tensor) -> Tensor:
        found = metric(in0, in1)
        metric.reset()  # else it keeps the scores of every call, with their graphs
        return found

    return distance


def piq_loss(weights: LPIPS, sample: Sample) -> Distance:
    from piq import perceptual

    linear = [weight.detach() for weight in weights.lins.parameters()]
    trunk = nn.Module()
    trunk.features = _features(weights)
    shift, scale = (buffer.flatten().tolist() for buffer in (weights.scaling_layer.shift, weights.scaling_layer.scale))
    with (
        mock.patch.object(torch.hub, "load_state_dict_from_url", return_value=linear),
        mock.patch.object(perceptual, "vgg16", return_value=trunk),
    ):
        # piq takes images in [0, 1]. With this mean and deviation it takes images in [-1, 1].
        return perceptual.LPIPS(reduction="none", mean=shift, std=scale).to(sample[0].device)


def plain_torch(weights: LPIPS, sample: Sample) -> Distance:
    """The computation of `lpips` in plain torch, layer by layer, in the type of the weights and images: the oracle."""
    module = copied(weights, sample[0])

    def distance(in0: Tensor, in1: Tensor) -> Tensor:
        taps0, taps1 = (plain_taps(module, x) for x in (in0, in1))
        return lpips_head(taps0, taps1, list(module.lins.parameters()), backend="reference").sum(dim=1)

    return distance


def copied(weights: LPIPS, to: torch.device | Tensor, **options: Any) -> LPIPS:
    """An LPIPS with the same weights, on a device, or on the device and in the type of images.

    It does not check the range of images. Only the first calls do that, and what is timed is what every call does.
    """
    trunk = {name.partition(".")[2]: tensor for name, tensor in weights.net.state_dict().items()}
    return LPIPS(net=weights.pnet_type, trunk_weights=trunk, check_range=False, **options).to(to)


def ours(**options: Any) -> Callable[[LPIPS, Sample], Distance]:
    """Makes this package's LPIPS with options of its constructor."""
    return lambda weights, sample: copied(weights, sample[0], **options)


def graphed(fn: Distance, sample: Sample) -> Distance:
    """The function captured as a CUDA graph; as two if there is a gradient."""
    static = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in sample)
    captured = torch.cuda.make_graphed_callables(lambda in0, in1: fn(in0, in1), static)

    def distance(in0: Tensor, in1: Tensor) -> Tensor:
        assert fn is not None  # fn keeps the weights alive: the graph has only their addresses
        return cast(Tensor, captured(in0, in1))

    return distance


def _features(weights: LPIPS) -> nn.Module:
    """torchvision's `features` with these weights. Layers after the last tap keep arbitrary weights."""
    import torchvision

    with torch.device("meta"):  # a classifier, most of VGG, would take seconds to initialise
        features = getattr(torchvision.models, weights.net.spec.model)(weights=None).features
    features.to_empty(device="cpu")
    trunk = {name.partition(".")[2]: tensor for name, tensor in weights.net.state_dict().items()}
    features.load_state_dict({name: trunk.get(name, tensor) for name, tensor in features.state_dict().items()})
    return features


BASELINE = "lpips 0.1.4"
CPU, GPU = ("cpu",), ("cuda",)
STEP = ("step",)

_BFLOAT16 = {"precision": "bfloat16"}
_IN_FORWARD = {"grad_in_forward": True}
_CHUNKS = {"grad_in_forward": True, "chunk_size": "auto"}

PROVIDERS: Mapping[str, Provider] = {
    BASELINE: Provider(lpips_eager, package="lpips"),
    "lpips 0.1.4, torch.compile": Provider(lpips_eager, package="lpips", wrapper="compile"),
    "lpips 0.1.4, bfloat16 autocast, channels-last, torch.compile": Provider(
        lpips_in_bfloat16, "bfloat16", package="lpips", wrapper="compile"
    ),
    "torchmetrics": Provider(torchmetrics_metric, package="torchmetrics"),
    "piq": Provider(piq_loss, package="piq", nets=("vgg",)),
    "plain torch": Provider(plain_torch, default=GPU),
    "ours": Provider(ours()),
    "ours, direct convolution": Provider(ours(cpu_conv="direct"), devices=CPU, default=CPU),
    "ours, gradient in forward": Provider(ours(**_IN_FORWARD), modes=STEP),
    "ours, gradient in forward, chunks": Provider(ours(**_CHUNKS)),
    "ours, torch.compile": Provider(ours(), wrapper="compile"),
    "ours, CUDA graph": Provider(ours(), wrapper="graph", devices=GPU, default=GPU),
    "ours, float32": Provider(ours(precision="float32"), "float32", devices=GPU, default=GPU),
    # The gradient of a mean over a batch needs a scaled loss in float16.
    "ours, float16": Provider(ours(precision="float16"), "float16", default=GPU, modes=("forward",)),
    "ours, bfloat16": Provider(ours(**_BFLOAT16), "bfloat16"),
    "ours, bfloat16, gradient in forward": Provider(
        ours(**_BFLOAT16, **_IN_FORWARD), "bfloat16", default=GPU, modes=STEP
    ),
    "ours, bfloat16, gradient in forward, chunks": Provider(ours(**_BFLOAT16, **_CHUNKS), "bfloat16", default=GPU),
    "ours, bfloat16, torch.compile": Provider(ours(**_BFLOAT16), "bfloat16", wrapper="compile"),
    "ours, bfloat16, CUDA graph": Provider(ours(**_BFLOAT16), "bfloat16", wrapper="graph", devices=GPU, default=GPU),
}

# A failure of one of these is no failure of this package: they are other packages, and torch alone.
PEERS = frozenset(name for name in PROVIDERS if not name.startswith("ours")) | {"torch", "torch.compile"}
