"""`lpips-fast dirs` on pairs of files against the script of lpips 0.1.4, which takes a pair at a time; whole processes.

    python -m benchmarks.dirs [--pairs 500 --size 256 --net alex --json dirs.jsonl]
    python -m benchmarks.dirs --memory --pairs 10000 --size 64

`reference` is lpips_2dirs.py as it is, except that it reads with Pillow, like lpips_fast, instead of OpenCV: it reads
both files, runs a forward with a graph, and prints. Both have the same weights: ImageNet's or, without them, random
ones. The two take turns. The run fails unless every distance agrees to 1e-4 relative.

--memory measures instead the memory of one `lpips-fast dirs` that reads in its own process: after the first thousand
pairs, and the most from then on.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import lpips_fast
from lpips_fast.bench.records import Run, append
from lpips_fast.bench.timing import Clock, interleaved


def write_images(folder, pairs, size):
    rng = np.random.default_rng(0)
    for side in ("a", "b"):
        (folder / side).mkdir()
    for i in range(pairs):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((size, size))
        noisy = np.asarray(coarse) + rng.normal(0, 10, (size, size, 3))
        coarse.save(folder / "a" / f"{i:05}.png")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "b" / f"{i:05}.png")


def reference(folder, net, state):
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
        fn = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    fn.load_state_dict(torch.load(state))
    distances = {}
    for path in sorted((folder / "a").iterdir()):
        in0, in1 = (lpips.im2tensor(lpips_fast.load_image(folder / side / path.name)) for side in ("a", "b"))
        distances[path.name] = fn.forward(in0, in1).item()
        print(f"{path.name}: {distances[path.name]:.3f}")
    (folder / "reference.json").write_text(json.dumps(distances))


def link_images(folder, pairs, size):
    """Writes few files and gives them many names."""
    few = 50
    write_images(folder, few, size)
    for i in range(few, pairs):
        for side in ("a", "b"):
            (folder / side / f"{i:05}.png").hardlink_to(folder / side / f"{i % few:05}.png")


def memory(ours, pairs):
    """MiB in use after 1000 pairs, and the most after that."""
    found = Path(ours[-1])
    after_1000 = most = 0.0
    process = subprocess.Popen(ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.05)
        done = found.read_text().count("\n") - 1 if found.exists() else 0
        try:
            resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / 2**20
        except (OSError, IndexError):
            break
        if done >= 1000:
            after_1000 = after_1000 or resident
            most = max(most, resident)
    if process.wait() or found.read_text().count("\n") - 1 != pairs:
        raise SystemExit(f"lpips-fast dirs ended with {process.returncode}")
    return {"MiB_after_1000_pairs": round(after_1000, 1), "MiB_at_most_after": round(most, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--net", default="alex", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to append the record to")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reference:
        reference(Path(args.reference[0]), args.net, args.reference[1])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (link_images if args.memory else write_images)(folder, args.pairs, args.size)
        try:
            fn = lpips_fast.LPIPS(net=args.net, verbose=False)
        except RuntimeError:
            fn = lpips_fast.LPIPS(net=args.net, pnet_rand=True)
        torch.save(fn.state_dict(), folder / "state.pth")
        trunk = {".".join(k.split(".")[1:]): v for k, v in fn.net.state_dict().items()}
        torch.save(trunk, folder / "trunk.pth")
        script = [sys.executable, "-m", "benchmarks.dirs", "--net", args.net]
        script += ["--reference", str(folder), str(folder / "state.pth")]
        found = folder / "ours.json"
        ours = [sys.executable, "-m", "lpips_fast", "dirs", str(folder / "a"), str(folder / "b"), "--net", args.net]
        ours += ["--trunk-weights", str(folder / "trunk.pth")]
        cpu = torch.device("cpu")
        if args.memory:
            ours += ["--workers", "0", "--csv", str(folder / "ours.csv")]
            record = {"net": args.net, "pairs": args.pairs, "size": args.size, **memory(ours, args.pairs)}
            report(record, args.json, cpu)
            return
        ours += ["--json", str(found)]
        processes = {
            name: functools.partial(subprocess.run, command, check=True, capture_output=True)
            for name, command in (("reference", script), ("lpips-fast dirs", ours))
        }
        setups = {name: functools.partial(functools.partial, process) for name, process in processes.items()}
        seconds, failures = interleaved(setups, Clock(cpu), args.repeats)
        if failures:
            raise SystemExit(f"failed: {failures}")
        expected = json.loads((folder / "reference.json").read_text())
        for row in json.loads(found.read_text())["results"]:
            key = Path(row["name"]).name
            if not abs(row["lpips"] - expected[key]) <= 1e-4 * expected[key] + 1e-6:
                raise SystemExit(f"{key}: {row['lpips']}, the reference has {expected[key]}")
    record = {
        "net": args.net,
        "pairs": args.pairs,
        "size": args.size,
        "reference_s": seconds["reference"],
        "ours_s": seconds["lpips-fast dirs"],
        "times_faster": seconds["reference"].median / seconds["lpips-fast dirs"].median,
    }
    report(record, args.json, cpu)


def report(record, path, device):
    print(json.dumps(record, indent=1))
    if path:
        append(path, {**record, **Run(device).context})


if __name__ == "__main__":
    main()
