"""Changes to the layers of LPIPS, ours or lpips's, after construction."""

from __future__ import annotations

from torch import nn


def average_pools(fn):
    for slice_ in fn.net.children():
        for name, layer in slice_.named_children():
            if isinstance(layer, nn.MaxPool2d):
                slice_[int(list(slice_._modules).index(name))] = nn.AvgPool2d(layer.kernel_size, layer.stride)


def without_bias(fn):
    fn.net.slice1[0].bias = None


def no_scaling(fn):
    fn.scaling_layer = nn.Identity()


def hook_on_the_scaling(fn):
    fn.scaling_layer.register_forward_hook(lambda module, args, out: out * 0.5)


def hook_on_a_linear_layer(fn):
    fn.lins[2].register_forward_hook(lambda module, args, out: out * 3)


def another_linear_layer(fn):
    fn.lins[0] = nn.Sequential(nn.Conv2d(64, 1, 1), nn.Softplus())
    nn.init.constant_(fn.lins[0][0].weight, 0.1)
    nn.init.constant_(fn.lins[0][0].bias, 0.1)


def hook_in_the_trunk(fn):
    fn.net.slice2[-2].register_forward_hook(lambda module, args, out: out + 0.1)


class Features(nn.Module):
    """A trunk of somebody's own."""

    def __init__(self, net):
        super().__init__()
        self.first = net.slice1

    def forward(self, x):
        return [self.first(x).repeat(1, n, 1, 1) for n in (1, 3, 6, 4, 4)]


def other_trunk(fn):
    fn.net = Features(fn.net)
