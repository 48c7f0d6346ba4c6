"""Optimises an image until LPIPS finds it like a target, whose features are computed only once.

python examples/optimize_image.py TARGET.png -o found.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from lpips_fast import LPIPS, im2tensor, load_image, tensor2im


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("found.png"))
    parser.add_argument("--net", default="vgg", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--trunk-weights", type=Path, help="a weights file with torchvision's names")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loss = LPIPS(net=args.net, trunk_weights=args.trunk_weights).to(device)
    target = im2tensor(load_image(args.target)).to(device)
    features = loss.features(target)
    image = torch.zeros_like(target, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=args.lr)
    bar = tqdm(range(args.steps))
    for step in bar:
        distance = loss(image, features).mean()
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        with torch.no_grad():
            image.clamp_(-1, 1)
        if step % 10 == 0:
            bar.set_postfix(lpips=f"{distance.item():.4f}")
    Image.fromarray(tensor2im(image)).save(args.out)


if __name__ == "__main__":
    main()
