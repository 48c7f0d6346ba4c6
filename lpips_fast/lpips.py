"""LPIPS as a module: images to a distance.

    LPIPS(x, y) = sum_l mean_p sum_c w_lc (a_lc(x) - a_lc(y))^2

a_l: the trunk's features at tap l of the scaled image, divided by their norm over channels; w_l: linear weights learnt
from human judgements; p: pixels. (Zhang et al., CVPR 2018, arXiv:1801.03924.) Drop-in for `lpips.LPIPS` 0.1.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lpips_fast import functional, pairwise
from lpips_fast._checks import check_choice, check_flags, check_path
from lpips_fast._torch_state import (
    as_plain_tensor,
    in_torch_func,
    is_autocast_enabled,
    is_recorded,
    plain_torch_only,
    to_dtype,
)
from lpips_fast.distance.grad_in_forward import Job, distance_with_gradient
from lpips_fast.distance.lins import Layers, Lins, name_twice, saved_tensors
from lpips_fast.distance.pixel_weights import shares, weighted_mean
from lpips_fast.distance.ranges import RangeCheck
from lpips_fast.distance.videos import flatten_videos
from lpips_fast.head import backends
from lpips_fast.head.reference import accumulation_dtype, normalize_channels
from lpips_fast.pairwise import Images
from lpips_fast.trunk import cpu_layers
from lpips_fast.trunk.module import PRECISIONS, Trunk
from lpips_fast.trunk.nets import ALIASES, NETS, SCALE, SHIFT
from lpips_fast.trunk.program import Affine, Conv
from lpips_fast.trunk.stock import Description, call_frozen, describe, is_as_described
from lpips_fast.weights.formats import read_weights
from lpips_fast.weights.published import VERSIONS, published_linear_weights, read_trunk_weights

# How many pixels the pairs have that go through at a time, with chunk_size='auto', and on the CPU in any case: there it
# is faster, for the smaller the tensors, the less memory is fresh from the system at each layer. Where a graph keeps
# memory anyway these are pixels of the first layer's output.
_AUTO_PIXELS = 1 << 19
_CPU_PIXELS = 1 << 17


class Features(NamedTuple):
    """What `LPIPS.features` gives: an image's features, to be compared with again and again."""

    taps: tuple[Tensor, ...]
    net: str
    version: str
    size: tuple[int, int]  # height and width of the image


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity: the lower, the more alike two images look to people.

    Unlike `lpips.LPIPS` it is, in the default eval_mode, frozen and in eval mode whatever a parent module's
    `.train()` says, prints nothing, and has a finite gradient everywhere.

    Args:
        pretrained: linear weights learnt from human judgements (else random).
        net: the trunk, 'alex', 'vgg' (also 'vgg16') or 'squeeze'.
        version: of the linear weights, '0.1' or '0.0' (which also leaves out the scaling of the input).
        lpips: whether to weight channels; False sums them.
        spatial: whether to return maps instead of their mean.
        pnet_rand: a randomly initialised trunk instead of ImageNet's.
        pnet_tune: whether the trunk's weights get gradients; needs eval_mode=False.
        use_dropout: dropout before the linear weights, in training (eval_mode=False) only.
        model_path: a file of linear weights to use instead of the published ones, or of a whole model, trunk and all,
            as `lpips` saves them or as `load_any` knows them (.pth, read without running code, or .safetensors).
        eval_mode: frozen and always in eval. With False the linear weights get gradients and `.train()` works.
        verbose: whether a download shows a progress bar.
        backend: of the head: 'auto', 'reference', 'cpu', 'cuda' or 'triton'; `lpips_fast.backends()` lists them.
        precision: of the trunk: 'inherit' (autocast's type or else the parameters', TF32 as torch's flags have it, as
            in `lpips`), 'float32' (without TF32), 'tf32', 'bfloat16' or 'float16'. The head always accumulates in
            float32 (float64 for float64).
        grad_in_forward: compute the gradient to the images in the forward and keep nothing else, so that memory does
            not grow with the activations. Not for maps (an error), double backward (an error), retPerLayer and
            trainable weights (these take the ordinary path).
        chunk_size: how many pairs go through at a time, or 'auto' for as many as have 2^19 pixels (8 of 256 x 256), on
            the CPU 2^17 (docs/training.md), also without being asked. It bounds memory where no graph is kept: without
            gradients, or with grad_in_forward.
        cpu_conv: how the CPU does the trunk's 3x3 convolutions in float32: 'winograd', with fewer multiplications,
            'direct', or 'auto' for what is faster at their size.
        trunk_weights: the trunk's weights, a file or a state_dict with torchvision's names, instead of torchvision's
            from its cache ($TORCH_HOME) or the internet.
        persistent: whether the weights are part of the state_dict, as in `lpips`. With False it has none of them, and
            loading neither misses them nor takes any that are there.
        check_range: whether to warn, once, where images are plainly in another range than they should be: of 0 to 255,
            in [0, 1] without `normalize`, in [-1, 1] with it. Only the first calls look (distance/ranges.py).

    To leave out the last taps, set the attribute `L` to the number of taps to use. Layers that were replaced, hooked or
    set otherwise after construction, in the trunk, the scaling or the linear layers, are called as `lpips` calls them,
    in plain torch; docs/training.md says how to take images of other channels so.

    Raises:
        ValueError: an unknown net, version, backend, precision or cpu_conv, a chunk_size below 1, options that exclude
            each other; a weights file that does not fit, to the key.
        RuntimeError: the trunk's weights are neither cached nor reachable.
    """

    _RANGE, _FROM_BYTES = "[-1, 1]", "/ 127.5 - 1"  # of images, as errors tell it
    _SAVES_LINS = True  # whether the state_dict has the linear layers twice, also as lins.*
    norm: tuple[float, bool] = 1e-10, False  # of features over channels: eps, and whether it is inside the root

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | PathLike[str] | None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        backend: str = "auto",
        precision: str = "inherit",
        grad_in_forward: bool = False,
        chunk_size: int | str | None = None,
        cpu_conv: str = "auto",
        trunk_weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        persistent: bool = True,
        check_range: bool = True,
        **unknown: object,
    ) -> None:
        super().__init__()
        _check_unknown(unknown)
        check_flags(
            pretrained=pretrained,
            lpips=lpips,
            spatial=spatial,
            pnet_rand=pnet_rand,
            pnet_tune=pnet_tune,
            use_dropout=use_dropout,
            eval_mode=eval_mode,
            verbose=verbose,
            grad_in_forward=grad_in_forward,
            persistent=persistent,
            check_range=check_range,
        )
        check_choice("net", net, ALIASES)
        check_choice("version", version, VERSIONS)
        check_choice("precision", precision, PRECISIONS)
        check_choice("cpu_conv", cpu_conv, cpu_layers.CHOICES)
        backends.check_name(backend)
        if pnet_tune and eval_mode:
            raise ValueError("pnet_tune=True trains the trunk, which eval_mode=True keeps frozen: pass eval_mode=False")
        if grad_in_forward and spatial:
            raise ValueError("grad_in_forward=True has one number a pair to differentiate, spatial=True has a map")
        if chunk_size not in (None, "auto") and (type(chunk_size) is not int or chunk_size < 1):  # True is an int, too
            raise ValueError(f"chunk_size must be None, 'auto' or a number of pairs from 1, got {chunk_size!r}")
        spec = NETS[ALIASES[net]]
        self.pnet_type = net
        self.pnet_tune = pnet_tune
        self.pnet_rand = pnet_rand
        self.spatial = spatial
        self.lpips = lpips
        self.version = version
        self.eval_mode = eval_mode
        self.backend = backend
        self.grad_in_forward = grad_in_forward
        self.chunk_size = chunk_size
        self.chns = list(spec.channels)
        self.L = len(self.chns)

        self.scaling_layer = ScalingLayer()
        self.net = Trunk(ALIASES[net], precision, cpu_conv, trainable=not eval_mode)
        given = None
        if model_path is not None:
            check_path("model_path", model_path)
            given = read_weights(model_path, ALIASES[net])
            if lpips and given.linear is None:
                raise ValueError(f"model_path {model_path} has no linear weights: pass lpips=False")
        if given is not None and given.trunk is not None:
            if trunk_weights is not None:
                raise ValueError(f"model_path {model_path} has a trunk, too: leave out trunk_weights")
            self.net.load_features(given.trunk)
        elif not pnet_rand or trunk_weights is not None:
            state = read_trunk_weights(ALIASES[net], trunk_weights, progress=verbose)
            try:
                self.net.load_features(state)
            except ValueError as error:
                source = "" if trunk_weights is None or isinstance(trunk_weights, Mapping) else f"{trunk_weights}: "
                raise ValueError(f"{source}{error}") from error
        self.net.requires_grad_(pnet_tune)
        self._lins_made: list[Description] = []
        if lpips:
            for k, channels in enumerate(self.chns):
                self.add_module(f"lin{k}", NetLinLayer(channels, use_dropout=use_dropout))
            self.lins.requires_grad_(not eval_mode)
            self._lins_made = [describe(lin) for lin in self._lins()]
            if given is not None and given.linear is not None:
                self.set_linear_weights(given.linear)
            elif pretrained:
                self.set_linear_weights(published_linear_weights(ALIASES[net], version))
        if not persistent:
            self.register_state_dict_post_hook(_without_own_keys)
            self.register_load_state_dict_pre_hook(_with_own_tensors)
        if lpips and self._SAVES_LINS:
            name_twice(self)  # after the hooks above, which give both names
        self._ranges = RangeCheck() if check_range else None
        if eval_mode:
            self.eval()

    @property
    def lins(self) -> nn.ModuleList:
        """The linear layers `lin0`, `lin1`, ... as a list; to set one of either name sets both.

        They are registered under the names `lin{k}` alone: torch.func.functional_call does not put back what it swaps
        in a module that is registered twice.
        """
        layers = Layers(self)
        if not layers:
            raise AttributeError("lins are there with lpips=True only")
        lins = Lins()
        lins.__dict__["_modules"] = layers
        return lins

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "lins":
            super().__setattr__(name, value)
            return
        if len(value) != len(self.chns):
            raise ValueError(f"lins must be {len(self.chns)} layers, got {len(value)}")
        for k, lin in enumerate(value):
            setattr(self, f"lin{k}", lin)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # What was pickled when the layers were registered twice called those of lins; taming's was a list.
        lins: Any = self._modules.pop("lins", None) or self.__dict__.pop("lins", None)
        if lins is not None:
            for k, lin in enumerate(lins):
                setattr(self, f"lin{k}", lin)
            if self._SAVES_LINS:
                name_twice(self)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As in every module; with remove_duplicate=False the linear layers come under both names, as in `lpips`.

        functional_call and FSDP1 learn from it that both name the same tensors. torch.compile cannot trace that.
        """
        yield from super().named_modules(memo, prefix, remove_duplicate)
        if not remove_duplicate and self._SAVES_LINS and hasattr(self, "lins") and not torch.compiler.is_compiling():
            yield from self.lins.named_modules(memo, f"{prefix}.lins" if prefix else "lins", remove_duplicate)

    def set_linear_weights(self, linear_weights: Sequence[Tensor]) -> None:
        """Copies linear weights, a [1, C_k, 1, 1] a layer, into the module's.

        Raises:
            ValueError: other shapes, or another number of layers.
        """
        layers = self.linear_weights() or []
        expected, given = ([_shape(weight) for weight in weights] for weights in (layers, linear_weights))
        if given != expected:
            raise ValueError(f"linear_weights must be of shapes {', '.join(expected)}, got {', '.join(given)}")
        with torch.no_grad():
            for own, weight in zip(layers, linear_weights, strict=True):
                own.copy_(weight)

    def train(self, mode: bool = True) -> LPIPS:
        """As in every module, but without effect in eval_mode: a parent's `.train()` must not make the loss noisy."""
        return super().train(mode and not self.eval_mode)

    def requires_grad_(self, requires_grad: bool = True) -> LPIPS:
        """As in every module, but in eval_mode the parameters stay frozen: pass eval_mode=False to train them.

        A parent's `requires_grad_` sets the parameters' flags without asking; they have no effect in eval_mode either.
        """
        return super().requires_grad_(requires_grad and not self.eval_mode)

    def forward(
        self,
        in0: Tensor,
        in1: Tensor | Features,
        retPerLayer: bool = False,
        normalize: bool = False,
        weight: Tensor | None = None,  # not keyword-only: torch.onnx.export(dynamo=False) gives defaults by position
        frames: int | None = None,
        layout: str | None = None,
        generator: torch.Generator | None = None,
        reduction: str = "none",
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """The distance of each pair of images, or of each pair of frames of two videos.

        Args:
            in0, in1: [N, 3, H, W] in [-1, 1], RGB; a batch of 1 is compared with each of the other's. [3, H, W] is a
                batch of 1. One channel is taken as grayscale and repeated. Sides of at least 31 (alex), 17 (squeeze)
                or 16 pixels (vgg). Of any floating type each, also two types: the scaling is done in the wider one of
                image and module, and each gradient has its image's type; float64 needs a float64 module. in1 may be
                what `features` returned. Or videos [B, 3, T, H, W].
            retPerLayer: whether to return each layer's part, too.
            normalize: the images are in [0, 1] and are to be mapped to [-1, 1].
            weight: of the pixels in the mean over them, not negative, [N, 1, H, W] (N may be 1 or left out; for videos
                [B, 1, T, H, W]): a mask, or how much each matters. It is averaged down to each tap. All 0 gives 0.
            frames: how many frames of a video to compare, picked at random for each clip, in their order.
            layout: of videos and their weights, 'BCTHW' or 'BTCHW'. By default BCTHW; but where both axes could be
                channels, [B, 1, 3, H, W] and [B, 3, 3, H, W], it must be said. [B, 3, 1, H, W] is one RGB frame a clip.
            generator: of random numbers, for `frames`.
            reduction: 'none', or 'mean' or 'sum' over everything.

        Returns:
            [N, 1, 1, 1] in float32 (float64 for float64), or [N, 1, H, W] when `spatial`, each layer's map enlarged
            bilinearly to the images' size; for videos [B, T], or [B, T, 1, H, W]; a number when reduced. With
            retPerLayer a pair of it and a list of such tensors, one a layer.

        Raises:
            TypeError, ValueError: images that are not floating point, or shapes, types, devices or options that do
                not fit together, or features of another net, version, size or device.
        """
        check_choice("reduction", reduction, ("none", "mean", "sum"))
        check_flags(retPerLayer=retPerLayer, normalize=normalize)
        self._check_taps()
        clips = None
        if isinstance(in0, Tensor) and in0.dim() == 5:
            channels = (1, 3) if self.is_stock() else None
            in0, in1, weight, clips = flatten_videos(in0, in1, weight, frames, layout, generator, channels)
        elif frames is not None or layout is not None:
            given = f"frames={frames}" if frames is not None else f"layout={layout!r}"
            raise ValueError(f"{given} needs videos [B, C, T, H, W], got in0 {_shape(in0)}")
        x0 = self.checked_image("in0", in0)
        x1 = self._checked_features(in1, x0) if isinstance(in1, Features) else self.checked_image("in1", in1)
        check_pair(x0, x1)
        self._look_at_range((x0, x1) if isinstance(x1, Tensor) else (x0,), normalize)
        if weight is not None:
            if self.spatial:
                raise ValueError("weight= is for the mean over pixels, which spatial=True does not take")
            weight = _checked_pixel_weight(weight, max(_batch(x0), _batch(x1)), x0)
            weight = weight.to(accumulation_dtype(self._feature_dtype(x0)))
        stock = self.is_stock()
        parts: list[Tensor] = []
        if stock and self._gradient_in_forward(x0, x1, weight, retPerLayer):
            value = self._value_with_gradient(x0, x1, weight, self._affine(normalize))
        else:
            if isinstance(x1, Features) and x1.taps[0].is_inference() and self._keeps_graph(x0, x1, weight):
                raise ValueError(
                    "in1 holds features made under torch.inference_mode, which no graph can keep: make them under "
                    "torch.no_grad, or use grad_in_forward=True"
                )
            if stock:
                value, parts = self._value_and_parts(x0, x1, weight, self._affine(normalize), retPerLayer)
            else:
                parts = self._reduced(self._maps_by_modules(x0, x1, normalize), weight, x0.shape[2:])
                value = sum(parts[1:], parts[0])
        return _returned(value, parts, retPerLayer, clips, reduction)

    def features(self, x: Tensor, normalize: bool = False) -> Features:
        """The features of images [N, 3, H, W] in [-1, 1] (or [0, 1] with `normalize`), to be handed to forward as in1.

        For a target that is compared with many times, and so goes through the trunk once. They hold a graph only if
        x requires a gradient.
        """
        check_flags(normalize=normalize)
        self._check_taps()
        x = self.checked_image("x", x)
        self._look_at_range((x,), normalize)
        if self.is_stock():
            taps = self._taps(x, affine=self._affine(normalize))
        else:
            taps = self._taps_by_modules(x, normalize)
        return Features(taps, ALIASES[self.pnet_type], self.version, (x.shape[2], x.shape[3]))

    def embed(self, x: Images, normalize: bool = False) -> Tensor:
        """Vectors [N, D] of images [N, 3, H, W] whose squared distances are LPIPS; as `lpips_fast.pairwise.embed`."""
        return pairwise.embed(self, x, normalize=normalize)

    def pairwise(
        self, x: Images, y: Images | None = None, *, block: int | None = None, normalize: bool = False
    ) -> Tensor:
        """The distance of each image of x to each of y, or of x, [N, M]; as `lpips_fast.pairwise.pairwise`."""
        return pairwise.pairwise(self, x, y, block=block, normalize=normalize)

    def _affine(self, normalize: bool) -> Affine:
        """Shift and scale of the images before the trunk, (x - shift) / scale; None where they go in as they are."""
        shift, scale = self.scaling_layer.shift, self.scaling_layer.scale
        if self.version == "0.0":  # whose release forgot the scaling
            if not normalize:
                return None, None
            shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
        return ((shift + 1) / 2, scale / 2) if normalize else (shift, scale)

    def checked_image(self, name: str, image: Tensor) -> Tensor:
        """The image, grayscale expanded to three channels."""
        if not isinstance(image, Tensor):
            raise TypeError(
                f"{name} must be a tensor"
                + (", features go in as in1" if isinstance(image, Features) else f", got {type(image).__name__}")
            )
        if image.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {image.layout}")
        image = as_plain_tensor(image)
        given = image.shape
        if image.dim() in (2, 3):
            image = image[(None,) * (4 - image.dim())]
        if image.dim() != 4 or (image.shape[1] not in (1, 3) and self.is_stock()):
            raise ValueError(
                f"{name} must be [N, 3, H, W], [N, 1, H, W] grayscale, or one image without N, got {list(given)}"
            )
        if not image.is_floating_point():
            raise TypeError(
                f"{name} must be floating point, in {self._RANGE}, got {image.dtype}; "
                f"for 0 to 255: {name} {self._FROM_BYTES}"
            )
        own = self.own_tensor()
        if image.device != own.device:
            raise ValueError(f"{name} is on {image.device}, LPIPS on {own.device}: move one with .to()")
        if image.dtype == torch.float64 != own.dtype:
            converts = getattr(self.net, "precision", "inherit") != "inherit" or is_autocast_enabled(image.device)
            if not converts:
                raise TypeError(f"{name} is {image.dtype}, LPIPS {own.dtype}: convert one with .to(), or use autocast")
        smallest = NETS[ALIASES[self.pnet_type]].min_size
        if min(image.shape[2:]) < smallest and self.is_stock():
            raise ValueError(
                f"{name} must have sides of at least {smallest} pixels for net {self.pnet_type!r}, "
                f"got {image.shape[2]} x {image.shape[3]}"
            )
        # Layers that are called take what they take; lpips's scaling makes three channels of gray.
        return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 and self.is_stock() else image

    def _look_at_range(self, images: Sequence[Tensor], normalize: bool) -> None:
        """Warns, once, where images are plainly in another range, as `check_range` asks."""
        if self._ranges is not None and not torch.compiler.is_compiling():
            self._ranges.look(images, normalize)

    def _check_taps(self) -> None:
        if not 1 <= self.L <= len(self.chns):
            raise ValueError(f"L, the number of taps to use, must be from 1 to {len(self.chns)}, got {self.L}")

    def own_tensor(self) -> Tensor:
        """A tensor on the module's device and of its type."""
        for module in self.net.modules():  # faster than parameters()
            for parameter in module._parameters.values():
                if parameter is not None:
                    return parameter
        return next(itertools.chain(self.buffers(), self._replicated()))

    def _replicated(self) -> Iterator[Tensor]:
        """The tensors of a replica of nn.DataParallel, which are neither parameters nor buffers."""
        for module in self.modules():
            yield from (value for value in module.__dict__.values() if isinstance(value, Tensor))

    def _feature_dtype(self, x: Tensor) -> torch.dtype:
        return self.net.setting(x.device).dtype if isinstance(self.net, Trunk) else torch.float32

    def is_stock(self) -> bool:
        """Whether trunk, scaling and linear layers are as the constructor made them, so that none has to be called."""
        net = self.net
        return (
            isinstance(net, Trunk)
            and not (net.trainable and self.eval_mode)  # a trunk that was put in, which heeds its flags
            and "forward" not in net.__dict__
            and net.is_stock()
            and is_as_described(self.scaling_layer, _SCALING)
            and self._has_stock_lins()
        )

    # torch.compile takes it for a constant of the call that it traces.
    is_stock._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @property
    def values_per_pixel(self) -> int:
        """How many values the taps have for each pixel of an image, rounded up."""
        return NETS[ALIASES[self.pnet_type]].values_per_pixel

    def is_squared_distance(self) -> bool:
        """Whether it is a squared distance of vectors, as `embed` makes them."""
        return self._has_stock_lins()

    def _has_stock_lins(self) -> bool:
        return not self.lpips or all(map(is_as_described, self._lins(), self._lins_made))

    def _checked_features(self, features: Features, x0: Tensor) -> Features:
        for what, theirs, ours in (
            ("net", features.net, ALIASES[self.pnet_type]),
            ("taps", f"1 to {len(features.taps)}", f"1 to {self.L}"),
            ("version", features.version, self.version),
            ("size", features.size, (x0.shape[2], x0.shape[3])),
            ("device", features.taps[0].device, x0.device),
            ("type", features.taps[0].dtype, self._feature_dtype(x0)),
        ):
            if what == "type" and not self.is_stock():
                continue  # layers that are called give what they give
            if theirs != ours:
                raise ValueError(f"in1 holds features of {what} {theirs}, needed here are those of {what} {ours}")
        return features

    def _taps(self, *images: Tensor, affine: Affine) -> tuple[Tensor, ...]:
        return self.net(*images, affine=affine, n_taps=self.L, stock=True)

    def _taps_of_pair(
        self, x0: Tensor, x1: Tensor | Features, affine: Affine
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        if isinstance(x1, Features):
            return self._taps(x0, affine=affine), x1.taps
        if x0.requires_grad != x1.requires_grad:
            return self._taps(x0, affine=affine), self._taps(x1, affine=affine)
        taps = self._taps(x0, x1, affine=affine)
        pairs = [t.split_with_sizes((x0.shape[0], x1.shape[0])) for t in taps]
        return [t0 for t0, _ in pairs], [t1 for _, t1 in pairs]

    def _taps_by_modules(self, x: Tensor, normalize: bool) -> tuple[Tensor, ...]:
        """The taps of images by calling the modules as `lpips` does, whatever they are now."""
        x = 2 * x - 1 if normalize else x
        taps = self._called(self.net, x if self.version == "0.0" else self._called(self.scaling_layer, x))
        return tuple(taps[k] for k in range(self.L))

    def _called(self, module: nn.Module, x: Tensor) -> Any:
        freezes_itself = isinstance(module, Trunk) and not module.trainable and "forward" not in module.__dict__
        return module(x) if freezes_itself or not self.eval_mode else call_frozen(module, x)

    def _maps_by_modules(self, x0: Tensor, x1: Tensor | Features, normalize: bool) -> list[Tensor]:
        """Each layer's map of distances, [N, 1, H_l, W_l], likewise."""
        taps0 = self._taps_by_modules(x0, normalize)
        taps1 = x1.taps if isinstance(x1, Features) else self._taps_by_modules(x1, normalize)
        weights = None if self.lpips else self.linear_weights()  # piq's are buffers
        lins = self._lins() if self.lpips else []
        maps = []
        for k, (f0, f1) in enumerate(zip(taps0, taps1, strict=True)):
            a, b = (normalize_channels(f, *self.norm) for f in (f0, f1))
            squares = (a - b) ** 2
            if self.lpips:
                lin = lins[k]
                own = next((p.dtype for p in lin.parameters()), squares.dtype)
                maps.append(to_dtype(self._called(lin, to_dtype(squares, own)), squares.dtype))
            else:
                if weights is not None:
                    squares = weights[k].to(squares.dtype) * squares
                maps.append(squares.sum(dim=1, keepdim=True))
        return maps

    def _value_and_parts(
        self, x0: Tensor, x1: Tensor | Features, weight: Tensor | None, affine: Affine, per_layer: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The value, [N, 1, 1, 1] or, when spatial, [N, 1, H, W], and, if asked for, each layer's part of it."""
        n = max(_batch(x0), _batch(x1))
        chunk = self._pairs_at_a_time(x0, self._keeps_graph(x0, x1, weight))
        if chunk is None or n <= chunk:
            return self._of_chunk(x0, x1, weight, affine, per_layer)
        if _batch(x1) == 1 and isinstance(x1, Tensor):  # one image for all: its taps, once
            x1 = Features(self._taps(x1, affine=affine), "", "", (0, 0))
        elif _batch(x0) == 1 and isinstance(x1, Tensor):
            x0, x1 = x1, Features(self._taps(x0, affine=affine), "", "", (0, 0))
        chunks = []
        for start in range(0, n, chunk):
            rows = slice(start, start + chunk)
            mask = None if weight is None else weight[rows]
            chunks.append(self._of_chunk(x0[rows], _rows(x1, rows), mask, affine, per_layer))
        values, parts = zip(*chunks, strict=True)
        return torch.cat(values), [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _of_chunk(
        self, x0: Tensor, x1: Tensor | Features, weight: Tensor | None, affine: Affine, per_layer: bool
    ) -> tuple[Tensor, list[Tensor]]:
        taps0, taps1 = self._taps_of_pair(x0, x1, affine)
        if self.spatial or weight is not None or self._drops_out():
            parts = self._reduced(self._maps(taps0, taps1), weight, x0.shape[2:])
            return sum(parts[1:], parts[0]), parts if per_layer else []
        distances = self._head(functional.lpips_head, taps0, taps1)
        parts = [d.view(-1, 1, 1, 1) for d in distances.unbind(dim=1)] if per_layer else []
        return distances.sum(dim=1).view(-1, 1, 1, 1), parts

    def _reduced(self, maps: Sequence[Tensor], weight: Tensor | None, size: Sequence[int]) -> list[Tensor]:
        """The maps enlarged to the images' size when spatial, else their means, [N, 1, 1, 1]."""
        if self.spatial:
            return [upsample(m, size) for m in maps]
        if weight is None:
            return [spatial_average(m) for m in maps]
        distances = weighted_mean(maps, shares(weight, [(m.shape[2], m.shape[3]) for m in maps]))
        return [d.view(-1, 1, 1, 1) for d in distances.unbind(dim=1)]

    def _head(self, function: Callable[..., Any], taps0: Sequence[Tensor], taps1: Sequence[Tensor]) -> Any:
        eps, inside_sqrt = self.norm
        weights = self.linear_weights()
        return function(taps0, taps1, weights, eps=eps, eps_inside_sqrt=inside_sqrt, backend=self.backend)

    def _maps(self, taps0: Sequence[Tensor], taps1: Sequence[Tensor]) -> list[Tensor]:
        """Each layer's map of distances, [N, 1, H_l, W_l]."""
        if not self._drops_out():
            return self._head(functional.lpips_head_maps, taps0, taps1)
        # Dropout falls on the squared differences, which the fused head never has in memory.
        maps = []
        for f0, f1, lin, weight in zip(taps0, taps1, self._lins(), self.linear_weights() or (), strict=True):
            a, b = (normalize_channels(f, *self.norm) for f in (f0, f1))
            maps.append((weight.to(a.dtype) * lin.model[0]((a - b) ** 2)).sum(dim=1, keepdim=True))
        return maps

    def _gradient_in_forward(self, x0: Tensor, x1: Tensor | Features, weight: Tensor | None, retPerLayer: bool) -> bool:
        """Whether to take that path: it is asked for, a gradient will be, and nothing but the images needs one."""
        if not self.grad_in_forward or self.spatial or retPerLayer or not torch.is_grad_enabled():
            return False
        if in_torch_func() or plain_torch_only() or self.norm[1]:  # whose gradient that path has not
            return False
        others = [*(x1.taps if isinstance(x1, Features) else ()), *self._trained()]
        if weight is not None:
            others.append(weight)
        images_need = x0.requires_grad or (isinstance(x1, Tensor) and x1.requires_grad)
        return images_need and not any(t.requires_grad for t in others)

    def _value_with_gradient(self, x0: Tensor, x1: Tensor | Features, weight: Tensor | None, affine: Affine) -> Tensor:
        if not x0.requires_grad:
            assert isinstance(x1, Tensor)
            x0, x1 = x1, x0  # the distance is symmetric
        n = max(_batch(x0), _batch(x1))
        need1 = isinstance(x1, Tensor) and x1.requires_grad
        setting = self.net.setting(x0.device, self.L)
        linear = self.linear_weights() or [torch.ones(c, device=x0.device) for c in self.chns[: self.L]]
        job = Job(setting, backends.choose(self.backend, x0.device), self._pairs_at_a_time(x0, True), need1)
        acc = accumulation_dtype(setting.dtype)
        value = distance_with_gradient(
            job,
            x0.expand(n, -1, -1, -1),
            x1.taps if isinstance(x1, Features) else x1.expand(n if need1 else -1, -1, -1, -1),
            weight,
            affine,
            self.net.tensors(setting, gradient=True),
            [w.detach().reshape(-1).to(acc) for w in linear],
        )
        return value.view(-1, 1, 1, 1)

    def _keeps_graph(self, x0: Tensor, x1: Tensor | Features, weight: Tensor | None) -> bool:
        tensors = [x0, *(x1.taps if isinstance(x1, Features) else (x1,)), *self._trained()]
        if weight is not None:
            tensors.append(weight)
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)

    def _pairs_at_a_time(self, x: Tensor, keeps_graph: bool) -> int | None:
        if is_recorded():
            return None  # the loop would be recorded for this batch size alone
        if isinstance(self.chunk_size, int):
            return self.chunk_size
        pixels = x.shape[2] * x.shape[3]
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            stride = cast(Conv, self.net.plan[0]).stride if keeps_graph else 1
            return max(1, _CPU_PIXELS * stride**2 // pixels)
        return None if self.chunk_size is None else max(1, _AUTO_PIXELS // pixels)

    def _trained(self) -> Iterable[Tensor]:
        """The parameters that may get gradients: none in eval_mode, whatever a parent did to their flags."""
        return () if self.eval_mode else self.parameters()

    def _lins(self) -> list[NetLinLayer]:
        """The linear layers of the taps that are used."""
        return [getattr(self, f"lin{k}") for k in range(len(self.chns))[: self.L]]

    def linear_weights(self) -> list[Tensor] | None:
        if not self.lpips:
            return None
        # NetLinLayer has no `weight`, as in lpips: loops over modules that have one then ask for `kernel_size`, too.
        layers = [next(reversed(lin.model._modules.values())) for lin in self._lins()]  # faster than lin.model[-1]
        weights = [cast(Tensor, cast(nn.Conv2d, layer).weight) for layer in layers]
        return [w.detach() if w.requires_grad else w for w in weights] if self.eval_mode else weights

    def _drops_out(self) -> bool:
        return self.lpips and self.training and self._lins()[0].use_dropout


def _returned(
    value: Tensor, parts: list[Tensor], ret_per_layer: bool, clips: tuple[int, int] | None, reduction: str
) -> Tensor | tuple[Tensor, list[Tensor]]:
    def shaped(t: Tensor) -> Tensor:
        if reduction != "none":
            return t.mean() if reduction == "mean" else t.sum()
        if clips is None:
            return t
        return t.view(clips) if t.shape[2:] == (1, 1) else t.view(*clips, *t.shape[1:])

    return (shaped(value), [shaped(part) for part in parts]) if ret_per_layer else shaped(value)


def _check_unknown(arguments: Mapping[str, object]) -> None:
    """Raises a TypeError for a keyword argument that LPIPS has not; it tells the new call for those of before 2020."""
    for name in arguments:
        if name in ("model", "use_gpu", "gpu_ids", "colorspace", "dist"):
            raise TypeError(
                f"LPIPS has no argument {name!r}, which lpips had before 2020: PerceptualLoss(model='net-lin', "
                "net='alex', use_gpu=True) is LPIPS(net='alex').to('cuda'), and model='net' is lpips=False"
            )
        raise TypeError(f"LPIPS has no argument {name!r}")


def _shape(x: object) -> str:
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__


def _batch(x: Tensor | Features) -> int:
    return x.taps[0].shape[0] if isinstance(x, Features) else x.shape[0]


def _rows(x: Tensor | Features, rows: slice) -> Tensor | Features:
    if _batch(x) == 1:
        return x
    return x._replace(taps=tuple(t[rows] for t in x.taps)) if isinstance(x, Features) else x[rows]


def check_pair(in0: Tensor, in1: Tensor | Features, names: str = "in0 and in1") -> None:
    """Raises an error that names the arguments, unless the images fit together."""
    if isinstance(in1, Tensor):
        if in0.shape[2:] != in1.shape[2:]:
            raise ValueError(f"{names} must have one size, got {list(in0.shape[2:])} and {list(in1.shape[2:])}")
    if _batch(in0) != _batch(in1) and 1 not in (_batch(in0), _batch(in1)):
        raise ValueError(f"{names} must have one batch size, or 1, got {_batch(in0)} and {_batch(in1)}")


def _checked_pixel_weight(weight: Tensor, n: int, x: Tensor) -> Tensor:
    """The weights of pixels as [n, 1, H, W]."""
    height, width = x.shape[2:]
    if isinstance(weight, Tensor):
        weight = as_plain_tensor(weight)
        weight = weight[(None,) * (4 - weight.dim())] if weight.dim() in (2, 3) else weight
    if not isinstance(weight, Tensor) or weight.shape not in ((n, 1, height, width), (1, 1, height, width)):
        raise ValueError(f"weight must be {[n, 1, height, width]}, one number a pixel, got {_shape(weight)}")
    if weight.layout != torch.strided or weight.is_complex():
        raise TypeError(f"weight must be a dense tensor of real numbers, got {weight.dtype}, {weight.layout}")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, the images on {x.device}: move one with .to()")
    return weight if weight.shape[0] == n else weight.expand(n, -1, -1, -1)


def _without_own_keys(module: nn.Module, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _with_own_tensors(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: what is there for the module is ignored, and nothing of it is missing."""
    _without_own_keys(module, state, prefix, {})
    state.update(saved_tensors(module, prefix))


class ScalingLayer(nn.Module):
    """(x - shift) / scale by channel: from [-1, 1] to the statistics the trunks were trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, inp: Tensor) -> Tensor:
        return (inp - self.shift) / self.scale


_SCALING = describe(ScalingLayer())


class NetLinLayer(nn.Module):
    """A 1x1 convolution without bias, with dropout before it if asked for: [N, chn_in, H, W] to [N, chn_out, H, W]."""

    def __init__(self, chn_in: int, chn_out: int = 1, use_dropout: bool = False) -> None:
        super().__init__()
        self.use_dropout = use_dropout
        dropout = [nn.Dropout()] if use_dropout else []
        self.model = nn.Sequential(*dropout, nn.Conv2d(chn_in, chn_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def normalize_tensor(in_feat: Tensor, eps: float = 1e-10) -> Tensor:
    """Features [N, C, H, W] divided by their norm over channels plus eps; 0, with zero gradient, where it is 0."""
    return normalize_channels(in_feat, eps, eps_inside_sqrt=False).to(in_feat.dtype)


def spatial_average(in_tens: Tensor, keepdim: bool = True) -> Tensor:
    """The mean over height and width of [N, C, H, W]."""
    return in_tens.mean(dim=(2, 3), keepdim=keepdim)


def upsample(in_tens: Tensor, out_HW: Sequence[int] = (64, 64)) -> Tensor:
    """[N, C, h, w] resized bilinearly to [N, C, *out_HW], corners not aligned."""
    return nn.functional.interpolate(in_tens, size=tuple(out_HW), mode="bilinear", align_corners=False)
