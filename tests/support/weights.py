"""Linear weights as files have them."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

CHANNELS = {
    "alex": [64, 192, 384, 256, 256],
    "vgg": [64, 128, 256, 512, 512],
    "squeeze": [64, 128, 256, 384, 384, 512, 512],
}


def linear_state(net="alex", index=1):
    """A state_dict of random linear layers, with lpips's names; `index` is 1 with dropout and 0 without."""
    return {f"lin{k}.model.{index}.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(CHANNELS[net])}


def saved(state, path):
    """The path, after saving the state_dict to it in the format that its suffix names."""
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def without(state, name):
    """The state_dict without the tensor of that name."""
    return {key: tensor for key, tensor in state.items() if key != name}
