"""VGG16, AlexNet and SqueezeNet 1.1 as trunks: where they are tapped, under which names, in which precision."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lpips_fast._checks import some
from lpips_fast._torch_state import is_autocast_enabled, plain_torch_only, to_dtype, without_autocast
from lpips_fast.trunk import convolution, cpu_layers, gpu_layers, winograd
from lpips_fast.trunk.execute import frozen_trunk, needs_gradient, run
from lpips_fast.trunk.nets import NETS, Net
from lpips_fast.trunk.program import Affine, Conv, Fire, Plan, Pool, Setting
from lpips_fast.trunk.stock import call_frozen, describe, is_as_described


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

    Parameters are named as in `lpips`: `slice{k}.{i}.*`, k from 1, i torchvision's index. `frozen.run` computes what
    the layers would, without calling them, as long as they are the stock ones; changed layers are called.

    Args:
        net: a key of NETS.
        precision: a key of PRECISIONS.
        cpu_conv: how the CPU does 3x3 convolutions in float32: 'winograd', 'direct', or 'auto' for what is faster.
        trainable: whether the parameters' `requires_grad` counts; without it they never get a gradient.
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
        self._gpu_plan = gpu_layers.without_fires(self.plan)
        self._made = tuple(describe(slice_) for slice_ in self.slices)
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
            stock: what `is_stock` says, where the caller has asked.

        Returns:
            A namedtuple of [N, C_k, H_k, W_k], or, of fewer than all taps, a tuple.
        """
        if not (self.is_stock() if stock is None else stock):
            taps = self._by_layers(images, affine, n_taps)
        else:
            parameters = self._parameters_in_order()
            setting = self._setting(parameters, images[0].device, n_taps)
            if setting.frozen:
                tensors = self._tensors(parameters, setting, needs_gradient(images))
                taps = frozen_trunk(setting, images, affine, tensors)
            else:
                if not self.trainable:
                    parameters = _detached(parameters)
                taps, _ = run(setting, images, affine, _converted(parameters, setting))
        return self.spec.outputs(*taps) if len(taps) == self.N_slices else tuple(taps)

    def is_stock(self) -> bool:
        """Whether the layers are those of the constructor, as they were, without hooks."""
        return all(map(is_as_described, self.slices, self._made))

    # torch.compile takes it for a constant of the call that it traces.
    is_stock._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _by_layers(self, images: Sequence[Tensor], affine: Affine, n_taps: int | None) -> list[Tensor]:
        """The taps by calling the slices, whatever is in them, with autograd's memory."""
        shift, scale = affine
        x = images[0] if len(images) == 1 else torch.cat(list(images))
        if shift is not None and scale is not None:
            x = (x - shift) / scale
        dtype, tf32 = PRECISIONS[self.precision]
        own = next((p.dtype for p in self.parameters()), x.dtype)
        if dtype is None:
            precision: contextlib.AbstractContextManager = contextlib.nullcontext()
        elif dtype == torch.float32:
            precision = without_autocast(x.device)
        else:
            precision = torch.autocast(x.device.type, dtype)
        taps = []
        with precision, convolution.tf32_for_all(tf32, x.device):
            x = to_dtype(x, own)
            for slice_ in self.slices[:n_taps]:
                x = slice_(x) if self.trainable else call_frozen(slice_, x)
                taps.append(x)
        return taps

    def is_frozen(self) -> bool:
        return not self.trainable or not any(p.requires_grad for p in self._parameters_in_order())

    def setting(self, device: torch.device, n_taps: int | None = None) -> Setting:
        """How to compute: as `precision` says; the inherited type is autocast's, or else the parameters'."""
        return self._setting(self._parameters_in_order(), device, n_taps)

    def tensors(self, setting: Setting, gradient: bool) -> list[Tensor]:
        """The frozen trunk's tensors as the setting has them, made at the first call and kept.

        Args:
            gradient: whether there is to be a gradient, for which a GPU has further filters, after the others.
        """
        return self._tensors(self._parameters_in_order(), setting, gradient)

    def _setting(self, parameters: list[Tensor], device: torch.device, n_taps: int | None) -> Setting:
        own = parameters[0].dtype
        dtype, tf32 = PRECISIONS[self.precision]
        if dtype is None:
            dtype = torch.get_autocast_dtype(device.type) if is_autocast_enabled(device) else own
        plan = self._up_to(self.plan, n_taps)
        # Channels-last is faster but for float64 on the CPU and CUDA's convolutions in full float32.
        contiguous = dtype == torch.float64 or (device.type == "cuda" and tf32 is False)
        layout = torch.contiguous_format if contiguous else torch.channels_last
        if plain_torch_only():
            return Setting(plan, dtype, torch.contiguous_format, tf32)  # vmap knows no other layout
        frozen = not self.trainable or not any(p.requires_grad for p in parameters)
        setting = Setting(plan, dtype, layout, tf32, frozen)
        if not frozen:
            return setting
        if device.type == "cuda":
            fuses = layout == torch.channels_last and gpu_layers.available(device)
            return gpu_layers.fused(setting, self._up_to(self._gpu_plan, n_taps)) if fuses else setting
        own_kernels = device.type == "cpu" and dtype == torch.float32 == own and not torch.compiler.is_compiling()
        if own_kernels and self.cpu_conv != "direct" and winograd.available():
            always = self.cpu_conv == "winograd"
            filters = self._once("filters", parameters, lambda: cpu_layers.Filters(_detached(parameters), always))
            return setting._replace(filters=filters)
        return setting

    def _up_to(self, plan: Plan, n_taps: int | None) -> Plan:
        return plan if n_taps is None or n_taps == self.N_slices else _until_tap(plan, n_taps)

    def _tensors(self, parameters: list[Tensor], setting: Setting, gradient: bool) -> list[Tensor]:
        if setting.filters is not None:
            return _detached(parameters)

        def once(key: object, make: Callable[[], list[Tensor]]) -> list[Tensor]:
            return make() if torch.compiler.is_compiling() else self._once(key, parameters, make)

        def converted() -> list[Tensor]:
            tensors = _converted(_detached(parameters), setting)
            merged = gpu_layers.merged_filters(self.plan, tensors) if setting.triton else []
            return tensors + _in_layout(merged, setting.layout)

        key = setting.dtype, setting.layout, setting.triton

        def with_gradient_filters() -> list[Tensor]:
            tensors = once(key, converted)
            return tensors + _in_layout(gpu_layers.gradient_filters(tensors), setting.layout)

        if setting.triton and gradient:
            return once((*key, "gradient"), with_gradient_filters)
        return once(key, converted)

    def _parameters_in_order(self) -> list[Tensor]:
        # Looked up each time: a replica of nn.DataParallel has layers of its own.
        tensors: list[Tensor] = []
        for slice_ in self.slices:
            for layer in slice_._modules.values():
                _add_parameters(layer, tensors)
        return tensors

    def _once(self, key: object, parameters: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What `make` gives, kept until a parameter changes; a change in place through `.data` leaves no trace."""
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return make()  # of tensors without values, for this call alone
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._gpu_plan = gpu_layers.without_fires(self.plan)  # older pickles have none


def _add_parameters(layer: Any, tensors: list[Tensor]) -> None:
    """Those of a convolution or of the three of a Fire; from the modules' dictionaries, as in stock.py."""
    if isinstance(layer, nn.Conv2d):
        own = layer._parameters
        pair = (own["weight"], own["bias"]) if "weight" in own else (layer.weight, layer.bias)  # those of a replica
        tensors += [p for p in pair if p is not None]
    elif layer._modules:
        for part in layer._modules.values():
            _add_parameters(part, tensors)


def _detached(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Without the graph that `requires_grad` would begin, though somebody set it: the trunk is frozen."""
    return [p.detach() if p.requires_grad else p for p in parameters]


def _converted(parameters: Iterable[Tensor], setting: Setting) -> list[Tensor]:
    return _in_layout([to_dtype(p, setting.dtype) for p in parameters], setting.layout)


def _in_layout(tensors: Iterable[Tensor], layout: torch.memory_format) -> list[Tensor]:
    """Tensors whose weights are in this layout."""
    if layout == torch.contiguous_format:
        return [t.contiguous() for t in tensors]
    # By a copy: a 1x1 filter counts as channels-last already, with the strides of NCHW, by which cuDNN goes.
    return [torch.empty_like(t, memory_format=layout).copy_(t) if t.dim() == 4 else t for t in tensors]


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


def _until_tap(plan: Plan, n_taps: int) -> Plan:
    """The steps up to the n-th tap."""
    ends = [number for number, step in enumerate(plan) if not isinstance(step, Pool) and step.tap]
    return plan[: ends[n_taps - 1] + 1]


def _after(name: str, cut: int) -> bool:
    index = name.split(".")[0]
    return index.isdecimal() and len(index) < 3 and int(index) >= cut


def _random_features(net: Net) -> nn.Sequential:
    """The layers, initialised as torchvision does."""
    with torch.device("meta"):
        features = nn.Sequential(*net.layers())
    features = features.to_empty(device=torch.get_default_device())
    for conv in features.modules():
        if isinstance(conv, nn.Conv2d):
            conv.reset_parameters()
            net.init(conv)
    return features
