"""Images to and from tensors, with the names and conventions of `lpips`."""

from __future__ import annotations

from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def load_image(path: str | PathLike[str]) -> np.ndarray:
    """Reads an image file as RGB, uint8 [H, W, 3], turned as its EXIF orientation says.

    Raises:
        OSError: there is no such file, or it is no image that Pillow reads.
    """
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def im2tensor(image: np.ndarray, imtype: type = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0) -> Tensor:
    """An image [H, W, 3] in [0, 255] as a float32 tensor [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy((image / factor - cent).astype(np.float32).transpose(2, 0, 1)[None].copy())


def tensor2im(image_tensor: Tensor, imtype: type = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0) -> np.ndarray:
    """The first image of a batch [N, 3, H, W] in [-1, 1] as an array [H, W, 3] in [0, 255], truncated to `imtype`."""
    image = image_tensor[0].detach().cpu().float().numpy()
    return ((np.transpose(image, (1, 2, 0)) + cent) * factor).astype(imtype)
