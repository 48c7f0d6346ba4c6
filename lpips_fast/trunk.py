"""VGG16, AlexNet and SqueezeNet 1.1 as trunks: where they are tapped, under which names, in which precision."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import cpu_layers, gpu_layers, weights, winograd
from .frozen import frozen_trunk, run
from .networks import LAYERS
from .plan import Affine, Conv, Fire, Plan, Pool, Setting, is_autocast_enabled
from .reference import to_dtype
from .transforms import plain_torch_only

AlexnetOutputs = namedtuple("AlexnetOutputs", ["relu1", "relu2", "relu3", "relu4", "relu5"])
VggOutputs = namedtuple("VggOutputs", ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"])
SqueezeOutputs = namedtuple("SqueezeOutputs", ["relu1", "relu2", "relu3", "relu4", "relu5", "relu6", "relu7"])


class Spec(NamedTuple):
    """A trunk: slice k runs the layers [cuts[k], cuts[k+1]) of torchvision's `features` and ends in tap k."""

    model: str  # a key of LAYERS, the function in torchvision.models
    cuts: tuple[int, ...]
    channels: tuple[int, ...]
    min_size: int  # the smallest image, in pixels, from which every tap has at least one pixel
    outputs: type  # the namedtuple of the taps


SPECS = {
    "alex": Spec(
        "alexnet",
        (0, 2, 5, 8, 10, 12),
        (64, 192, 384, 256, 256),
        31,
        AlexnetOutputs,
    ),
    "vgg": Spec(
        "vgg16",
        (0, 4, 9, 16, 23, 30),
        (64, 128, 256, 512, 512),
        16,
        VggOutputs,
    ),
    "squeeze": Spec(
        "squeezenet1_1",
        (0, 2, 5, 8, 10, 11, 12, 13),
        (64, 128, 256, 384, 384, 512, 512),
        17,
        SqueezeOutputs,
    ),
}


class Precision(NamedTuple):
    dtype: torch.dtype | None  # None: autocast's, or else the parameters'
    tf32: bool | None  # whether CUDA's float32 convolutions may use TF32; None: as torch's flags have it


PRECISIONS = {
    "inherit": Precision(None, None),
    "float32": Precision(torch.float32, False),
    "tf32": Precision(torch.float32, True),
    "bfloat16": Precision(torch.bfloat16, None),
    "float16": Precision(torch.float16, None),
}


class Trunk(nn.Module):
    """The convolutional part of an ImageNet classifier, cut at its taps.

    Parameters are named as in `lpips`: `slice{k}.{i}.*`, k from 1, i torchvision's index. Its layers are only where
    they live; `frozen.run` goes through them.

    Args:
        net: a key of SPECS.
        precision: a key of PRECISIONS.
        cpu_conv: how the CPU does 3x3 convolutions in float32: 'winograd', 'direct', or 'auto' for what is faster.
    """

    def __init__(self, net: str, precision: str = "inherit", cpu_conv: str = "auto") -> None:
        super().__init__()
        self.spec = SPECS[net]
        self.precision = precision
        self.cpu_conv = cpu_conv
        features = _random_features(self.spec)
        self.N_slices = len(self.spec.channels)
        for k in range(self.N_slices):
            layers = range(self.spec.cuts[k], self.spec.cuts[k + 1])
            slice_ = nn.Sequential(OrderedDict((str(i), features[i]) for i in layers))
            self.add_module(f"slice{k + 1}", slice_)
        self.plan = _plan(self.slices)
        self._kept: dict[object, tuple[object, Any]] = {}  # made from the parameters: see _once

    @property
    def slices(self) -> list[nn.Sequential]:
        return [getattr(self, f"slice{k + 1}") for k in range(self.N_slices)]

    def load_features(self, state: Mapping[str, Tensor]) -> None:
        """Loads tensors named as in torchvision's `features` ('0.weight', ...).

        Raises:
            ValueError: a tensor is missing, of the wrong shape, or not one of this trunk's. Those of layers after the
                last tap are left out.
        """
        taken = {}
        for slice_ in self.slices:
            for name, parameter in slice_.named_parameters():
                if name not in state:
                    has = weights.some(state)
                    raise ValueError(f"trunk weights lack {name!r} ({self.spec.model}); they have {has}")
                if state[name].shape != parameter.shape:
                    raise ValueError(
                        f"trunk weights {name!r} must have shape {list(parameter.shape)} ({self.spec.model}), "
                        f"got {list(state[name].shape)}"
                    )
                taken[name] = parameter
        extra = [name for name in state if name not in taken and not _after(name, self.spec.cuts[-1])]
        if extra:
            raise ValueError(f"trunk weights have names that are not {self.spec.model}'s: {weights.some(extra)}")
        with torch.no_grad():
            for name, parameter in taken.items():
                parameter.copy_(state[name])

    def forward(self, *images: Tensor, affine: Affine = (None, None)) -> tuple[Tensor, ...]:
        """The taps, a namedtuple of [N, C_k, H_k, W_k], of images x [N, 3, H, W], or of (x - shift) / scale.

        Two batches of images go through as one, the second after the first.
        """
        setting = self.setting(images[0].device)
        if setting.frozen:
            taps = frozen_trunk(setting, images, affine, self.tensors(setting))
        else:
            taps, _ = run(setting, images, affine, _converted(self._parameters_in_order(), setting))
        return self.spec.outputs(*taps)

    def is_frozen(self) -> bool:
        return not any(p.requires_grad for p in self._parameters_in_order())

    def setting(self, device: torch.device) -> Setting:
        """How to compute: as `precision` says; the inherited type is autocast's, or else the parameters'."""
        dtype, tf32 = PRECISIONS[self.precision]
        if dtype is None:
            autocast = is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device.type) if autocast else self._parameters_in_order()[0].dtype
        # Channels-last is faster but for float64 on the CPU and CUDA's convolutions in full float32.
        contiguous = dtype == torch.float64 or (device.type == "cuda" and tf32 is False)
        layout = torch.contiguous_format if contiguous else torch.channels_last
        if plain_torch_only():
            return Setting(self.plan, dtype, torch.contiguous_format, tf32)  # vmap knows no other layout
        setting = Setting(self.plan, dtype, layout, tf32, self.is_frozen())
        if not setting.frozen:
            return setting
        if device.type == "cuda":
            return setting._replace(triton=layout == torch.channels_last and gpu_layers.available())
        own = not torch.compiler.is_compiling() and device.type == "cpu"
        own = own and dtype == torch.float32 == self._parameters_in_order()[0].dtype
        if own and self.cpu_conv != "direct" and winograd.available():
            always = self.cpu_conv == "winograd"
            filters = self._once("filters", lambda: cpu_layers.Filters(self._parameters_in_order(), always))
            return setting._replace(filters=filters)
        return setting

    def tensors(self, setting: Setting) -> list[Tensor]:
        """The frozen trunk's tensors as the setting has them, made at the first call and kept."""
        if torch.compiler.is_compiling():
            return _converted(self._parameters_in_order(), setting)
        if setting.filters is not None:
            return self._parameters_in_order()
        key = setting.dtype, setting.layout, setting.triton
        return self._once(key, lambda: _converted(self._parameters_in_order(), setting))

    def _parameters_in_order(self) -> list[Tensor]:
        # Looked up each time: a replica of nn.DataParallel has layers of its own.
        convolutions = (layer for layer in self.modules() if isinstance(layer, nn.Conv2d))
        return [p for conv in convolutions for p in (conv.weight, conv.bias) if p is not None]

    def _once(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` gives, kept until a parameter changes; a change in place through `.data` leaves no trace."""
        parameters = self._parameters_in_order()
        state = [(id(p), p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        kept = self._kept.get(key)
        if kept is None or kept[0] != state:
            # Not inference tensors, though this call may be under inference_mode: the next may be a training step.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept[key] = state, make()
        return kept[1]

    def _apply(self, fn: Any, recurse: bool = True) -> Trunk:
        self._kept.clear()
        return super()._apply(fn, recurse)

    def _replicate_for_data_parallel(self) -> Trunk:
        replica = super()._replicate_for_data_parallel()
        replica._kept = {}
        return replica

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


def _converted(parameters: Iterable[Tensor], setting: Setting) -> list[Tensor]:
    tensors = [to_dtype(p, setting.dtype) for p in parameters]
    if setting.triton:
        tensors[0] = gpu_layers.padded(tensors[0])
    return [_in_layout(t, setting.layout) if t.dim() == 4 else t for t in tensors]


def _in_layout(weight: Tensor, layout: torch.memory_format) -> Tensor:
    if layout == torch.contiguous_format:
        return weight.contiguous()
    # By a copy: a 1x1 filter counts as channels-last already, with the strides of NCHW, by which cuDNN goes.
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=layout).copy_(weight)


def _plan(slices: Sequence[nn.Sequential]) -> Plan:
    """The steps of the slices' layers; tensors are numbered in the order of `parameters()`."""
    index = 0

    def conv(layer: Any, tap: bool) -> Conv:
        nonlocal index
        index += 2
        return Conv(index - 2, layer.stride[0], layer.padding[0], tap)

    steps: list[Conv | Pool | Fire] = []
    for slice_ in slices:
        layers: list[Any] = [layer for layer in slice_ if not isinstance(layer, nn.ReLU)]  # a step has its ReLU in it
        for layer in layers:
            tap = layer is layers[-1]
            if isinstance(layer, nn.Conv2d):
                steps.append(conv(layer, tap))
            elif isinstance(layer, nn.MaxPool2d):
                pool: Any = layer  # torch types its sizes as int or pair
                steps.append(Pool(pool.kernel_size, pool.stride, pool.ceil_mode))
            else:
                steps.append(
                    Fire(conv(layer.squeeze, False), conv(layer.expand1x1, False), conv(layer.expand3x3, False), tap)
                )
    return tuple(steps)


def _after(name: str, cut: int) -> bool:
    index = name.split(".")[0]
    return index.isdecimal() and len(index) < 3 and int(index) >= cut


def _random_features(spec: Spec) -> nn.Sequential:
    """The layers, initialised as torchvision does."""
    with torch.device("meta"):
        features = nn.Sequential(*LAYERS[spec.model]())
    features = features.to_empty(device=torch.get_default_device())
    for conv in features.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        conv.reset_parameters()
        if spec.model == "vgg16":
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        elif spec.model == "squeezenet1_1":
            nn.init.kaiming_uniform_(conv.weight)
        if spec.model != "alexnet" and conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return features
