"""Trains a small autoencoder with L1 + LPIPS on drawn images: progress bar, TensorBoard, checkpoints, resume, DDP.

    python examples/train_autoencoder.py --out runs/autoencoder
    torchrun --nproc-per-node 2 examples/train_autoencoder.py --out runs/autoencoder
    tensorboard --logdir runs

Run it again with the same --out, and it goes on from the last checkpoint. With several processes each takes a share of
every batch, and the gradients are those of one process with the whole batch.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lpips_fast import LPIPS


class Autoencoder(nn.Module):
    """Takes images [N, 3, H, W] in [-1, 1] down to an eighth of their size, and back to such images."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        down, up = [], []
        channels = [3, width, 2 * width, 4 * width]
        for a, b in itertools.pairwise(channels):
            down += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.SiLU()]
            up = [nn.SiLU(), nn.ConvTranspose2d(b, a, 4, stride=2, padding=1), *up]
        self.model = nn.Sequential(*down, nn.Conv2d(channels[-1], channels[-1], 1), *up, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def draw_images(count: int, size: int, seed: int) -> Tensor:
    """Draws images [count, 3, size, size] in [-1, 1]: discs and stripes, the same ones for the same seed."""
    gen = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle, frequency, phase = (
        torch.rand(3, count, 1, 1, generator=gen) * torch.tensor([3.14, 12, 6.28])[:, None, None, None]
    )
    stripes = torch.sin((3 + frequency) * (x * angle.cos() + y * angle.sin()) + phase)
    colours = torch.rand(2, count, 3, 1, 1, generator=gen) * 2 - 1
    images = colours[0] * stripes[:, None]
    for _ in range(3):
        cx, cy, radius = torch.rand(3, count, 1, 1, generator=gen) * torch.tensor([2.0, 2.0, 0.5])[:, None, None, None]
        disc = ((x - cx + 1) ** 2 + (y - cy + 1) ** 2 < radius**2)[:, None]
        images = torch.where(disc, torch.rand(count, 3, 1, 1, generator=gen) * 2 - 1, images)
    return images


def save_atomically(state: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        torch.save(state, file)
    os.replace(file.name, path)


def make_loss(net: str, device: torch.device) -> LPIPS:
    """Makes an LPIPS whose memory does not grow with the batch.

    If ImageNet's weights cannot be had, it prints why and makes one with a random trunk.
    """
    options = {"net": net, "grad_in_forward": True, "chunk_size": "auto"}
    try:
        return LPIPS(**options).to(device)
    except RuntimeError as error:
        print(f"{error}\nGoing on with a random trunk: the example runs, but this is no perceptual loss.")
        return LPIPS(**options, pnet_rand=True).to(device)


def train(args: argparse.Namespace) -> None:
    from torch.utils.tensorboard import SummaryWriter

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    if args.batch_size % world:
        raise SystemExit(f"--batch-size must be a multiple of the number of processes, {world}, got {args.batch_size}")

    torch.manual_seed(args.seed)
    model = Autoencoder().to(device)
    perceptual = make_loss(args.net, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    checkpoint = args.out / "checkpoint.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    parallel = DistributedDataParallel(model) if world > 1 else model
    writer = SummaryWriter(str(args.out), purge_step=start) if rank == 0 else None

    share = args.batch_size // world
    for step in tqdm(range(start, args.steps), initial=start, total=args.steps, disable=None if rank == 0 else True):
        # The batch depends only on the step, so a resumed run sees the same batches as an uninterrupted one.
        batch = draw_images(args.batch_size, args.size, seed=args.seed + step)[rank * share : (rank + 1) * share].to(
            device
        )
        made = parallel(batch)
        l1, lpips = F.l1_loss(made, batch), perceptual(made, batch, reduction="mean")
        optimizer.zero_grad(set_to_none=True)
        (l1 + args.weight * lpips).backward()
        optimizer.step()

        last = step + 1 == args.steps
        if writer is not None and (step % args.log_every == 0 or last):
            writer.add_scalar("loss/l1", l1, step)
            writer.add_scalar("loss/lpips", lpips, step)
            writer.add_images("input above, output below", torch.cat((batch[:4], made[:4].detach()), 2) / 2 + 0.5, step)
        if rank == 0 and ((step + 1) % args.save_every == 0 or last):
            save_atomically(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint
            )
    if writer is not None:
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/autoencoder"), help="folder of checkpoint and logs")
    parser.add_argument("--net", default="alex", choices=("alex", "vgg", "squeeze"), help="LPIPS's trunk")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16, help="images a step, over all processes")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images, a multiple of 8")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight", type=float, default=0.5, help="weight of LPIPS; L1 has 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=20, help="steps between logs")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    args = parser.parse_args()

    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
