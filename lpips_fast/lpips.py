"""LPIPS as a module: images to a distance.

    LPIPS(x, y) = sum_l mean_p sum_c w_lc (a_lc(x) - a_lc(y))^2

a_l are the trunk's features of the scaled image at tap l, divided by their norm over channels. w_l are linear weights
learnt from human judgements. p are pixels. (Zhang et al., CVPR 2018, arXiv:1801.03924.) LPIPS is a drop-in for
`lpips.LPIPS` 0.1.4.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import cast

import torch
from torch import Tensor, nn

from lpips_fast import pairwise
from lpips_fast._checks import check_choice, check_flags, check_path
from lpips_fast._torch_state import as_plain_tensor, in_torch_func, is_autocast_enabled, plain_torch_only
from lpips_fast.distance import called
from lpips_fast.distance.chunks import in_chunks, pairs_at_a_time
from lpips_fast.distance.compare import (
    Comparison,
    Features,
    Side,
    batch_of,
    compare,
    normalize_tensor,
    parts_of_maps,
    spatial_average,
    upsample,
)
from lpips_fast.distance.grad_in_forward import distance_with_gradient
from lpips_fast.distance.inputs import check_pair, checked_pixel_weight, shape_of
from lpips_fast.distance.linear_layers import LinearLayers, NetLinLayer, name_twice, saved_tensors
from lpips_fast.distance.pixel_weights import shares
from lpips_fast.distance.ranges import RangeCheck
from lpips_fast.distance.scaling import ScalingLayer, affine
from lpips_fast.distance.videos import flatten_videos
from lpips_fast.head import backends
from lpips_fast.head.inputs import checked_input
from lpips_fast.head.operators import Norm, accumulation_dtype
from lpips_fast.pairwise import Images
from lpips_fast.trunk import cpu_trunk
from lpips_fast.trunk.module import PRECISIONS, Trunk
from lpips_fast.trunk.nets import ALIASES, NETS
from lpips_fast.trunk.program import Conv
from lpips_fast.trunk.stock import describe, is_as_described
from lpips_fast.weights.published import VERSIONS, published_linear_weights, read_trunk_weights

# The names that `lpips.lpips` has as well, of what LPIPS is made of; and Features.
__all__ = ["LPIPS", "Features", "NetLinLayer", "ScalingLayer", "normalize_tensor", "spatial_average", "upsample"]


class LPIPS(LinearLayers):
    """Learned perceptual image patch similarity: the lower, the more alike two images look to people.

    In the default eval_mode it differs from `lpips.LPIPS`: it stays frozen and in eval mode, whatever a parent module's
    `.train()` says; it prints nothing; and its gradient is finite everywhere.

    Args:
        pretrained: use linear weights learnt from human judgements, not random ones.
        net: the trunk, 'alex', 'vgg' (also 'vgg16') or 'squeeze'.
        version: the version of the linear weights, '0.1' or '0.0'. With '0.0' the images are not scaled, either.
        lpips: weight the channels. False sums them.
        spatial: return maps, not their mean.
        pnet_rand: use a randomly initialised trunk, not ImageNet's.
        pnet_tune: let the trunk's weights get gradients; needs eval_mode=False.
        use_dropout: apply dropout before the linear weights; only in training, which needs eval_mode=False.
        model_path: a file that replaces the published linear weights: linear weights alone or a whole model with its
            trunk, as `lpips` saves them or in any form that `load_any` reads (.pth, read without running code, or
            .safetensors).
        eval_mode: stay frozen and in eval mode. With False the linear weights get gradients and `.train()` works.
        verbose: show a progress bar when weights are downloaded.
        backend: the backend of the head: 'auto', 'reference', 'cpu', 'cuda' or 'triton'; `lpips_fast.backends()` lists
            them.
        precision: the precision of the trunk: 'inherit' (as in `lpips`: autocast's type or else the parameters', and
            TF32 if torch's flags allow it), 'float32' (without TF32), 'tf32', 'bfloat16' or 'float16'. A CPU without
            instructions for these two computes in float32 and rounds the features. The head always accumulates in
            float32 (float64 for float64).
        grad_in_forward: compute the gradient to the images in the forward and keep nothing else, so that memory does
            not grow with the activations. It is an error for maps and for double backward. Calls with retPerLayer or
            with trainable weights ignore it.
        chunk_size: how many pairs go through at a time. 'auto' takes as many as have 2^19 pixels (8 of 256 x 256). On
            the CPU fewer go through at a time, even without chunk_size (docs/training.md). Chunks bound the memory
            if no graph is kept: without gradients, or with grad_in_forward.
        cpu_conv: how the CPU computes the trunk's convolutions in float32: 'winograd' (fewer multiplications),
            'direct', or 'auto' for the faster one at each size.
        trunk_weights: the trunk's weights, a file or a state_dict with torchvision's names. By default they are
            ImageNet's, from $TORCH_HOME or torchvision's server.
        persistent: keep the weights in the state_dict, as `lpips` does. With False the state_dict has none of them, and
            loading neither misses them nor takes any.
        check_range: warn, once, if images are plainly outside the range that they should have: values of 0 to 255;
            [0, 1] without `normalize`; [-1, 1] with it. Only the first calls are checked (distance/ranges.py).

    Set the attribute `L` to the number of taps to use, to leave out the last ones. Layers of the trunk, the scaling or
    the linear weights that were replaced, hooked or set otherwise after construction are called, as `lpips` calls them,
    in plain torch. docs/training.md shows how to take images with other channels that way.

    Raises:
        ValueError: an unknown net, version, backend, precision or cpu_conv, a chunk_size below 1, options that exclude
            each other; a weights file that does not fit (the error names the key).
        RuntimeError: the trunk's weights are neither cached nor reachable.
    """

    _RANGE, _FROM_BYTES = "[-1, 1]", "/ 127.5 - 1"  # the range of images, for errors
    norm = Norm()  # what features are divided by

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
        check_choice("cpu_conv", cpu_conv, cpu_trunk.CHOICES)
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
            from lpips_fast.weights.formats import read_weights  # not at the top: few need it, and it costs 4 ms

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
        if lpips:
            self._add_linear_layers(use_dropout)
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

    def train(self, mode: bool = True) -> LPIPS:
        """As in every module, but ignored in eval_mode: a parent's `.train()` must not make the loss noisy."""
        return super().train(mode and not self.eval_mode)

    def requires_grad_(self, requires_grad: bool = True) -> LPIPS:
        """As in every module, but in eval_mode the parameters stay frozen: pass eval_mode=False to train them.

        A parent's `requires_grad_` sets the parameters' flags directly. In eval_mode the flags have no effect.
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
            in0, in1: images [N, 3, H, W] in [-1, 1], RGB, or videos [B, 3, T, H, W]. A batch of 1 is compared with each
                image of the other side. [3, H, W] is a batch of 1. One channel is grayscale and is repeated. Sides have
                at least 31 (alex), 17 (squeeze) or 16 pixels (vgg). The two may have any floating types; the scaling
                happens in the wider type of image and module, and each gradient has its image's type. float64 needs a
                float64 module. in1 may also be what `features` returned.
            retPerLayer: return each layer's part as well.
            normalize: the images are in [0, 1]; map them to [-1, 1].
            weight: the weights of the mean over pixels, none negative: a mask, or how much each pixel matters.
                [N, 1, H, W], where N may be 1 or left out; for videos [B, 1, T, H, W]. They are averaged down to each
                tap's size. If all are 0, so is the distance.
            frames: how many frames of a video to compare. They are picked at random for each clip and keep their order.
            layout: the layout of videos and their weights, 'BCTHW' or 'BTCHW'. The default is BCTHW. But
                [B, 1, 3, H, W] and [B, 3, 3, H, W] can be read both ways, so they need a layout. [B, 3, 1, H, W] is one
                RGB frame a clip.
            generator: the generator of the random numbers for `frames`.
            reduction: 'none', or 'mean' or 'sum' over all numbers.

        Returns:
            [N, 1, 1, 1] in float32 (float64 for float64), or, if `spatial`, [N, 1, H, W]: the sum of the layers' maps,
            each enlarged bilinearly to the images' size. For videos [B, T] or [B, T, 1, H, W]. A number if reduced.
            With retPerLayer, a pair: this tensor, and a list of such tensors, one for each layer.

        Raises:
            TypeError, ValueError: images that are not floating point; shapes, types, devices or options that do not fit
                together; features of another net, version, size or device.
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
            raise ValueError(f"{given} needs videos [B, C, T, H, W], got in0 {shape_of(in0)}")
        x0, x1, weight = self._checked_pair(in0, in1, weight, normalize)
        if self._takes_gradient_in_forward(x0, x1, weight, retPerLayer) and self.is_stock():
            how, scaled = self._comparison(x0), affine(self.scaling_layer, self.version, normalize)
            value = distance_with_gradient(self.net, self.L, how, x0, x1, weight, scaled, self.chunk_size)
            parts: list[Tensor] = []
        else:
            value, parts = self._distance(x0, x1, weight, normalize, x0.shape[2:], retPerLayer)
        return _returned(value, parts, retPerLayer, clips, reduction)

    def features(self, x: Tensor, normalize: bool = False) -> Features:
        """The features of images [N, 3, H, W] in [-1, 1] (or [0, 1] with `normalize`); forward takes them as in1.

        A target that is compared many times goes through the trunk only once this way. The features hold a graph only
        if x requires a gradient.
        """
        check_flags(normalize=normalize)
        self._check_taps()
        x = self.checked_image("x", x)
        self._look_at_range((x,), normalize)
        if self.is_stock():
            taps = self.net(x, affine=affine(self.scaling_layer, self.version, normalize), n_taps=self.L, stock=True)
        else:
            taps = self._called_taps(x, normalize)
        return Features(taps, ALIASES[self.pnet_type], self.version, (x.shape[2], x.shape[3]))

    def embed(self, x: Images, normalize: bool = False) -> Tensor:
        """Vectors [N, D] of images [N, 3, H, W] whose squared distances are LPIPS: `lpips_fast.pairwise.embed`."""
        return pairwise.embed(self, x, normalize=normalize)

    def pairwise(
        self,
        x: Images,
        y: Images | None = None,
        *,
        block: int | None = None,
        normalize: bool = False,
        sketch: int | None = None,
    ) -> Tensor:
        """The distances of all images of x to all of y, or of x, [N, M]: `lpips_fast.pairwise.pairwise`."""
        return pairwise.pairwise(self, x, y, block=block, normalize=normalize, sketch=sketch)

    def checked_image(self, name: str, image: Tensor) -> Tensor:
        """The image as [N, 3, H, W], a grayscale one repeated; errors call it by that name."""
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
        # Called layers get the image as it is; lpips's scaling makes three channels of a gray image.
        return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 and self.is_stock() else image

    def _look_at_range(self, images: Sequence[Tensor], normalize: bool) -> None:
        """Warns, once, if images are plainly outside their range and `check_range` asks for that."""
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
        return self.net.setting(x.device).tap_dtype if isinstance(self.net, Trunk) else torch.float32

    def is_stock(self) -> bool:
        """Whether trunk, scaling and linear layers are as the constructor made them, so that none has to be called."""
        net = self.net
        return (
            isinstance(net, Trunk)
            and not (net.trainable and self.eval_mode)  # the caller's own trunk, which follows its parameters' flags
            and "forward" not in net.__dict__
            and net.is_stock()
            and is_as_described(self.scaling_layer, _SCALING)
            and self._has_stock_lins()
        )

    # torch.compile takes the answer as a constant of the call that it traces.
    is_stock._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @property
    def values_per_pixel(self) -> int:
        """How many values the taps have for each pixel of an image, rounded up."""
        return NETS[ALIASES[self.pnet_type]].values_per_pixel

    def is_squared_distance(self) -> bool:
        """Whether LPIPS is now the squared distance of the vectors that `embed` makes."""
        return self._has_stock_lins()

    def _checked_pair(
        self, in0: Tensor, in1: Tensor | Features, weight: Tensor | None, normalize: bool
    ) -> tuple[Tensor, Side, Tensor | None]:
        """The images, or the second one's taps, and the weights of their pixels, checked and made to fit together."""
        x0 = self.checked_image("in0", in0)
        x1: Side = self._checked_taps(in1, x0) if isinstance(in1, Features) else self.checked_image("in1", in1)
        check_pair(x0, x1)
        self._look_at_range((x0, x1) if isinstance(x1, Tensor) else (x0,), normalize)
        if weight is not None:
            if self.spatial:
                raise ValueError("weight= is for the mean over pixels, which spatial=True does not take")
            weight = checked_pixel_weight(weight, max(batch_of(x0), batch_of(x1)), x0)
            weight = weight.to(accumulation_dtype(self._feature_dtype(x0)))
        return x0, x1, weight

    def _checked_taps(self, features: Features, x0: Tensor) -> tuple[Tensor, ...]:
        for what, theirs, ours in (
            ("net", features.net, ALIASES[self.pnet_type]),
            ("taps", f"1 to {len(features.taps)}", f"1 to {self.L}"),
            ("version", features.version, self.version),
            ("size", features.size, (x0.shape[2], x0.shape[3])),
            ("device", features.taps[0].device, x0.device),
            ("type", features.taps[0].dtype, self._feature_dtype(x0)),
        ):
            if what == "type" and not self.is_stock():
                continue  # called layers may give features of any type
            if theirs != ours:
                raise ValueError(f"in1 holds features of {what} {theirs}, needed here are those of {what} {ours}")
        return features.taps

    def _distance(
        self, x0: Tensor, x1: Side, weight: Tensor | None, normalize: bool, size: Sequence[int], per_layer: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The distance of each pair, [N, 1, 1, 1], or maps [N, 1, *size] if spatial; and each layer's part of it."""
        needs_graph = self._needs_graph(x0, x1, weight)
        if needs_graph and not isinstance(x1, Tensor) and x1[0].is_inference():
            raise ValueError(
                "in1 holds features made under torch.inference_mode, which no graph can keep: make them under "
                "torch.no_grad, or use grad_in_forward=True"
            )
        if not self.is_stock():
            return self._distance_by_calls(x0, x1, weight, normalize, size)
        stride = cast(Conv, self.net.plan[0]).stride
        n, at_a_time = max(batch_of(x0), batch_of(x1)), pairs_at_a_time(x0, self.chunk_size, stride)
        how, scaled = self._comparison(x0), affine(self.scaling_layer, self.version, normalize)
        taps = functools.partial(self.net, affine=scaled, n_taps=self.L, stock=True)
        sides: list[Side] = [x0, x1]
        if at_a_time is not None and n > at_a_time:  # one image for all chunks goes through the trunk once
            sides = [taps(x) if isinstance(x, Tensor) and x.shape[0] == 1 else x for x in sides]
        chunks = []
        for a, b, mask in in_chunks(n, at_a_time, *sides, weight):
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                taps0, taps1 = self.net.pair(a, b, affine=scaled, n_taps=self.L)
            else:
                taps0, taps1 = taps(a) if isinstance(a, Tensor) else a, taps(b) if isinstance(b, Tensor) else b
            tap_shares = None if mask is None else shares(mask, [t.shape[2:] for t in taps0])
            inputs = checked_input(taps0, taps1, how.linear, how.norm)
            chunks.append(compare(how, inputs, tap_shares, size, per_layer))
        if len(chunks) == 1:
            return chunks[0]
        values, parts = zip(*chunks, strict=True)
        return torch.cat(values), [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _distance_by_calls(
        self, x0: Tensor, x1: Side, weight: Tensor | None, normalize: bool, size: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """What `_distance` returns, by calling the layers, whatever they are now."""
        taps0 = self._called_taps(x0, normalize)
        taps1 = self._called_taps(x1, normalize) if isinstance(x1, Tensor) else x1
        lins, weights = (self.linear_layers(), None) if self.lpips else (None, self.linear_weights())
        maps = called.maps(taps0, taps1, lins, weights, self.norm, frozen=self.eval_mode)
        tap_shares = None if weight is None else shares(weight, [m.shape[2:] for m in maps])
        parts = parts_of_maps(maps, tap_shares, size if self.spatial else None)
        return sum(parts[1:], parts[0]), parts

    def _called_taps(self, x: Tensor, normalize: bool) -> tuple[Tensor, ...]:
        scaling = None if self.version == "0.0" else self.scaling_layer
        return called.taps(self.net, scaling, x, normalize, self.L, frozen=self.eval_mode)

    def _takes_gradient_in_forward(self, x0: Tensor, x1: Side, weight: Tensor | None, per_layer: bool) -> bool:
        """Whether the caller asked for grad_in_forward, a gradient will be needed, and only images need one."""
        if not self.grad_in_forward or self.spatial or per_layer or not torch.is_grad_enabled():
            return False
        if in_torch_func() or plain_torch_only() or self.norm.inside_sqrt:  # the fused gradient has the eps outside
            return False
        others = [*(() if isinstance(x1, Tensor) else x1), *self._trained(), *(() if weight is None else (weight,))]
        images_need = x0.requires_grad or (isinstance(x1, Tensor) and x1.requires_grad)
        return images_need and not any(t.requires_grad for t in others)

    def _comparison(self, x0: Tensor) -> Comparison:
        dropouts = self._dropouts()
        backend = "reference" if dropouts else backends.choose(self.backend, x0.device)  # no operator drops out
        return Comparison(backend, self.norm, self.linear_weights(), dropouts, self.spatial)

    def _needs_graph(self, x0: Tensor, x1: Side, weight: Tensor | None) -> bool:
        tensors = [x0, *((x1,) if isinstance(x1, Tensor) else x1), *self._trained()]
        if weight is not None:
            tensors.append(weight)
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)

    def _trained(self) -> Iterable[Tensor]:
        """The parameters that may get gradients: none in eval_mode, whatever a parent did to their flags."""
        return () if self.eval_mode else self.parameters()


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
    """Raises a TypeError for an unknown keyword argument; for one from before 2020 it names the new call."""
    for name in arguments:
        if name in ("model", "use_gpu", "gpu_ids", "colorspace", "dist"):
            raise TypeError(
                f"LPIPS has no argument {name!r}, which lpips had before 2020: PerceptualLoss(model='net-lin', "
                "net='alex', use_gpu=True) is LPIPS(net='alex').to('cuda'), and model='net' is lpips=False"
            )
        raise TypeError(f"LPIPS has no argument {name!r}")


def _without_own_keys(module: nn.Module, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _with_own_tensors(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading, replaces the module's entries by its own tensors: none is loaded, and none is missing."""
    _without_own_keys(module, state, prefix, {})
    state.update(saved_tensors(module, prefix))


_SCALING = describe(ScalingLayer())
