"""The helpers of `lpips` 0.1.4: scores of data sets, L2, PSNR, SSIM and CIELAB of images, conversions.

They have the names, arguments and numbers of `lpips`. They are also names of `lpips_fast`, so that `import lpips_fast
as lpips` is enough. CIELAB and SSIM need scikit-image: pip install 'lpips_fast[skimage]'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm import tqdm

from lpips_fast._checks import check_choice
from lpips_fast.bapps.scores import agreement, average_precision, score_jnd
from lpips_fast.images import im2tensor, tensor2im

Distance = Callable[[Tensor, Tensor], Tensor]


def score_2afc_dataset(data_loader: Any, func: Distance, name: str = "") -> tuple[float, dict[str, np.ndarray]]:
    """The share of people with whom a distance agrees on which of two images is nearer to a reference (2AFC).

    `lpips_fast.bapps.evaluate` computes it from the folders of the data set.

    Args:
        data_loader: its `load_data()` yields batches, dicts of 'ref', 'p0' and 'p1', [N, 3, H, W], and of 'judge', the
            N shares of people who took p1 for the nearer one.
        func: from two batches of images to their N distances, a tensor of any shape.
        name: shown beside the progress bar.

    Returns:
        The score from 0 to 1, and arrays [samples]: distances 'd0s' and 'd1s', judgements 'gts' and each sample's part
        of the score, 'scores'.

    Raises:
        TypeError: data_loader has no `load_data`.
        ValueError: there are no samples, or a distance is not finite.
    """
    batches = (
        (func(data["ref"], data["p0"]), func(data["ref"], data["p1"]), data["judge"])
        for data in _load_data(data_loader, name)
    )
    d0s, d1s, gts = _columns(batches, 3)
    scores = agreement(d0s, d1s, gts)
    return float(np.mean(scores)), {"d0s": d0s, "d1s": d1s, "gts": gts, "scores": scores}


def score_jnd_dataset(data_loader: Any, func: Distance, name: str = "") -> tuple[float, dict[str, np.ndarray]]:
    """The average precision with which small distances find the pairs that people take for the same image (JND).

    `lpips_fast.bapps.evaluate` computes it from the folders of the data set. Pairs at equal distances count as in
    `lpips_fast.bapps.score_jnd`; `lpips` takes them in an order that depends on the processor.

    Args:
        data_loader: its `load_data()` yields batches, dicts of 'p0' and 'p1', [N, 3, H, W], and of 'same', the N shares
            of people who took the two for the same image.
        func: from two batches of images to their N distances, a tensor of any shape.
        name: shown beside the progress bar.

    Returns:
        The score from 0 to 1, and arrays [samples]: distances 'ds' and judgements 'sames'.

    Raises:
        TypeError: data_loader has no `load_data`.
        ValueError: there are no samples, nobody took a pair for the same, or a distance is not finite.
    """
    batches = ((func(data["p0"], data["p1"]), data["same"]) for data in _load_data(data_loader, name))
    ds, sames = _columns(batches, 2)
    return score_jnd(ds, sames), {"ds": ds, "sames": sames}


def voc_ap(rec: ArrayLike, prec: ArrayLike, use_07_metric: bool = False) -> float:
    """The average precision of PASCAL VOC.

    Args:
        rec: recalls, [N], ascending.
        prec: the precisions there, [N].
        use_07_metric: whether to take the mean of the best precisions at eleven recalls (VOC 2007) instead of the area
            under the precision's envelope (VOC 2010).
    """
    rec, prec = np.asarray(rec), np.asarray(prec)
    if use_07_metric:
        return float(np.mean([np.max(prec[rec >= t], initial=0.0) for t in np.arange(0.0, 1.1, 0.1)]))
    return average_precision(rec, prec)


def l2(p0: ArrayLike, p1: ArrayLike, range: float = 255.0) -> np.floating:
    """Half the mean squared difference of two images of one shape; values from 0 to `range` are scaled to [0, 1]."""
    p0, p1 = _same_shape(p0, p1)
    return 0.5 * np.mean((p0 / range - p1 / range) ** 2)


def psnr(p0: ArrayLike, p1: ArrayLike, peak: float = 255.0) -> np.floating:
    """The peak signal-to-noise ratio in dB of two images of one shape; infinite for equal images.

    Args:
        p0, p1: the images.
        peak: the largest value that an image can have.
    """
    p0, p1 = _same_shape(p0, p1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / np.mean((1.0 * p0 - 1.0 * p1) ** 2))


def dssim(p0: ArrayLike, p1: ArrayLike, range: float = 255.0) -> np.floating:
    """(1 - SSIM) / 2 of two images [H, W, C] whose values span `range`, with sides of at least 7 pixels.

    scikit-image computes the SSIM of windows of 7 x 7, averaged over pixels and channels. The function of `lpips` works
    with scikit-image before 0.18 only.
    """
    p0, p1 = _same_shape(p0, p1)
    ssim = _scikit_image().metrics.structural_similarity(p0, p1, data_range=range, channel_axis=-1)
    return (1 - ssim) / 2.0


def rgb2lab(input: np.ndarray) -> np.ndarray:
    """An RGB image [H, W, 3] in [0, 255] in CIELAB (D65), float64."""
    return _scikit_image().color.rgb2lab(input / 255.0)


def tensor2np(tensor_obj: Tensor) -> np.ndarray:
    """The first image of a batch [N, C, H, W] as a float32 array [H, W, C] with the same values."""
    if not isinstance(tensor_obj, Tensor) or tensor_obj.dim() != 4:
        raise ValueError(f"tensor_obj must be a tensor [N, C, H, W], got {_kind(tensor_obj)}")
    return tensor_obj[0].detach().cpu().float().numpy().transpose(1, 2, 0)


def np2tensor(np_obj: np.ndarray) -> Tensor:
    """An array [H, W, C] as a float32 tensor [1, C, H, W] with the same values."""
    if not isinstance(np_obj, np.ndarray) or np_obj.ndim != 3:
        raise ValueError(f"np_obj must be an array [H, W, C], got {_kind(np_obj)}")
    return torch.from_numpy(np_obj.astype(np.float32).transpose(2, 0, 1)[None].copy())


def tensor2vec(vector_tensor: Tensor) -> np.ndarray:
    """Vectors [N, C, 1, 1] as an array [N, C]."""
    if not isinstance(vector_tensor, Tensor) or vector_tensor.dim() != 4:
        raise ValueError(f"vector_tensor must be a tensor [N, C, 1, 1], got {_kind(vector_tensor)}")
    return vector_tensor.detach().cpu().numpy()[:, :, 0, 0]


def tensor2tensorlab(image_tensor: Tensor, to_norm: bool = True, mc_only: bool = False) -> Tensor:
    """The first image of a batch [N, 3, H, W] in [-1, 1], in steps of 1/255, in CIELAB (D65), [1, 3, H, W].

    Args:
        image_tensor: RGB.
        to_norm: whether to return (L - 50) / 100, a / 100 and b / 100.
        mc_only: whether to return L - 50, a and b, whatever `to_norm` is.
    """
    lab = _scikit_image().color.rgb2lab(tensor2im(image_tensor))
    if to_norm or mc_only:
        lab[:, :, 0] -= 50
    return np2tensor(lab / 100.0 if to_norm and not mc_only else lab)


def tensorlab2tensor(lab_tensor: Tensor, return_inbnd: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The first of CIELAB images [N, 3, H, W], as `tensor2tensorlab` returns them, in RGB in [-1, 1], [1, 3, H, W].

    Args:
        lab_tensor: (L - 50) / 100, a / 100 and b / 100. Colours outside RGB are clipped.
        return_inbnd: whether to return a mask [1, 1, H, W], too: 1 where clipping changed no CIELAB value by more than
            about 2, else 0.
    """
    color = _scikit_image().color
    lab = tensor2np(lab_tensor) * 100.0
    lab[:, :, 0] += 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image warns of colours that it clips
        rgb = 255.0 * np.clip(color.lab2rgb(lab.astype(np.float64)), 0, 1)
    image = im2tensor(rgb)
    if not return_inbnd:
        return image
    inside = np.isclose(color.rgb2lab(rgb.astype(np.uint8)), lab, atol=2.0)
    return image, np2tensor(inside.all(axis=2, keepdims=True))


class FakeNet(nn.Module):
    """The base of `L2` and `DSSIM`, distances without a network that are called like one.

    Args:
        use_gpu: has no effect: the distances are on the images' device.
        colorspace: 'Lab' or 'RGB'.

    Raises:
        ValueError: colorspace is another.
    """

    def __init__(self, use_gpu: bool = True, colorspace: str = "Lab") -> None:
        super().__init__()
        check_choice("colorspace", colorspace, ("Lab", "RGB"))
        self.use_gpu = use_gpu
        self.colorspace = colorspace


class L2(FakeNet):
    """The mean squared difference of images, RGB in [-1, 1], or half that of CIELAB values divided by 100."""

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: object = None) -> Tensor:
        """The distances [N] of images [N, 3, H, W] in [-1, 1]; differentiable with colorspace 'RGB'."""
        if self.colorspace == "RGB":
            return ((in0 - in1) ** 2).mean(dim=(1, 2, 3))
        return _each(in0, in1, lambda x0, x1: l2(_lab(x0), _lab(x1), range=100.0))


class DSSIM(FakeNet):
    """(1 - SSIM) / 2 of images in RGB, or in CIELAB, whose values are taken to span 100, as `dssim`."""

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: object = None) -> Tensor:
        """The distances [N] of images [N, 3, H, W] in [-1, 1]; not differentiable."""
        if self.colorspace == "RGB":
            return _each(in0, in1, lambda x0, x1: dssim(1.0 * tensor2im(x0), 1.0 * tensor2im(x1)))
        return _each(in0, in1, lambda x0, x1: dssim(_lab(x0), _lab(x1), range=100.0))


def print_network(net: nn.Module) -> None:
    """Prints a module and how many parameters it has."""
    print("Network", net)
    print(f"Total number of parameters: {sum(p.numel() for p in net.parameters())}")


def _load_data(data_loader: Any, name: str) -> Iterable[Any]:
    if not hasattr(data_loader, "load_data"):
        raise TypeError(
            f"data_loader must have load_data(), as lpips's own loaders, got {type(data_loader).__name__}; "
            "for folders laid out as BAPPS use lpips_fast.bapps.evaluate"
        )
    return tqdm(data_loader.load_data(), desc=name)


def _columns(batches: Iterable[tuple[Any, ...]], n: int) -> list[np.ndarray]:
    """Batches of n values, each a tensor, as n arrays [samples] of float64."""
    columns: list[list[Tensor]] = [[torch.zeros(0, dtype=torch.float64)] for _ in range(n)]
    with torch.no_grad():
        for batch in batches:
            for column, values in zip(columns, batch, strict=True):
                column.append(torch.as_tensor(values).flatten().double().cpu())
    return [torch.cat(column).numpy() for column in columns]


def _each(in0: Tensor, in1: Tensor, distance: Callable[[Tensor, Tensor], Any]) -> Tensor:
    """The distances [N] of the pairs of two batches, in float32 on the device of in0."""
    pairs = zip(in0.detach().split(1), in1.detach().split(1), strict=True)
    return torch.tensor([float(distance(x0, x1)) for x0, x1 in pairs], device=in0.device)


def _lab(image: Tensor) -> np.ndarray:
    return tensor2np(tensor2tensorlab(image, to_norm=False))


def _same_shape(p0: ArrayLike, p1: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p0, p1 = np.asarray(p0), np.asarray(p1)
    if p0.shape != p1.shape:
        raise ValueError(f"p0 and p1 must have one shape, got {list(p0.shape)} and {list(p1.shape)}")
    return p0, p1


def _kind(given: object) -> str:
    shape = f" {list(given.shape)}" if isinstance(given, np.ndarray | Tensor) else ""
    return f"{type(given).__name__}{shape}"


def _scikit_image() -> ModuleType:
    try:
        import skimage.color
        import skimage.metrics
    except ImportError as error:
        raise ImportError("CIELAB and SSIM need scikit-image: pip install 'lpips_fast[skimage]'") from error
    return skimage
