"""Larger checkpoints that hold an LPIPS."""

from __future__ import annotations

import torch


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


# The names of a discriminator and a classifier; piq uses some of them, too.
OTHER_MODELS = {
    "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
    "model.0.weight": torch.zeros(64, 3, 4, 4),
    "loss.discriminator.model.0.weight": torch.zeros(64, 3, 3, 3),
    "loss.discriminator.model.2.weight": torch.zeros(128, 64, 4, 4),
    "num_updates": torch.tensor(3),
}
