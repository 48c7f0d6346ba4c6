#!/usr/bin/env bash
# torch-fidelity 0.4.0: the perceptual path length (PPL) of a generator, by the default settings, measures the rounding of
# pixels.
#
# PPL is the LPIPS of the pictures of two latents that are epsilon apart, divided by epsilon^2. Once epsilon is small it does
# not depend on it. By default the pictures must be uint8 (ppl_sample_similarity_dtype), and epsilon is 1e-4 (ppl_epsilon).
# Between two such pictures a pixel changes by a small part of one of the 256 levels, so in uint8 it either stays as it is or
# jumps by a whole level. These jumps are what LPIPS sees. With a smooth generator the result is some hundred times that of
# the same pictures in float32, and falls with 1 / epsilon; from epsilon 0.1 on both types agree. In float32 the result is
# the same for every epsilon.
#
# One would expect: a default with which the result is that of the generator. StyleGAN's own code, which the metric is
# inspired by, has epsilon 1e-4 and pictures in float32.
#
# The trunk's and the linear weights are stood in for by random and by equal ones, which makes no difference to the behaviour.
# The discarding of percentiles is switched off: with numpy 2.4 or later the default call raises the TypeError of the last
# line.
#
# Output seen (Python 3.11, Linux x86-64, CPU); the script compares with these lines. The ratios seen were 300, 20, 2 and 1:
#
# | torch-fidelity 0.4.0, torch 2.14.1, numpy 2.4.6
# | PPL of float32 pictures: the largest of four epsilons is less than 1.5 times the smallest: True
# | PPL of uint8 pictures divided by PPL of float32 pictures
# |   epsilon 0.0001: more than 100
# |   epsilon 0.001: more than 10
# |   epsilon 0.01: more than 1.4
# |   epsilon 0.1: within 10 %
# | default percentiles: TypeError: percentile() got an unexpected keyword argument 'interpolation'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# | //p' "${BASH_SOURCE[0]}" >"$work/expected"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch-fidelity==0.4.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6  # 5 GB

cd "$work"
venv/bin/python -W ignore - >seen <<'PY'
import numpy
import torch
import torchvision

torch.manual_seed(0)
vgg16 = torchvision.models.vgg16()
torchvision.models.vgg16 = lambda **options: vgg16
CHANNELS = (64, 128, 256, 512, 512)
linear = {f"lin{k}.model.1.weight": torch.full((1, c, 1, 1), 1 / c) for k, c in enumerate(CHANNELS)}
torch.hub.load_state_dict_from_url = lambda *args, **options: linear

import torch_fidelity


class Generator(torch.nn.Module):
    """Smooth pictures in [0, 255] of latents of length 8."""

    def __init__(self, rounds):
        super().__init__()
        self.rounds = rounds
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(8, 3 * 16 * 16, generator=generator) / 8**0.5)

    def forward(self, z):
        pictures = 255 * torch.sigmoid((z @ self.weight).view(-1, 3, 16, 16))
        pictures = torch.nn.functional.interpolate(pictures, (64, 64), mode="bilinear")
        return pictures.round().to(torch.uint8) if self.rounds else pictures


def path_length(dtype, epsilon, **options):
    generator = torch_fidelity.GenerativeModelModuleWrapper(Generator(dtype == "uint8"), 8, "normal", 0)
    return torch_fidelity.calculate_metrics(
        input1=generator,
        input1_model_num_samples=64,
        batch_size=32,
        cuda=False,
        verbose=False,
        ppl=True,
        ppl_epsilon=epsilon,
        ppl_sample_similarity_dtype=dtype,
        **options,
    )["perceptual_path_length_mean"]


version = torch.__version__.split("+")[0]
print(f"torch-fidelity {torch_fidelity.__version__}, torch {version}, numpy {numpy.__version__}")
every = {"ppl_discard_percentile_lower": None, "ppl_discard_percentile_higher": None}
EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1)
plain = [path_length("float32", epsilon, **every) for epsilon in EPSILONS]
print("PPL of float32 pictures: the largest of four epsilons is less than 1.5 times the smallest:", end=" ")
print(max(plain) < 1.5 * min(plain))
print("PPL of uint8 pictures divided by PPL of float32 pictures")
for epsilon, expected, least in zip(EPSILONS, plain, (100, 10, 1.4, None)):
    ratio = path_length("uint8", epsilon, **every) / expected
    if least is None:
        said = "within 10 %" if 0.9 < ratio < 1.1 else f"{ratio}"
    else:
        said = f"more than {least:g}" if ratio > least else f"{ratio}"
    print(f"  epsilon {epsilon:g}: {said}")
try:
    print("default percentiles:", path_length("uint8", 1e-4))
except TypeError as error:
    print("default percentiles: TypeError:", error)
PY
diff -u expected seen
echo "As described."
