#!/usr/bin/env bash
# torchmetrics 1.9.0: PerceptualPathLength gives another number at each call once .train() was called on it or on a module
# that holds it.
#
# The metric builds its LPIPS network in evaluation mode, but the metric itself says training=True from the start, as any
# new module does. train() on it or on a holder (what each epoch of a training loop does) passes on to the network inside,
# whose layers then apply dropout. From then on the same pictures get another distance each time, around the right one. The
# flag shows nothing: metric.training is True before and after. eval() repairs it.
#
# One would expect: a metric whose value does not depend on the training flag, as with LearnedPerceptualImagePatchSimilarity
# of the same package, whose network stays in evaluation mode when train() is called.
#
# The latents and the generator below are fixed, so each call sees the same pictures. The pretrained weights of the trunk are
# stood in for by random ones (a file in torch's cache folder), which makes no difference to the behaviour. The single
# values depend on the random weights (seen: 0.2311 each time at first, then between 0.226 and 0.235), so the script prints
# what holds of them.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines:
#
# | torchmetrics 1.9.0, torch 2.14.1, torchvision 0.29.1
# | PerceptualPathLength
# |   new:           training True,  different values in 20 calls: 1
# |   after eval():  training False, different values in 20 calls: 1
# |   after train(): training True,  different values in 20 calls: 20
# |     highest more than 1 % above the lowest: True
# |   after eval():  training False, different values in 20 calls: 1
# | LearnedPerceptualImagePatchSimilarity
# |   after train(): training True,  different values in 20 calls: 1
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6  # 5 GB

cd "$work"
export TORCH_HOME="$work/torch_home"
venv/bin/python -W ignore - >seen <<'PY'
import os

import torch
import torchmetrics
import torchvision
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity, PerceptualPathLength

torch.manual_seed(0)
folder = os.path.join(os.environ["TORCH_HOME"], "hub", "checkpoints")
os.makedirs(folder)
name = os.path.basename(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url)
torch.save(torchvision.models.squeezenet1_1().state_dict(), os.path.join(folder, name))


class Generator(torch.nn.Module):
    """Always samples the same two batches of latents, in turn."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3 * 64 * 64)
        self.batches = list(torch.randn(2, 8, 4))

    def forward(self, z):
        return 255 * torch.sigmoid(self.linear(z)).reshape(-1, 3, 64, 64)

    def sample(self, num_samples):
        self.batches.reverse()
        return self.batches[0][:num_samples]


class Holder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = Generator()
        self.path_length = PerceptualPathLength(
            num_samples=8, epsilon=0.1, resize=None, lower_discard=None, upper_discard=None, sim_net="squeeze"
        )
        self.lpips = LearnedPerceptualImagePatchSimilarity(net_type="squeeze")


holder = Holder()
pictures = 2 * torch.rand(2, 4, 3, 64, 64) - 1


def path_length():
    # update() takes the generator alone; both batches are back in their order after compute()
    holder.path_length.update(holder.generator)
    return holder.path_length.compute()[0].item()


def lpips():
    return holder.lpips(*pictures).item()


def show(when, metric, value):
    values = [value() for _ in range(20)]
    print(f"  {when:14} training {str(metric.training) + ',':6} different values in 20 calls: {len(set(values))}")
    return values


version = torch.__version__.split("+")[0], torchvision.__version__.split("+")[0]
print("torchmetrics {}, torch {}, torchvision {}".format(torchmetrics.__version__, *version))
print("PerceptualPathLength")
show("new:", holder.path_length, path_length)
holder.eval()
show("after eval():", holder.path_length, path_length)
holder.train()
noisy = show("after train():", holder.path_length, path_length)
print("    highest more than 1 % above the lowest:", max(noisy) > 1.01 * min(noisy))
holder.eval()
show("after eval():", holder.path_length, path_length)
print("LearnedPerceptualImagePatchSimilarity")
holder.train()
show("after train():", holder.lpips, lpips)
PY
diff -u expected seen
echo "As described."
