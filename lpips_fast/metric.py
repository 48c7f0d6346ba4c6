"""LPIPS as a metric of torchmetrics: the same signatures, checks and numbers as in torchmetrics 1.9.

torchmetrics has the eps inside the root: a = f / sqrt(1e-8 + |f|^2). These things differ from torchmetrics:

- With reduction 'mean' and 'sum' the state is a sum and a count, and does not grow.
- No state keeps a graph.
- Half precision is summed in float32.
- The functional keeps its network.
- On a GPU the check of the images' range does not wait for earlier work to end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lpips_fast._checks import check_flags, checked_count
from lpips_fast.distance.inputs import check_pair
from lpips_fast.distance.scaling import ScalingLayer
from lpips_fast.head.inputs import FEATURE_DTYPES
from lpips_fast.head.operators import Norm, accumulation_dtype
from lpips_fast.lpips import LPIPS
from lpips_fast.pairwise import widest_dtype
from lpips_fast.weights.formats import rename

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
    from torchmetrics.utilities.distributed import gather_all_tensors
    from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE
except ImportError as error:
    raise ImportError("lpips_fast.metric needs torchmetrics: pip install 'lpips_fast[metric]'") from error

NetType = Literal["vgg", "alex", "squeeze"]
Reduction = Literal["mean", "sum", "none"] | None

_NET_TYPES = ("vgg", "alex", "squeeze")
_REDUCTIONS = ("mean", "sum", "none", None)


class LearnedPerceptualImagePatchSimilarity(Metric):
    """LPIPS over all images of all updates.

    `forward(img1, img2)` returns the value of the batch, differentiable in both images. `compute()` returns the value
    of all batches. Images are [N, 3, H, W].

    Args:
        net_type: the trunk, 'alex', 'vgg' or 'squeeze'.
        reduction: 'mean' or 'sum' over images; 'none' or None for one value an image.
        normalize: whether the images are in [0, 1] instead of [-1, 1].
        trunk_weights, persistent, check_range: as in `lpips_fast.LPIPS`: the network's weights, whether they are in the
            state_dict, and whether to warn, once, of images that are plainly in another range.
        kwargs: the arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: net_type, reduction or normalize is unknown. When it is used: images have another shape or are out
            of range (values above 1 are an error only with `normalize`).
    """

    is_differentiable: bool = True
    higher_is_better: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    feature_network: str = "net"

    __jit_ignored_attributes__: ClassVar[list[str]] = ["net"]  # torch.jit.script cannot compile it

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations whose evaluation is postponed
        total: Tensor
        count: Tensor
        all_scores: list[Tensor]

    def __init__(
        self,
        net_type: NetType = "alex",
        reduction: Reduction = "mean",
        normalize: bool = False,
        *,
        trunk_weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        persistent: bool = True,
        check_range: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_net_type(net_type)
        if reduction not in _REDUCTIONS:
            raise ValueError(f"Argument `reduction` must be one of {_REDUCTIONS}, but got {reduction}")
        if not isinstance(normalize, bool):
            raise ValueError(f"Argument `normalize` should be an bool but got {normalize}")
        self.net = _network(net_type, trunk_weights=trunk_weights, persistent=persistent, check_range=check_range)
        self.reduction = reduction
        self.normalize = normalize
        if self._is_bounded():
            self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("all_scores", [], dist_reduce_fx=None)

    def _is_bounded(self) -> bool:
        return self.reduction in ("mean", "sum")

    def _scores_dtype(self) -> torch.dtype:
        # torchmetrics 1.0 has no Metric.dtype.
        return accumulation_dtype(next(self.net.parameters()).dtype)

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Adds a batch of pairs of images."""
        scores = _distances(self.net, img1, img2, self.normalize).squeeze((1, 2, 3))
        if self._is_bounded():
            self.total = self.total + scores.sum(dtype=self.total.dtype)
            self.count = self.count + scores.numel()
        else:
            self.all_scores.append(scores)

    def compute(self) -> Tensor:
        """The value of all batches so far, in float32 (float64 after `set_dtype(float64)`); [N] without a reduction."""
        if not self._is_bounded():
            return dim_zero_cat(self.all_scores)
        if self._update_count == 0 and self.count == 0:
            raise ValueError("No samples to concatenate")
        value = self.total / self.count if self.reduction == "mean" else self.total
        return value.to(self._scores_dtype())

    @torch.jit.unused
    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Adds a batch, and returns its own value, differentiable."""
        value = super().forward(img1, img2)
        self._forward_cache = value.detach()  # the graph belongs to the caller
        if not self._is_bounded():
            self.all_scores[-1] = self.all_scores[-1].detach()
        return value

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots values of `forward` or `compute`, by default the current value. Returns figure and axes."""
        return self._plot(val, ax)

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = ()) -> LearnedPerceptualImagePatchSimilarity:
        """Moves to another device or type. The sum and the count keep their types: they would overflow in float16."""
        super()._apply(fn, exclude_state=(*exclude_state, "total", "count"))
        if self._is_bounded():
            dtype = widest_dtype(self.device)
            self.total = self.total.to(dtype).to(self.device)
            self.count = self.count.to(self.device)
            # The defaults are on the device, too, because each reset, and so each forward, copies them.
            self._defaults.update(total=torch.zeros_like(self.total), count=torch.zeros_like(self.count))
        return self

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any | None = None) -> None:
        """Gathers scores in torchmetrics' order, by batch and then by rank. Ranks may have unequal numbers of them."""
        if self._is_bounded():
            super()._sync_dist(dist_sync_fn, process_group)
            return
        group = process_group or self.process_group
        empty = torch.zeros(0, dtype=self._scores_dtype(), device=self.device)
        sizes = torch.tensor([len(scores) for scores in self.all_scores], dtype=torch.int64, device=self.device)
        all_scores = dist_sync_fn(torch.cat([empty, *self.all_scores]), group=group)
        all_sizes = dist_sync_fn(sizes, group=group)
        by_rank = [scores.split(sizes.tolist()) for scores, sizes in zip(all_scores, all_sizes, strict=True)]
        self.all_scores = [scores for batch in zip_longest(*by_rank) for scores in batch if scores is not None]


def learned_perceptual_image_patch_similarity(
    img1: Tensor,
    img2: Tensor,
    net_type: NetType = "alex",
    reduction: Reduction = "mean",
    normalize: bool = False,
) -> Tensor:
    """LPIPS of a batch of pairs of images, differentiable in both.

    The first call for a net, device and type makes the network, which is kept. It has the wider of the images' types.

    Args:
        img1, img2: [N, 3, H, W].
        net_type: the trunk, 'alex', 'vgg' or 'squeeze', with ImageNet's weights from $TORCH_HOME or torchvision's
            server.
        reduction: 'mean' or 'sum' over images; 'none' or None for one value an image ([N]; for N = 1 without a
            dimension, as in torchmetrics).
        normalize: whether the images are in [0, 1] instead of [-1, 1].

    Raises:
        ValueError: net_type or reduction is unknown; images have another shape or are out of range.
        TypeError: an image is no tensor, or img1 is not of a floating-point type.
    """
    _check_net_type(net_type)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"Invalid reduction type: {reduction}; must be one of {_REDUCTIONS}")

    def net(*images: Tensor, normalize: bool) -> Any:
        dtype = torch.promote_types(img1.dtype, img2.dtype)
        return _kept_network(net_type, img1.device, dtype)(*images, normalize=normalize)

    scores = _distances(net, img1, img2, normalize)
    if reduction == "mean":
        return scores.mean()
    return scores.sum() if reduction == "sum" else scores.squeeze()


def _check_net_type(net_type: str) -> None:
    if net_type not in _NET_TYPES:
        raise ValueError(f"Argument `net_type` must be one of {_NET_TYPES}, but got {net_type}.")


@functools.lru_cache(maxsize=6)
def _kept_network(net_type: str, device: torch.device, dtype: torch.dtype) -> Network:
    if not dtype.is_floating_point:
        raise TypeError(f"img1 must be floating point, got {dtype}")
    with torch.inference_mode(False):  # else after a first call in inference mode no later call could have gradients
        return _network(net_type).to(device=device, dtype=dtype)


def _network(net_type: str, **options: Any) -> Network:
    net = Network(net=net_type, **options)
    net._names = ("img1", "img2")
    return net


class Network(LPIPS):
    """LPIPS with the arguments, results, norm and state_dict keys of `_NoTrainLpips`, torchmetrics' inner network.

    It is always in eval mode, and frozen unless pnet_tune.

    Args:
        pretrained: whether the linear weights are learnt from human judgements instead of random.
        net: the trunk, 'alex', 'vgg' (also 'vgg16') or 'squeeze'.
        spatial: whether to return maps instead of their mean.
        pnet_rand: whether the trunk is random instead of ImageNet's.
        pnet_tune: whether the weights of the trunk and the linear weights get gradients.
        use_dropout: whether the linear weights are `lin{k}.model.1` in the state_dict, after a dropout layer, or
            `lin{k}.model.0`. Dropout is never applied.
        model_path: a weights file, as in `lpips_fast.LPIPS`.
        eval_mode: has no effect. torchmetrics' network also returns to eval mode at the first `.train()`.
        resize: the side in pixels of the square to which images are resized, or None. An image with both sides longer
            is resized by area, any other bilinearly. The two images may then differ in size.
        backend, precision, cpu_conv, trunk_weights, persistent, check_range: as in `lpips_fast.LPIPS`.

    Raises:
        ValueError, RuntimeError: as in `lpips_fast.LPIPS`; or resize is below 1.
    """

    norm = Norm(1e-8, inside_sqrt=True)
    _names = ("in0", "in1")  # of the images in errors

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | PathLike[str] | None = None,
        eval_mode: bool = True,
        resize: int | None = None,
        *,
        backend: str = "auto",
        precision: str = "inherit",
        cpu_conv: str = "auto",
        trunk_weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        persistent: bool = True,
        check_range: bool = True,
    ) -> None:
        check_flags(eval_mode=eval_mode)
        if resize is not None:
            resize = checked_count("resize", resize, "None or a number of pixels")
        super().__init__(
            pretrained=pretrained,
            net=net,
            spatial=spatial,
            pnet_rand=pnet_rand,
            pnet_tune=pnet_tune,
            use_dropout=use_dropout,
            model_path=model_path,
            eval_mode=not pnet_tune,  # LPIPS is frozen in eval_mode
            backend=backend,
            precision=precision,
            cpu_conv=cpu_conv,
            trunk_weights=trunk_weights,
            persistent=persistent,
            check_range=check_range,
        )
        self.resize = resize
        self.eval()
        for name, buffer in self.scaling_layer.named_buffers():
            self.scaling_layer.register_buffer(name, buffer, persistent=False)
        self.register_load_state_dict_pre_hook(_without_scaling)
        if self.pnet_type == "squeeze":
            self.register_state_dict_post_hook(_to_their_names)
            self.register_load_state_dict_pre_hook(_from_their_names)

    def train(self, mode: bool = True) -> Network:
        """Has no effect: the network stays in eval mode."""
        super().train(False)
        return self

    def forward(  # type: ignore[override]
        self, in0: Tensor, in1: Tensor, retperlayer: bool = False, normalize: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """The distance of each pair of images.

        Args:
            in0, in1: [N, 3, H, W], or one image [3, H, W], in [-1, 1], RGB. A batch of 1 is compared with each image of
                the other. One channel is grayscale and is repeated.
            retperlayer: whether to return each layer's part, too.
            normalize: whether the images are in [0, 1] instead of [-1, 1].

        Returns:
            [N, 1, 1, 1] in float32 (float64 for float64), or [N, 1, H, W] of in0's size if `spatial`. With retperlayer:
            this tensor, and a list of such tensors, one for each layer.

        Raises:
            TypeError, ValueError: as in `lpips_fast.LPIPS.forward`.
        """
        check_flags(retperlayer=retperlayer, normalize=normalize)
        x0, x1 = (self.checked_image(name, image) for name, image in zip(self._names, (in0, in1), strict=True))
        check_pair(x0, x1, " and ".join(self._names))
        if self.resize is None or not self.spatial:
            return super().forward(x0, x1, retPerLayer=retperlayer, normalize=normalize)
        self._look_at_range((x0, x1), normalize)
        # Maps are enlarged from the size of the taps to the size of in0 as given, not to `resize`.
        value, parts = self._distance(x0, x1, None, normalize, in0.shape[-2:], retperlayer)
        return (value, parts) if retperlayer else value

    def checked_image(self, name: str, image: Tensor) -> Tensor:
        """As in LPIPS, after resizing. Like torchmetrics, it resizes in the wider type of image and network."""
        if self.resize is not None and isinstance(image, Tensor) and image.layout == torch.strided:
            image = image[None] if image.dim() == 3 else image
            if image.dtype in FEATURE_DTYPES and image.dim() == 4 and min(image.shape[2:]) > 0:
                image = image.to(torch.promote_types(image.dtype, self.own_tensor().dtype))
                image = _resized(image, self.resize)
        return super().checked_image(name, image)


def _resized(image: Tensor, side: int) -> Tensor:
    """[N, C, H, W] resized to a square, as in torchmetrics."""
    if image.shape[2:] == (side, side):
        return image
    if min(image.shape[2:]) > side:
        return nn.functional.interpolate(image, (side, side), mode="area")
    return nn.functional.interpolate(image, (side, side), mode="bilinear", align_corners=False)


def _without_scaling(module: Network, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Removes the scaling of lpips, which torchmetrics had before 0.12. Other values stay, and cause an error."""
    for name, standard in ScalingLayer().state_dict().items():
        given = state.get(f"{prefix}scaling_layer.{name}")
        if given is None or given.shape != standard.shape:
            continue
        if torch.allclose(given.cpu().float(), standard, rtol=1e-2):  # values in half precision are rounded
            del state[f"{prefix}scaling_layer.{name}"]


def _to_their_names(module: Network, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    for k in range(module.net.N_slices):
        rename(state, f"{prefix}net.slice{k + 1}.", f"{prefix}net.slices.{k}.")


def _from_their_names(module: Network, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for k in range(module.net.N_slices):
        rename(state, f"{prefix}net.slices.{k}.", f"{prefix}net.slice{k + 1}.")


def _distances(net: Callable[..., Tensor], img1: Tensor, img2: Tensor, normalize: bool) -> Tensor:
    """The distances that the network gives, after torchmetrics' checks of the images."""
    for name, img in (("img1", img1), ("img2", img2)):
        if not isinstance(img, Tensor):
            raise TypeError(f"{name} must be a tensor [N, 3, H, W], got {type(img).__name__}")
    if any(img.dim() != 4 or img.shape[1] != 3 for img in (img1, img2)):
        raise _not_normalized(img1, img2, normalize)
    valid = torch.stack([_in_range(img.detach(), normalize) for img in (img1, img2)]).all()
    if not img1.is_cuda:
        if not valid:
            raise _not_normalized(img1, img2, normalize)
        return net(img1, img2, normalize=normalize)
    if torch.cuda.is_current_stream_capturing():
        return net(img1, img2, normalize=normalize)
    # The answer travels to the CPU while the network is queued behind it. So the GPU does not idle for the check.
    valid = valid.to("cpu", non_blocking=True)
    arrived = torch.cuda.current_stream(img1.device).record_event()
    scores = net(img1, img2, normalize=normalize)
    arrived.synchronize()
    if not valid:
        raise _not_normalized(img1, img2, normalize)
    return scores


def _in_range(img: Tensor, normalize: bool) -> Tensor:
    if not img.numel():
        return torch.ones((), dtype=torch.bool, device=img.device)
    low, high = img.aminmax()
    return (low >= 0) & (high <= 1) if normalize else low >= -1


def _not_normalized(img1: Tensor, img2: Tensor, normalize: bool) -> ValueError:
    ranges = [[img.min().item(), img.max().item()] if img.numel() else [] for img in (img1, img2)]
    return ValueError(
        "Expected both input arguments to be normalized tensors with shape [N, 3, H, W]."
        f" Got input with shape {img1.shape} and {img2.shape} and values in range {ranges[0]} and {ranges[1]}"
        f" when all values are expected to be in the {[0, 1] if normalize else [-1, 1]} range."
    )
