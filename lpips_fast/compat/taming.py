"""LPIPS as in taming-transformers and the projects that copied it: CogVideo, latent-diffusion and others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lpips_fast import lpips


class LPIPS(lpips.LPIPS):
    """LPIPS with VGG16, frozen, with taming's signature, its result [N, 1, 1, 1] and the 33 keys of its state_dict.

    In taming, `self.perceptual_loss = LPIPS().eval()` is part of a loss module. The `.train()` of that module switches
    dropout on again, and makes the loss noisy. Here LPIPS stays in eval mode.

    Args:
        use_dropout: dropout before the linear weights, which is applied with `faithful` only.
        faithful: whether `.train()` switches dropout on, as in the original, to reproduce its runs.
        options: keyword arguments of `lpips_fast.LPIPS`: grad_in_forward, precision, trunk_weights, ...

    Raises:
        TypeError, ValueError, RuntimeError: as `lpips_fast.LPIPS`.
    """

    _SAVES_LINS = False

    def __init__(self, use_dropout: bool = True, *, faithful: bool = False, **options: Any) -> None:
        super().__init__(net="vgg", use_dropout=use_dropout, eval_mode=not faithful, **options)
        self.requires_grad_(False)

    def forward(self, input: Tensor, target: Tensor | lpips.Features) -> Tensor:  # type: ignore[override]
        """The distances [N, 1, 1, 1] of images [N, 3, H, W] in [-1, 1]; otherwise as `lpips_fast.LPIPS.forward`."""
        value = super().forward(input, target)
        assert isinstance(value, Tensor)  # only retPerLayer makes it a pair
        return value
