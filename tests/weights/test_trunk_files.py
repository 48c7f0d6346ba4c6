"""Files of trunk weights under TORCH_HOME: which is taken, where it comes from, and what is there after a failure."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file

import lpips_fast
from lpips_fast.trunk.nets import NETS
from lpips_fast.weights import package_index, trunk_files
from lpips_fast.weights.files import fingerprint
from tests.support.images import pair
from tests.support.raises import raises
from tests.support.weights import saved

OWN = {"alex": "lpips_fast_alexnet_features.safetensors", "vgg": "lpips_fast_vgg16_features.safetensors"}
THEIRS = {net: Path(spec.url).name for net, spec in NETS.items()}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where torch keeps downloads; it is not there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def sources(monkeypatch, trunk_states):
    """What was fetched from the two sources; `unreachable` has those that fail."""

    sources = SimpleNamespace(asked=[], unreachable=set())

    def ask(source):
        sources.asked.append(source)
        if source in sources.unreachable:
            raise URLError(f"no way to {source}")

    def download(url, path, sha256, progress):
        ask("torchvision")
        assert path.name == Path(url).name
        assert f"-{sha256}." in url
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"torchvision's")

    def fetch(progress):
        ask("package-index")
        alex = {name.removeprefix("features."): tensor for name, tensor in trunk_states["alex"].items()}
        return {"alex": alex, "vgg": {"0.bias": torch.ones(3)}}

    monkeypatch.setattr(trunk_files, "download", download)
    monkeypatch.setattr(package_index, "fetch", fetch)
    return sources


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("source", ("auto", "torchvision", "package-index"))
@pytest.mark.parametrize("net", NETS)
def test_what_is_there_is_taken(folder, sources, net, source):
    """Torchvision's file before our own."""
    folder.mkdir(parents=True)
    assert trunk_files.find(net) is None
    for name in (OWN.get(net), THEIRS[net]):
        if name is not None:
            (folder / name).touch()
            assert trunk_files.find(net) == folder / name
            assert trunk_files.provide(net, source, progress=False) == folder / name
    assert sources.asked == []


@pytest.mark.parametrize(
    "net,source,asked",
    (
        ("alex", "auto", "package-index"),
        ("vgg", "auto", "package-index"),
        ("squeeze", "auto", "torchvision"),
        ("alex", "torchvision", "torchvision"),
        ("vgg", "torchvision", "torchvision"),
        ("alex", "package-index", "package-index"),
        ("vgg", "package-index", "package-index"),
    ),
)
def test_sources(folder, sources, net, source, asked):
    """A package index gives both nets, and both are kept."""
    path = trunk_files.provide(net, source, progress=False)
    assert path == folder / (THEIRS if asked == "torchvision" else OWN)[net] == trunk_files.find(net)
    assert files(folder) == ([THEIRS[net]] if asked == "torchvision" else sorted(OWN.values()))
    assert trunk_files.provide(net, source, progress=False) == path
    assert sources.asked == [asked]


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_auto_goes_on_with_torchvision(folder, sources, net, capsys):
    """It says so, and why: the download is larger."""
    sources.unreachable = {"package-index"}
    assert trunk_files.provide(net) == folder / THEIRS[net]
    assert sources.asked == ["package-index", "torchvision"]
    out, err = capsys.readouterr()
    assert "no way to package-index" in err
    assert "Going on with torchvision" in err
    assert out == ""


def test_what_check_finds(folder, sources, monkeypatch):
    """Our own file, if it is the one that is taken, has the published values."""
    trunk_files.check("alex")
    path = trunk_files.provide("alex", "package-index", progress=False)
    with raises(RuntimeError, str(path), "other weights", "delete it"):
        trunk_files.check("alex")
    state = load_file(path)
    monkeypatch.setattr(package_index, "FINGERPRINTS", {"alex": fingerprint(state[name] for name in sorted(state))})
    trunk_files.check("alex")
    path.write_bytes(path.read_bytes()[:99999])
    with raises(RuntimeError, str(path), "cannot be read", "deleted"):
        trunk_files.check("alex")
    (folder / THEIRS["alex"]).write_bytes(b"torchvision's")
    trunk_files.check("alex")


@pytest.mark.parametrize("net", OWN)
def test_the_published_weights(real_trunk, monkeypatch, net):
    """What `provide` has made is what `check` expects."""
    path = real_trunk(net)
    if path.name != OWN[net]:
        pytest.skip("torchvision's own file is there")
    monkeypatch.setenv("TORCH_HOME", str(path.parents[2]))
    trunk_files.check(net)


def test_weights_that_were_there_stay(folder, sources):
    """The archive's other net replaces nothing, and is no second copy of torchvision's."""
    folder.mkdir(parents=True)
    (folder / THEIRS["alex"]).write_bytes(b"of the user")
    trunk_files.provide("vgg", "package-index", progress=False)
    assert files(folder) == sorted([THEIRS["alex"], OWN["vgg"]])
    assert (folder / THEIRS["alex"]).read_bytes() == b"of the user"
    (folder / OWN["vgg"]).write_bytes(b"of the user")
    (folder / THEIRS["alex"]).unlink()
    trunk_files.provide("alex", "package-index", progress=False)
    assert (folder / OWN["vgg"]).read_bytes() == b"of the user"


def test_lpips_takes_them(folder, sources, make_ours, trunk_states):
    """LPIPS itself asks no package index."""
    sources.unreachable = {"torchvision"}
    with raises(RuntimeError, "'alex'", "lpips-fast weights --net alex"):
        lpips_fast.LPIPS(verbose=False)
    assert sources.asked == ["torchvision"]
    path = trunk_files.provide("alex", progress=False)
    state = load_file(path)
    assert all(torch.equal(state[name.removeprefix("features.")], t) for name, t in trunk_states["alex"].items())
    module = lpips_fast.LPIPS(verbose=False)
    assert torch.equal(module(*pair(1, 35, 35)), make_ours()(*pair(1, 35, 35)))


@pytest.mark.parametrize("damage", (lambda b: b[: len(b) // 2], lambda b: b""), ids=("cut", "empty"))
def test_a_damaged_file(folder, sources, damage):
    """The error names it and says what to do, and that helps."""
    path = trunk_files.provide("alex", "package-index", progress=False)
    path.write_bytes(damage(path.read_bytes()))
    with raises(ValueError, str(path), "cannot be read", "deleted", "lpips-fast weights --net alex"):
        lpips_fast.LPIPS(verbose=False)
    path.unlink()
    trunk_files.provide("alex", "package-index", progress=False)
    lpips_fast.LPIPS(verbose=False)


def test_values_that_are_not_finite(folder, sources, trunk_states):
    folder.mkdir(parents=True)
    state = {name.removeprefix("features."): tensor.clone() for name, tensor in trunk_states["alex"].items()}
    state["3.bias"][0] = torch.nan
    saved(state, folder / OWN["alex"])
    with raises(ValueError, str(folder / OWN["alex"]), "'3.bias'", "NaN"):
        lpips_fast.LPIPS(verbose=False)


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_nothing_can_be_reached(folder, sources, net):
    """The error has both reasons, and only the ways that are left."""
    sources.unreachable = {"torchvision", "package-index"}
    words = (repr(net), str(folder), "no way to torchvision", "no way to package-index")
    with raises(RuntimeError, *words, "(1)", THEIRS[net], NETS[net].url, "trunk_weights=") as caught:
        trunk_files.provide(net, progress=False)
    assert "lpips-fast weights" not in str(caught.value)
    with raises(RuntimeError, "no way to torchvision", f"lpips-fast weights --net {net}") as caught:
        trunk_files.provide(net, "torchvision", progress=False)
    assert "no way to package-index" not in str(caught.value)
    assert files(folder) == []


def test_no_squeeze_in_a_package_index(folder, sources):
    with raises(RuntimeError, "there are no weights of 'squeeze' in a package index", "'alex' and 'vgg'"):
        trunk_files.provide("squeeze", "package-index", progress=False)
    sources.unreachable = {"torchvision"}
    with raises(
        RuntimeError, "no way to torchvision", "there are no weights of 'squeeze' in a package index"
    ) as caught:
        trunk_files.provide("squeeze", progress=False)
    assert "lpips-fast weights" not in str(caught.value)
    assert sources.asked == ["torchvision"]


@pytest.mark.parametrize("net", ("vgg16", "resnet", ""))
def test_unknown_net(folder, net):
    with raises(ValueError, "net", "'alex', 'vgg', 'squeeze'", repr(net)):
        trunk_files.provide(net)


@pytest.mark.parametrize("source", ("pypi", "", None))
def test_unknown_source(folder, source):
    with raises(ValueError, "source", "'auto', 'torchvision', 'package-index'", repr(source)):
        trunk_files.provide("alex", source)


def test_no_room(folder, sources):
    """A limit on the size of files stands for a full disk. The file is there whole or not at all."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with raises(RuntimeError, str(folder / OWN["alex"]), "cannot be written", "too large"):
            trunk_files.provide("alex", "package-index", progress=False)
        sources.asked.clear()
        with raises(RuntimeError, "cannot be kept"):  # torchvision's file is larger
            trunk_files.provide("alex", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sources.asked == ["package-index"]
    assert files(folder) == []
    assert trunk_files.provide("alex", "package-index", progress=False).exists()


def test_no_room_for_the_other_net(folder, sources, monkeypatch):
    """Nobody has asked for it."""
    save = trunk_files.save_state_dict

    def full(path, state):
        if path.name == OWN["vgg"]:
            raise OSError("no room")
        save(path, state)

    monkeypatch.setattr(trunk_files, "save_state_dict", full)
    assert trunk_files.provide("alex", "package-index", progress=False) == folder / OWN["alex"]
    assert files(folder) == [OWN["alex"]]
    with raises(RuntimeError, "'vgg'", "cannot be kept", "no room"):
        trunk_files.provide("vgg", "package-index", progress=False)


def test_a_folder_that_may_not_be_read(folder, sources, monkeypatch):
    """The file system's answer to a question about a file in it; root gets no such answer."""

    def refused(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    folder.mkdir(parents=True)
    monkeypatch.setattr("os.stat", refused)
    assert trunk_files.find("alex") is None


def test_a_folder_that_cannot_be_made(folder, sources, tmp_path):
    (tmp_path / "hub").write_text("a file")
    with raises(RuntimeError, str(tmp_path / "hub"), "package-index: "):
        trunk_files.provide("alex", "package-index", progress=False)
    assert sources.asked == []


def test_several_processes_at_once(folder, tmp_path):
    """One process asks the index, for one net or the other, and all have their file."""
    code = """
import sys, time, torch
from lpips_fast.weights import package_index, trunk_files

def fetch(progress):
    with open(sys.argv[2], "a") as file:
        file.write("fetched ")
    time.sleep(0.5)
    return {"alex": {"0.bias": torch.zeros(3)}, "vgg": {"0.bias": torch.ones(3)}}

package_index.fetch = fetch
print(trunk_files.provide(sys.argv[1], "package-index", progress=False))
"""
    log = tmp_path / "log"
    nets = ("alex", "vgg")
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen([*command, net, str(log)], stdout=subprocess.PIPE, text=True) for net in nets]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [str(folder / OWN[n]) for n in nets]
    assert log.read_text() == "fetched "
    assert files(folder) == sorted(OWN.values())
