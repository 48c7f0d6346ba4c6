"""The trunk as a module: its parameters, its precision, and the choice of the layers that compute its taps."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lpips_fast._checks import some
from lpips_fast._torch_state import in_torch_func, is_autocast_enabled, is_recorded, plain_torch_only, to_dtype
from lpips_fast.trunk import cpu_trunk, gpu_layers, processor
from lpips_fast.trunk.cpu_trunk import CpuTensors
from lpips_fast.trunk.execute import FrozenTrunk, run
from lpips_fast.trunk.nets import NETS, Net
from lpips_fast.trunk.program import Affine, Conv, Expand, Plan, Pool, Setting
from lpips_fast.trunk.stock import call_slices, describe, is_as_described


class Precision(NamedTuple):
    dtype: torch.dtype | None  # None: autocast's type, or without autocast the parameters'
    tf32: bool | None  # whether CUDA's float32 convolutions may use TF32; None: as torch's flags say


PRECISIONS = {
    "inherit": Precision(None, None),
    "float32": Precision(torch.float32, False),
    "tf32": Precision(torch.float32, True),
    "bfloat16": Precision(torch.bfloat16, None),
    "float16": Precision(torch.float16, None),
}


class Trunk(nn.Module):
    """The convolutional part of an ImageNet classifier, cut at its taps.

    Parameters are named as in `lpips`: `slice{k}.{i}.*`, k from 1, i torchvision's index. As long as the layers are as
    the constructor made them, `execute.run` computes their results without calling them. Changed layers are called.

    Args:
        net: a key of NETS.
        precision: a key of PRECISIONS.
        cpu_conv: how the CPU computes 3x3 and 5x5 convolutions in float32: 'winograd', 'direct', or 'auto' for the
            faster one.
        trainable: whether the parameters' `requires_grad` counts; if not, they never get a gradient.
    """

    def __init__(self, net: str, precision: str = "inherit", cpu_conv: str = "auto", *, trainable: bool = True) -> None:
        super().__init__()
        self.spec = NETS[net]
        self.precision = precision
        self.cpu_conv = cpu_conv
        self.trainable = trainable
        features = _random_features(self.spec)
        self.N_slices = len(self.spec.channels)
        for k in range(self.N_slices):
            layers = range(self.spec.cuts[k], self.spec.cuts[k + 1])
            slice_ = nn.Sequential(OrderedDict((str(i), features[i]) for i in layers))
            self.add_module(f"slice{k + 1}", slice_)
        self.plan = _plan(self.slices)
        self._made = tuple(describe(slice_) for slice_ in self.slices)
        self._kept: dict[Hashable, tuple[object, list[Tensor]]] = {}  # made from the parameters by `_once`

    @property
    def slices(self) -> list[nn.Sequential]:
        return [getattr(self, f"slice{k + 1}") for k in range(self.N_slices)]

    def load_features(self, state: Mapping[str, Tensor]) -> None:
        """Loads tensors named as in torchvision's `features` ('0.weight', ...).

        Raises:
            ValueError: a tensor is missing, has another shape, or is not one of this trunk's. Tensors of layers after
                the last tap are ignored.
        """
        taken = {}
        for slice_ in self.slices:
            for name, parameter in slice_.named_parameters():
                if name not in state:
                    has = some(state)
                    raise ValueError(f"trunk weights lack {name!r} ({self.spec.model}); they have {has}")
                if state[name].shape != parameter.shape:
                    raise ValueError(
                        f"trunk weights {name!r} must have shape {list(parameter.shape)} ({self.spec.model}), "
                        f"got {list(state[name].shape)}"
                    )
                taken[name] = parameter
        extra = [name for name in state if name not in taken and not _after(name, self.spec.cuts[-1])]
        if extra:
            raise ValueError(f"trunk weights have names that are not {self.spec.model}'s: {some(extra)}")
        with torch.no_grad():
            for name, parameter in taken.items():
                parameter.copy_(state[name])

    def forward(
        self, *images: Tensor, affine: Affine = (None, None), n_taps: int | None = None, stock: bool | None = None
    ) -> tuple[Tensor, ...]:
        """The taps of images x [N, C, H, W], or of (x - shift) / scale.

        Two batches of images go through as one, the second after the first.

        Args:
            affine: shift and scale.
            n_taps: how many of the first taps to compute.
            stock: what `is_stock` says, if the caller has asked it already.

        Returns:
            A namedtuple of [N, C_k, H_k, W_k]; a tuple if there are fewer than all taps.
        """
        if not (self.is_stock() if stock is None else stock):
            dtype, tf32 = PRECISIONS[self.precision]
            taps = call_slices(self.slices[:n_taps], images, affine, dtype, tf32, frozen=not self.trainable)
            return self._named(taps)
        setting = self.setting(images[0].device, n_taps)
        if not setting.frozen:
            parameters = self._parameters_in_order()
            tensors = _converted(parameters if self.trainable else _detached(parameters), setting)
            taps, _ = run(setting, images, affine, tensors)
        elif torch.is_grad_enabled() and any(image.requires_grad for image in images):
            tensors = self.tensors(setting, gradient=True)
            cpu_tensors = tensors if setting.layers == "cpu" else None
            n = len(images)
            taps = FrozenTrunk.apply(setting, cpu_tensors, n, n, *affine, *images, *tensors)[: setting.n_taps]
        else:
            taps, _ = run(setting, images, affine, self.tensors(setting, gradient=False))
        return self._named(taps)

    def pair(self, a: Tensor, b: Tensor, *, affine: Affine, n_taps: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The taps of two batches of images, which go through as one where they can; the layers must be stock.

        On the CPU they can even if one of them needs a gradient. Small images gain by that: the filters, which take
        longer to read than the images, are read once.
        """
        wanted = [torch.is_grad_enabled() and image.requires_grad for image in (a, b)]
        if wanted[0] == wanted[1]:
            taps_of_both = self(a, b, affine=affine, n_taps=n_taps, stock=True)
            parts = [t.split_with_sizes((a.shape[0], b.shape[0])) for t in taps_of_both]
            return [tap for tap, _ in parts], [tap for _, tap in parts]
        setting = self.setting(a.device, n_taps)
        if setting.layers != "cpu" or in_torch_func():
            taps_a, taps_b = (self(image, affine=affine, n_taps=n_taps, stock=True) for image in (a, b))
            return taps_a, taps_b
        tensors = self.tensors(setting, gradient=True)
        images = (a, b) if wanted[0] else (b, a)
        outputs = FrozenTrunk.apply(setting, tensors, 2, 1, *affine, *images, *tensors)
        taps, others = outputs[:n_taps], outputs[-n_taps:]
        return (taps, others) if wanted[0] else (others, taps)

    def _named(self, taps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.spec.outputs(*taps) if len(taps) == self.N_slices else tuple(taps)

    def is_stock(self) -> bool:
        """Whether the layers are as the constructor made them, without hooks."""
        return all(map(is_as_described, self.slices, self._made))

    # torch.compile takes the answer as a constant of the call that it traces.
    is_stock._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def is_frozen(self) -> bool:
        """Whether no parameter gets a gradient."""
        return not self.trainable or not any(p.requires_grad for p in self._parameters_in_order())

    def setting(self, device: torch.device, n_taps: int | None = None) -> Setting:
        """How to compute the first taps of images on `device`, with taps of the type of `precision`."""
        own = next(p.dtype for layer in self._layers() for p in _parameters_of(layer))
        dtype, tf32 = PRECISIONS[self.precision]
        if dtype is None:
            dtype = torch.get_autocast_dtype(device.type) if is_autocast_enabled(device) else own
        taps_as = None
        # A recorded program may run on another processor.
        if device.type == "cpu" and not processor.computes_in(dtype) and not is_recorded():
            dtype, taps_as = torch.float32, dtype
        plan = self.plan if n_taps is None or n_taps == self.N_slices else _until_tap(self.plan, n_taps)
        # Channels-last is faster, except for float64 on the CPU and for CUDA's convolutions in full float32.
        contiguous = dtype == torch.float64 or (device.type == "cuda" and tf32 is False)
        layout = torch.contiguous_format if contiguous else torch.channels_last
        if plain_torch_only():
            return Setting(plan, dtype, torch.contiguous_format, tf32, taps_as=taps_as)  # vmap supports no other layout
        setting = Setting(plan, dtype, layout, tf32, self.is_frozen(), taps_as=taps_as)
        if not setting.frozen:
            return setting
        if device.type == "cuda":
            if layout == torch.channels_last and gpu_layers.available(device):
                return setting._replace(layers="gpu", cudnn_relu=gpu_layers.cudnn_applies_relu(dtype, tf32))
        elif device.type == "cpu" and dtype == torch.float32 and not torch.compiler.is_compiling():
            scales_in_float32 = own == torch.float32 or taps_as is not None
            if scales_in_float32 and self.cpu_conv != "direct" and cpu_trunk.available():
                return setting._replace(layers="cpu", always_winograd=self.cpu_conv == "winograd")
        return setting

    def tensors(self, setting: Setting, gradient: bool) -> list[Tensor]:
        """The frozen trunk's tensors as the setting's layers take them, made at the first call and kept.

        Args:
            gradient: whether `run_backward` follows. On a GPU it takes further filters, which come after the others.
        """
        parameters = self._parameters_in_order()
        gradient_filters = gradient and setting.layers == "gpu"

        def make() -> list[Tensor]:
            if setting.layers == "cpu":
                return CpuTensors(to_dtype(p, setting.dtype) for p in _detached(parameters))
            if gradient_filters:
                tensors = self.tensors(setting, gradient=False)
                return tensors + _in_layout(gpu_layers.gradient_filters(tensors), setting.layout)
            tensors = _converted(_detached(parameters), setting)
            merged = gpu_layers.merged_filters(self.plan, tensors) if setting.layers == "gpu" else []
            return tensors + _in_layout(merged, setting.layout)

        return self._once((setting.layers, setting.dtype, setting.layout, gradient_filters), parameters, make)

    def _layers(self) -> list[Any]:
        # This looks the layers up at each call: a replica of nn.DataParallel has its own.
        return [layer for slice_ in self.slices for layer in slice_._modules.values()]

    def _parameters_in_order(self) -> list[Tensor]:
        tensors: list[Tensor] = []
        for layer in self._layers():
            tensors += _parameters_of(layer)
        return tensors

    def _once(self, key: Hashable, parameters: Sequence[Tensor], make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What `make` returns, kept until a parameter changes. A change in place through `.data` goes unnoticed."""
        if torch.compiler.is_compiling():
            return make()
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return make()  # the tensors have no values and are good for this call alone
        state = [(id(p), p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        kept = self._kept.get(key)
        if kept is None or kept[0] != state:
            # This call may be under inference_mode, the next may be a training step, which refuses inference tensors.
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


def _parameters_of(layer: Any) -> Sequence[Tensor]:
    """The parameters of a convolution, or of a Fire's three, from the modules' dictionaries, which is faster."""
    if isinstance(layer, nn.Conv2d):
        own = layer._parameters
        pair = (own["weight"], own["bias"]) if "weight" in own else (layer.weight, layer.bias)  # a replica's
        return [p for p in pair if p is not None]
    tensors: list[Tensor] = []
    for part in layer._modules.values():
        tensors += _parameters_of(part)
    return tensors


def _detached(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters without their graph: a frozen trunk gives them no gradient, whatever anybody sets later."""
    return [p.detach() for p in parameters]


def _converted(parameters: Iterable[Tensor], setting: Setting) -> list[Tensor]:
    return _in_layout([to_dtype(p, setting.dtype) for p in parameters], setting.layout)


def _in_layout(tensors: Iterable[Tensor], layout: torch.memory_format) -> list[Tensor]:
    """The tensors, with weights in this layout."""
    if layout == torch.contiguous_format:
        return [t.contiguous() for t in tensors]
    # Always a copy: to torch, a 1x1 filter with NCHW's strides is channels-last already, but cuDNN goes by strides.
    return [torch.empty_like(t, memory_format=layout).copy_(t) if t.dim() == 4 else t for t in tensors]


def _plan(slices: Sequence[nn.Sequential]) -> Plan:
    """The steps of the slices' layers. Tensors are numbered in the order of `parameters()`."""
    own = itertools.count(step=2)
    merged = itertools.count(2 * sum(isinstance(m, nn.Conv2d) for slice_ in slices for m in slice_.modules()), step=2)
    steps: list[Conv | Expand] = []

    def conv(layer: Any, tap: bool) -> Conv:
        geometry = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        return Conv(next(own), *geometry, tap, keeps_nan=not any(step.tap for step in steps))

    for slice_ in slices:
        layers: list[Any] = [layer for layer in slice_ if not isinstance(layer, nn.ReLU)]  # a step includes its ReLU
        for layer in layers:
            tap = layer is layers[-1]
            if isinstance(layer, nn.Conv2d):
                steps.append(conv(layer, tap))
            elif isinstance(layer, nn.MaxPool2d):
                pool: Any = layer  # torch types its sizes as int or pair
                steps[-1] = steps[-1]._replace(pool=Pool(pool.kernel_size, pool.stride, pool.ceil_mode))
            else:
                steps.append(conv(layer.squeeze, False))
                conv1x1, conv3x3 = conv(layer.expand1x1, False), conv(layer.expand3x3, False)
                steps.append(Expand(conv1x1, conv3x3, next(merged), tap))
    return tuple(steps)


def _until_tap(plan: Plan, n_taps: int) -> Plan:
    """The steps up to the n-th tap."""
    ends = [number for number, step in enumerate(plan) if step.tap]
    end = ends[n_taps - 1]
    return *plan[:end], plan[end]._replace(pool=None)


def _after(name: str, cut: int) -> bool:
    index = name.split(".")[0]
    return index.isdecimal() and len(index) < 3 and int(index) >= cut


def _random_features(net: Net) -> nn.Sequential:
    """The layers with random weights, drawn as torchvision draws them."""
    with torch.device("meta"):
        features = nn.Sequential(*net.layers())
    features = features.to_empty(device=torch.get_default_device())
    for conv in features.modules():
        if isinstance(conv, nn.Conv2d):
            conv.reset_parameters()
            net.init(conv)
    return features
