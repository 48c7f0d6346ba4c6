"""From two distances to the probability of a judgement (2AFC), for learning the linear weights.

As in `lpips`, a small network takes (d0, d1, d0 - d1, d0 / (d1 + eps), d1 / (d0 + eps)) and is trained by
cross-entropy. (Zhang et al., CVPR 2018, arXiv:1801.03924, section 3 and appendix.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dist2LogitLayer(nn.Module):
    """The probability that people prefer image 1, from the distances of images 0 and 1 to the reference.

    Args:
        chn_mid: width of the two hidden layers.
        use_sigmoid: whether the result is a probability instead of its logit.
    """

    def __init__(self, chn_mid: int = 32, use_sigmoid: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(5, chn_mid, 1), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(chn_mid, chn_mid, 1), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(chn_mid, 1, 1)]
        if use_sigmoid:
            layers += [nn.Sigmoid()]
        self.model = nn.Sequential(*layers)

    def forward(self, d0: Tensor, d1: Tensor, eps: float = 0.1) -> Tensor:
        """The probabilities [N, 1, H, W] for distances d0 and d1 of that shape."""
        return self.model(torch.cat((d0, d1, d0 - d1, d0 / (d1 + eps), d1 / (d0 + eps)), dim=1))


class BCERankingLoss(nn.Module):
    """Binary cross-entropy between judgements and the probabilities that `Dist2LogitLayer` gives.

    Args:
        chn_mid: width of its hidden layers.
    """

    def __init__(self, chn_mid: int = 32) -> None:
        super().__init__()
        self.net = Dist2LogitLayer(chn_mid=chn_mid)
        self.loss = nn.BCELoss()

    def forward(self, d0: Tensor, d1: Tensor, judge: Tensor) -> Tensor:
        """The mean loss. `judge` is -1 where everybody preferred image 0, and 1 where everybody preferred image 1."""
        self.logit = self.net(d0, d1)
        return self.loss(self.logit, (judge + 1.0) / 2.0)
