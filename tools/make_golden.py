"""Makes tests/lpips/golden.jsonl: what `lpips` 0.1.4 in float64 computes with ImageNet's weights.

    pip install lpips==0.1.4 && python -m tools.make_golden

The images are squares of the package's own, distorted (tests/support/samples.py). For squares it records the distance,
the parts of the layers, the map, and the gradient to the distorted image; for whole images distance and parts. Maps and
gradients are recorded in blocks, and by their norm. The file has a line for each pair, after one that says which
versions, weights and images they are from.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from lpips_fast.weights import trunk_files
from lpips_fast.weights.files import fingerprint
from lpips_fast.weights.published import VERSIONS, read_trunk_weights
from tests.support.parameters import REAL_NETS
from tests.support.samples import SQUARES, WHOLE, Sample, blocks
from tests.support.theirs import maker

OUT = Path(__file__).resolve().parent.parent / "tests" / "lpips" / "golden.jsonl"


def main() -> None:
    trunks = {}
    for net in REAL_NETS:
        file = trunk_files.provide(net, source="auto", progress=True)
        trunks[net] = read_trunk_weights(net, file, progress=False)
    make = maker(trunks)
    cases = []
    for net in REAL_NETS:
        for version in VERSIONS:
            fn = make(net, torch.float64, version=version)
            cases += [recorded(net, version, sample, fn) for sample in (*SQUARES, *WHOLE)]
    origin = {
        "lpips": importlib.metadata.version("lpips"),
        "torch": torch.__version__,
        "trunks": {net: fingerprint(trunk[name] for name in sorted(trunk)) for net, trunk in trunks.items()},
        "images": {sample.name: fingerprint(sample.pair()) for sample in (*SQUARES, *WHOLE)},
    }
    OUT.write_text("".join(f"{json.dumps(line)}\n" for line in (origin, *cases)))


def recorded(net: str, version: str, sample: Sample, fn: nn.Module) -> dict[str, object]:
    """One pair of images compared by one module."""
    in0, in1 = (image.double() for image in sample.pair())
    in0.requires_grad_(sample in SQUARES)
    value, parts = fn(in0, in1, retPerLayer=True)
    case = {"net": net, "version": version, "sample": sample.name, "value": value.item()}
    case["parts"] = [part.item() for part in parts]
    if in0.requires_grad:
        (gradient,) = torch.autograd.grad(value, in0)
        fn.spatial = True
        case |= {"map": projected(fn(in0.detach(), in1)), "gradient": projected(gradient)}
        fn.spatial = False
    return case


def projected(x: Tensor) -> dict[str, object]:
    return {"blocks": blocks(x).flatten().tolist(), "norm": x.norm().item()}


if __name__ == "__main__":
    main()
