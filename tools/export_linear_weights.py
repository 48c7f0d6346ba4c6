"""Makes lpips_fast/weights/linear/*.safetensors and their manifest from the files of the package `lpips` 0.1.4.

    pip install lpips==0.1.4 && python tools/export_linear_weights.py

The files have the linear weights of every net and version, as `lin{k}.model.1.weight` [1, C_k, 1, 1] in float32, equal
to the bit.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "lpips_fast" / "weights" / "linear"


def main() -> None:
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise SystemExit("the package `lpips` is not installed")
    source = Path(spec.origin).parent / "weights"
    origin = f"lpips {importlib.metadata.version('lpips')} on PyPI (richzhang/PerceptualSimilarity)"
    manifest = {}
    for version in ("0.0", "0.1"):
        for net in ("alex", "squeeze", "vgg"):
            original = source / f"v{version}" / f"{net}.pth"
            state = torch.load(original, map_location="cpu", weights_only=True)
            target = OUT / f"{net}_v{version}.safetensors"
            save_file({key: value.contiguous() for key, value in state.items()}, target)
            manifest[target.name] = {
                "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
                "origin": f"{origin}, weights/v{version}/{net}.pth",
                "origin_md5": hashlib.md5(original.read_bytes()).hexdigest(),
                "license": "BSD-2-Clause",
            }
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
