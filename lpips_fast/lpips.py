"""LPIPS as a module: images to a distance.

    LPIPS(x, y) = sum_l mean_p sum_c w_lc (a_lc(x) - a_lc(y))^2

a_l: the trunk's features at tap l of the scaled image, divided by their norm over channels; w_l: linear weights learnt
from human judgements; p: pixels. (Zhang et al., CVPR 2018, arXiv:1801.03924.) Drop-in for `lpips.LPIPS` 0.1.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from . import extension, functional, weights
from .reference import normalize_channels
from .trunk import SPECS, Trunk

_NETS = {"alex": "alex", "vgg": "vgg", "vgg16": "vgg", "squeeze": "squeeze"}


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
        model_path: a file of linear weights to use instead of the published ones, as `lpips` saves them (.pth, read
            without running code) or .safetensors.
        eval_mode: frozen and always in eval. With False the linear weights get gradients and `.train()` works.
        verbose: whether a download shows a progress bar.
        backend: of the head: 'auto', 'reference', 'cpu', 'cuda' or 'triton'; `lpips_fast.backends()` lists them.
        trunk_weights: the trunk's weights, a file or a state_dict with torchvision's names, instead of torchvision's
            from its cache ($TORCH_HOME) or the internet.

    Raises:
        ValueError: an unknown net, version or backend; a weights file that does not fit, to the key.
        RuntimeError: the trunk's weights are neither cached nor reachable, or the backend is not there.
    """

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
        trunk_weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if net not in _NETS:
            raise ValueError(f"net must be one of {', '.join(map(repr, _NETS))}, got {net!r}")
        if version not in weights.VERSIONS:
            raise ValueError(f"version must be one of {', '.join(map(repr, weights.VERSIONS))}, got {version!r}")
        if pnet_tune and eval_mode:
            raise ValueError("pnet_tune=True trains the trunk, which eval_mode=True keeps frozen: pass eval_mode=False")
        extension.check_name(backend)
        spec = SPECS[_NETS[net]]
        self.pnet_type = net
        self.pnet_tune = pnet_tune
        self.pnet_rand = pnet_rand
        self.spatial = spatial
        self.lpips = lpips
        self.version = version
        self.eval_mode = eval_mode
        self.backend = backend
        self.chns = list(spec.channels)
        self.L = len(self.chns)

        self.scaling_layer = ScalingLayer()
        self.net = Trunk(_NETS[net])
        if not pnet_rand or trunk_weights is not None:
            self.net.load_features(weights.trunk_weights(_NETS[net], trunk_weights, progress=verbose))
        self.net.requires_grad_(pnet_tune)
        if lpips:
            lins = [NetLinLayer(c, use_dropout=use_dropout) for c in self.chns]
            for k, lin in enumerate(lins):
                self.add_module(f"lin{k}", lin)
            self.lins = nn.ModuleList(lins)
            self.lins.requires_grad_(not eval_mode)
            if model_path is not None:
                self._set_linear_weights(weights.load_linear_weights(model_path, self.chns))
            elif pretrained:
                self._set_linear_weights(weights.published_linear_weights(_NETS[net], version, self.chns))
        if eval_mode:
            self.eval()

    def _set_linear_weights(self, linear_weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for lin, weight in zip(self.lins, linear_weights, strict=True):
                lin.weight.copy_(weight)

    def train(self, mode: bool = True) -> LPIPS:
        """As in every module, but without effect in eval_mode: a parent's `.train()` must not make the loss noisy."""
        return super().train(mode and not self.eval_mode)

    def forward(
        self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """The distance of each pair of images.

        Args:
            in0, in1: [N, 3, H, W] in [-1, 1], RGB; a batch of 1 is compared with each of the other's. One channel is
                taken as grayscale and repeated. Sides of at least 31 (alex), 17 (squeeze) or 16 pixels (vgg).
            retPerLayer: whether to return each layer's part, too.
            normalize: the images are in [0, 1] and are to be mapped to [-1, 1].

        Returns:
            [N, 1, 1, 1] in float32 (float64 for float64), or [N, 1, H, W] when `spatial`, each layer's map enlarged
            bilinearly to the images' size; with retPerLayer a pair of it and a list of such tensors, one a layer.

        Raises:
            TypeError, ValueError: images that are not floating point, or of shapes, types or devices that do not fit.
        """
        in0, in1 = self._checked("in0", in0), self._checked("in1", in1)
        _check_pair(in0, in1)
        feats0, feats1 = self._features_of_pair(in0, in1, normalize)
        if self.spatial or self._drops_out():
            maps = self._maps(feats0, feats1)
            parts = [upsample(m, in0.shape[2:]) if self.spatial else spatial_average(m) for m in maps]
            value = sum(parts[1:], parts[0])
        else:
            distances = functional.lpips_head(feats0, feats1, self._linear_weights(), backend=self.backend)
            value = distances.sum(dim=1).view(-1, 1, 1, 1)
            parts = [d.view(-1, 1, 1, 1) for d in distances.unbind(dim=1)] if retPerLayer else []
        return (value, parts) if retPerLayer else value

    def _checked(self, name: str, image: Tensor) -> Tensor:
        """The image, grayscale expanded to three channels."""
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(image).__name__}")
        if image.dim() != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"{name} must be [N, 3, H, W], or [N, 1, H, W] grayscale, got {list(image.shape)}")
        if not image.is_floating_point():
            raise TypeError(
                f"{name} must be floating point, in [-1, 1], got {image.dtype}; for 0 to 255: {name} / 127.5 - 1"
            )
        own = self.scaling_layer.shift
        if image.device != own.device:
            raise ValueError(f"{name} is on {image.device}, LPIPS on {own.device}: move one with .to()")
        if image.dtype != own.dtype and not torch.is_autocast_enabled(image.device.type):
            raise TypeError(f"{name} is {image.dtype}, LPIPS {own.dtype}: convert one with .to(), or use autocast")
        smallest = self.net.spec.min_size
        if min(image.shape[2:]) < smallest:
            raise ValueError(
                f"{name} must have sides of at least {smallest} pixels for net {self.pnet_type!r}, "
                f"got {image.shape[2]} x {image.shape[3]}"
            )
        return image.expand(-1, 3, -1, -1)

    def _features_of_pair(self, in0: Tensor, in1: Tensor, normalize: bool) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self._features(in0, normalize), self._features(in1, normalize)

    def _features(self, image: Tensor, normalize: bool) -> Sequence[Tensor]:
        if normalize:
            image = 2 * image - 1
        if self.version != "0.0":  # whose release forgot the scaling
            image = self.scaling_layer(image)
        return self.net(image)

    def _linear_weights(self) -> list[Tensor] | None:
        return [lin.weight for lin in self.lins] if self.lpips else None

    def _drops_out(self) -> bool:
        return self.lpips and self.training and self.lins[0].use_dropout

    def _maps(self, feats0: Sequence[Tensor], feats1: Sequence[Tensor]) -> list[Tensor]:
        """Each layer's map of distances, [N, 1, H_l, W_l]."""
        if not self._drops_out():
            return functional.lpips_head_maps(feats0, feats1, self._linear_weights(), backend=self.backend)
        # Dropout falls on the squared differences, which the fused head never has in memory.
        maps = []
        for f0, f1, lin in zip(feats0, feats1, self.lins, strict=True):
            maps.append(lin((normalize_tensor(f0) - normalize_tensor(f1)) ** 2))
        return maps


def _check_pair(in0: Tensor, in1: Tensor) -> None:
    if in0.shape[2:] != in1.shape[2:]:
        raise ValueError(f"in0 and in1 must have one size, got {list(in0.shape[2:])} and {list(in1.shape[2:])}")
    if in0.shape[0] != in1.shape[0] and 1 not in (in0.shape[0], in1.shape[0]):
        raise ValueError(f"in0 and in1 must have one batch size, or 1, got {in0.shape[0]} and {in1.shape[0]}")
    if in0.dtype != in1.dtype:
        raise TypeError(f"in0 and in1 must be of one type, got {in0.dtype} and {in1.dtype}")


class ScalingLayer(nn.Module):
    """(x - shift) / scale by channel: from [-1, 1] to the statistics the trunks were trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, inp: Tensor) -> Tensor:
        return (inp - self.shift) / self.scale


class NetLinLayer(nn.Module):
    """A 1x1 convolution without bias, with dropout before it if asked for: [N, chn_in, H, W] to [N, chn_out, H, W]."""

    def __init__(self, chn_in: int, chn_out: int = 1, use_dropout: bool = False) -> None:
        super().__init__()
        self.use_dropout = use_dropout
        dropout = [nn.Dropout()] if use_dropout else []
        self.model = nn.Sequential(*dropout, nn.Conv2d(chn_in, chn_out, 1, bias=False))

    @property
    def weight(self) -> Tensor:
        return self.model[-1].weight

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
