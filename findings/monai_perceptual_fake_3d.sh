#!/usr/bin/env bash
# monai 1.6.1: PerceptualLoss of volumes (spatial_dims=3, is_fake_3d=True) is the sum of three losses where its documentation
# has their average, and NaN where fake_3d_ratio leaves no slice.
#
# The class documents: "we calculate the 2D perceptual loss on slices from all three axes and average". The losses of an axis'
# slices are averaged, those of the three axes are added. So the loss of a volume is three times the average, and a weight
# that was chosen with images is three times too large for volumes.
#
# Of each axis int(batch * slices * fake_3d_ratio) slices are taken. Where this is 0 for one axis, the mean of nothing is NaN,
# and so is the loss, without an error or a warning. Its gradient lacks that axis (it is 0 where no axis has a slice).
#
# One would expect: the average; and at least one slice, or an error.
#
# The trunk's weights are stood in for by random ones, which makes no difference to the behaviour.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines:
#
# | monai 1.6.1, lpips 0.1.4, torch 2.14.1
# | volumes of 40 x 40 x 40, all slices: loss / average of the three axes = 3.00
# | volumes of 40 x 40 x 40, fake_3d_ratio 0.02: loss nan, gradient 0 throughout: True
# | volumes of 20 x 40 x 40, fake_3d_ratio 0.04: loss nan, gradient 0 throughout: False
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet monai==1.6.1 lpips==0.1.4 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
from importlib.metadata import version

import torch
import torchvision

torch.manual_seed(0)
squeezenet = torchvision.models.squeezenet1_1()
torchvision.models.squeezenet1_1 = lambda **options: squeezenet

from monai.losses import PerceptualLoss

print(", ".join(f"{name} {version(name).split('+')[0]}" for name in ("monai", "lpips", "torch")))


def volumes(*shape):
    first = 2 * torch.rand(1, 1, *shape) - 1
    return first, (first + 0.2 * torch.randn_like(first)).clamp(-1, 1)


first, second = volumes(40, 40, 40)
loss_fn = PerceptualLoss(spatial_dims=3, network_type="squeeze", fake_3d_ratio=1.0)
images = PerceptualLoss(spatial_dims=2, network_type="squeeze")
axes = [images(*(x[0, 0].movedim(axis, 0)[:, None] for x in (first, second))) for axis in range(3)]
ratio = (loss_fn(first, second) / torch.stack(axes).mean()).item()
print(f"volumes of 40 x 40 x 40, all slices: loss / average of the three axes = {ratio:.2f}")

for shape, ratio in (((40, 40, 40), 0.02), ((20, 40, 40), 0.04)):
    first, second = volumes(*shape)
    first.requires_grad_()
    loss = PerceptualLoss(spatial_dims=3, network_type="squeeze", fake_3d_ratio=ratio)(first, second)
    (gradient,) = torch.autograd.grad(loss, first)
    said = f"loss {loss.item()}, gradient 0 throughout: {bool((gradient == 0).all())}"
    print(f"volumes of {' x '.join(map(str, shape))}, fake_3d_ratio {ratio}: {said}")
PY
diff -u expected seen
echo "As described."
