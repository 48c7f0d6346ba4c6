"""Broken and hostile files of weights: an error names the file, and no code in the file runs."""

from __future__ import annotations

import argparse
import copyreg
import functools
import io
import json
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn
from typer.testing import CliRunner

import lpips_fast
from lpips_fast.cli import app
from lpips_fast.weights.files import read_state_dict
from tests.support.damage import damaged, outcome
from tests.support.raises import raises
from tests.support.weights import linear_state, saved


def stored(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def spoiled(value: float) -> dict[str, torch.Tensor]:
    state = linear_state()
    state["lin3.model.1.weight"][0, 7] = value
    return state


def with_layer(tensor) -> bytes:
    return stored({**linear_state(), "lin3.model.1.weight": tensor})


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def header(**entry) -> bytes:
    return safetensors(json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}).encode())


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"\x80\x02}q\x00.")
    return buffer.getvalue()


def repacked(content: bytes, copies: int = 1, **options) -> bytes:
    """An archive of torch.save as other programs write it: compressed, or its largest entry listed several times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", **options) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.filelist += [max(target.filelist, key=lambda entry: entry.file_size)] * (copies - 1)
    return buffer.getvalue()


class Raises:
    """Unpickling it calls a function with arguments that the function does not accept."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def with_pickle(code: bytes) -> bytes:
    """An archive of torch.save with this pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(stored({}))) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, code if name.endswith("data.pkl") else source.read(name))
    return buffer.getvalue()


def nested(depth: int, in_itself: bool = False) -> dict:
    """Dicts in dicts, each twice in the one around it: 2^depth ways to the innermost, which may hold the outermost."""
    outermost: dict = {}
    innermost = outermost
    for _ in range(depth):
        inner: dict = {}
        innermost.update(a=inner, b=inner)
        innermost = inner
    if in_itself:
        innermost["outermost"] = outermost
    return outermost


class DictWithAttributes:
    """Unpickled, it is a dict with attributes in place of its methods."""

    def __reduce__(self):
        return OrderedDict, (), {"items": 1, "keys": 1, "values": 1}, None, iter([("x", torch.zeros(1))])


class TensorWithAttributes:
    """Unpickled, it is a parameter with attributes in place of its methods."""

    def __reduce__(self):
        attributes = {"numel": 1, "dim": 1, "element_size": 1, "untyped_storage": 1, "float": 1, "flatten": 1}
        return torch._utils._rebuild_parameter_with_state, (torch.zeros(2), False, OrderedDict(), attributes)


# Pickles that no pickler writes: an empty stack, a reference to nothing, an unknown opcode, tuples nested a hundred
# thousand deep, a string of 2^63 bytes, an item for a number, and items without a mark.
PICKLES = [b"\x80\x02.", b"\x80\x02h\x07.", b"\x80\x02\xff.", b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b"."]
PICKLES += [b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b".", b"\x80\x02K\x01K\x02s.", b"\x80\x02}K\x01K\x02K\x03u."]
HALF_A_MEGABYTE = torch.zeros(2**17)
WEIGHTS = {
    "empty.pth": b"",
    "empty.safetensors": b"",
    "text.pth": b"no weights at all",
    "text.safetensors": b"no weights at all",
    "zeros.pth": bytes(4096),
    "zeros.safetensors": bytes(4096),
    "cut.pth": stored(linear_state())[:-100],
    "half.pth": stored(linear_state())[:2500],
    "legacy cut.pth": stored(linear_state(), _use_new_zipfile_serialization=False)[:-100],
    "cut.safetensors": save(linear_state())[:-100],
    "no pickle.pth": archive("archive/data/0"),
    "no tensors.pth": archive("archive/data.pkl", "archive/version"),
    "not an archive of torch.pth": archive("readme.txt"),
    "eval.pth": stored({"x": Raises(eval, "1")}),
    "odd error.pth": stored({"x": Raises(getattr, 1)}),
    "not names.pth": stored({1: torch.zeros(1)}),
    "not tensors.pth": stored({"lin0.model.1.weight": [1.0]}),
    "blocked.pth": stored({"x": Raises(os.system, "false")}),
    "state of code.pth": stored({"state_dict": Raises(eval, "{}")}),
    "code for a weight.pth": with_layer(Raises(eval, "1")),
    "kinds.pth": with_pickle(b"\x80\x02}X\x01\x00\x00\x00x(" + b"".join(b"cm\nk%d\n" % i for i in range(101)) + b"ts."),
    "in itself.pth": stored(nested(100, in_itself=True)),
    "deep.pth": stored(nested(100)),
    "long paths.pth": stored({"x" * 10**6: {"y" * 10**6: {f"{i}": {f"net.slice1.{i}.weight": 0} for i in range(999)}}}),
    "methods of a dict.pth": stored(DictWithAttributes()),
    "methods of a tensor.pth": with_layer(TensorWithAttributes()),
    "dots.pth": stored({"net.slice1." * 10**5 + "\n": torch.zeros(1), "lin0.model." * 10**5: 0}),
    "sparse.pth": with_layer(torch.zeros(1, 256, 1, 1).to_sparse()),
    "meta.pth": with_layer(torch.zeros(1, 256, 1, 1, device="meta")),
    "integers.pth": with_layer(torch.zeros(1, 256, 1, 1, dtype=torch.int32)),
    "complex.pth": with_layer(torch.zeros(1, 256, 1, 1, dtype=torch.complex64)),
    "expanded.pth": with_layer(torch.zeros(1).expand(2**20, 2**20)),
    "deflated zeros.pth": repacked(with_layer(torch.zeros(2**22)), compression=zipfile.ZIP_DEFLATED),
    "listed many times.pth": repacked(with_layer(torch.zeros(2**12)), copies=100),
    "shared.pth": stored({f"lin{i}.model.1.weight": HALF_A_MEGABYTE for i in range(20000)}),
    "shared names.pth": stored({f"net.slice1.{i}.weight": HALF_A_MEGABYTE for i in range(20000)}),
    "float8.pth": with_layer(torch.zeros(1, 256, 1, 1, dtype=torch.float8_e4m3fn)),
    "nested.pth": with_layer(torch.nested.nested_tensor([torch.zeros(256, 1, 1)])),
    "sparse list.pth": stored([torch.zeros(1, c, 1, 1).to_sparse() for c in (64, 128, 256, 512, 512)]),
    "meta list.pth": stored([torch.zeros(1, c, 1, 1, device="meta") for c in (64, 128, 256, 512, 512)]),
    "long name.pth": stored({"x" * 10**6: torch.zeros(1)}),
    "long layer.pth": stored({f"lin{'9' * 6000}.model.1.weight": torch.zeros(1)}),
    "long index.pth": stored({f"net.slice1.{'9' * 6000}.weight": torch.zeros(1)}),
    "no decimal.pth": stored({"\u00b2.weight": torch.zeros(1)}),
    "many names.pth": stored({f"lin{i}.model.1.weight": torch.zeros(1) for i in range(2000)}),
    "no elements.pth": with_layer(torch.zeros(0)),
    "nan.pth": stored(spoiled(torch.nan)),
    "inf.pth": stored(spoiled(-torch.inf)),
    "nan.safetensors": save(spoiled(torch.nan)),
    "huge header.safetensors": safetensors(b"{}", 2**63),
    "header of gigabytes.safetensors": safetensors(b"{}", 2**32),
    "header of lists.safetensors": safetensors(b"[" * 10**5),
    "header that is no JSON.safetensors": safetensors(b"\xff\xfe{}"),
    "outside.safetensors": header(data_offsets=[0, 2**40]),
    "backwards.safetensors": header(data_offsets=[8, 4]),
    "huge shape.safetensors": header(shape=[2**62, 2**62]),
    "negative shape.safetensors": header(shape=[-1]),
    "unknown type.safetensors": header(dtype="F1"),
    **{f"pickle {i}.pth": content for i, content in enumerate(PICKLES)},
}
READERS = {
    "model_path": lambda path: lpips_fast.LPIPS(pnet_rand=True, model_path=path),
    "trunk_weights": lambda path: lpips_fast.LPIPS(trunk_weights=path),
    "load_any": lpips_fast.load_any,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of all WEIGHTS as files, and of two folders with the names of files."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in WEIGHTS.items():
        (folder / name).write_bytes(content)
    for name in ("folder.pth", "folder.safetensors"):
        (folder / name).mkdir()
    return folder


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Validating sparse tensor")
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", (*WEIGHTS, "folder.pth", "folder.safetensors"))
def test_weights(folder, reader, name):
    with raises(ValueError, str(folder / name)) as refused:
        reader(folder / name)
    reason = str(refused.value).partition(name)[2]
    assert len(reason.split()) >= 3, reason
    assert "weights_only" not in reason  # torch's advice to run what the file holds
    assert len(reason) < 1000, len(reason)


def test_what_else_people_save(tmp_path):
    """For a whole module, or a trunk in a checkpoint, the error says what the file has, and what to save instead."""
    module = lpips_fast.LPIPS(pnet_rand=True)
    torch.save(module, tmp_path / "module.pth")
    torch.save({"epoch": 3, "model": module}, tmp_path / "nested.pth")
    for name, words in {
        "module.pth": ("it holds lpips_fast.lpips.LPIPS", "state_dict"),
        "nested.pth": ("'model'", "it holds lpips_fast.lpips.LPIPS", "state_dict"),
    }.items():
        with raises(ValueError, name, *words):
            lpips_fast.load_any(tmp_path / name)
    torch.save({"epoch": 3, "model": module.net.state_dict()}, tmp_path / "epoch.pth")
    torch.save({"model": module.net.state_dict(), "epoch": 3}, tmp_path / "model.pth")
    for name, words in {
        "epoch.pth": ("state_dict", "int", "'epoch'"),
        "model.pth": ("state_dict", "OrderedDict", "'model'", "a file of its own"),
    }.items():
        with raises(ValueError, name, *words):
            lpips_fast.LPIPS(trunk_weights=tmp_path / name)


@pytest.mark.parametrize(
    "content", ([torch.zeros(1)], {"state": {"x": torch.zeros(1)}}, {"epoch": 1}, torch.zeros(1), 3), ids=str
)
def test_not_a_state_dict(make_ours, tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with raises(ValueError, "other.pth", "state_dict"):
        make_ours(model_path=tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
@pytest.mark.parametrize(
    "damage", (lambda b: b[: len(b) // 2], lambda b: b[:3], lambda b: b"", lambda b: b"no weights at all")
)
def test_damaged_file(make_ours, tmp_path, suffix, damage):
    path = saved(linear_state(), tmp_path / f"damaged{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with raises(ValueError, str(path), "cannot be read"):
        make_ours(model_path=path)


@pytest.mark.parametrize("argument", ("model_path", "trunk_weights"))
def test_no_such_file(make_ours, trunk_states, tmp_path, argument):
    options = {"trunk_weights": trunk_states["alex"], argument: tmp_path / "none.pth"}
    with raises(FileNotFoundError, "none.pth"):
        lpips_fast.LPIPS(**options)


class Code:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("argument", ("model_path", "trunk_weights"))
@pytest.mark.parametrize("protocol", ("torch", "pickle"))
def test_code_in_a_file_is_not_run(trunk_states, tmp_path, argument, protocol):
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    state = {**linear_state(), "x": Code(trap)}
    torch.save(state, path) if protocol == "torch" else path.write_bytes(pickle.dumps(state))
    with raises(ValueError, str(path), "cannot be read"):
        lpips_fast.LPIPS(**{"trunk_weights": trunk_states["alex"], argument: path})
    assert not trap.exists()
    if protocol == "pickle":
        pickle.loads(path.read_bytes())
        assert trap.exists()  # it would have


class Touches:
    """An object that makes a file whenever unpickling calls one of its methods."""

    def __new__(cls, path):
        Path(path).touch()
        return super().__new__(cls)

    def __reduce__(self):
        return copyreg.__newobj__, (Touches, self.path), self.path

    def __setstate__(self, path):
        Path(path).touch()

    @classmethod
    def pickled(cls, path):
        made = object.__new__(cls)
        made.path = path
        return made


class Settings(dict):
    """A dict as configuration packages have it, with attributes, and code that runs for each item."""

    def __setitem__(self, name, value):
        if name == "path":
            Path(value).touch()
        super().__setitem__(name, value)


class Slots:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1


def codes(path: str) -> dict[str, object]:
    """What checkpoints have beside tensors, and attacks; most make a file if unpickling runs their code."""
    settings = Settings()
    dict.update(settings, path=path, nested=Settings())
    settings.attribute = 1
    return {
        "function": Raises(exec, f"open({path!r}, 'w')"),
        "function of this package": Raises(replacing_nothing, path),
        "object": Touches.pickled(path),
        "settings": settings,
        "namespace": argparse.Namespace(path=Path(path), act=nn.ReLU(), call=print),
        "class for a key": {Touches: {"best": torch.tensor(1.0)}},
        "numbers": [np.float64(1.5), np.arange(3), np.dtype("f4")],
        "containers": {
            "d": defaultdict(list, {"a": [1]}),
            "q": deque([1, 2], maxlen=3),
            "c": Counter("aab"),
            "p": functools.partial(print, 1),
        },
        "numbers and settings": [np.arange(3), Settings(a=1), deque([1])],
        "slots": Slots(),
    }


def replacing_nothing(path):
    Path(path).touch()


@pytest.mark.parametrize("name", codes(""))
def test_code_beside_the_weights_is_passed_over_and_not_run(tmp_path, name):
    trap, path = tmp_path / "executed", tmp_path / "last.ckpt"
    state = linear_state()
    loss = {f"loss.{name}": tensor for name, tensor in state.items()}
    torch.save({"hyper_parameters": codes(str(trap))[name], "state_dict": loss}, path)
    allowed = set(torch.serialization.get_safe_globals())
    found = lpips_fast.load_any(path)
    assert all(torch.equal(a, b) for a, b in zip(found.linear, state.values(), strict=True))
    lpips_fast.LPIPS(pnet_rand=True, model_path=path)
    assert not trap.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed
    torch.load(path, weights_only=False)
    harmless = ("namespace", "class for a key", "numbers", "containers", "numbers and settings", "slots")
    assert trap.exists() == (name not in harmless)  # it would have been


def test_files_with_code_in_threads(tmp_path):
    """torch has one list of safe globals for the process."""
    states = [linear_state() for _ in range(8)]
    for i, state in enumerate(states):
        torch.save({"hyper_parameters": [argparse.Namespace(), Slots()][i % 2], "model": state}, tmp_path / f"{i}.ckpt")
    allowed = set(torch.serialization.get_safe_globals())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lpips_fast.load_any, [tmp_path / f"{i}.ckpt" for i in range(8)]))
    for checkpoint, state in zip(found, states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(checkpoint.linear, state.values(), strict=True))
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize("name,size", (("deflated zeros.pth", "1678"), ("listed many times.pth", "16")))
def test_a_bomb_is_not_unpacked(folder, name, size):
    """The error says how much memory the content would take, e.g. 16 MiB of zeros from 20 KB, without taking it."""
    with raises(ValueError, name, f"unpacks to {size}", "torch.save does not compress"):
        read_state_dict(folder / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ("pipe.pth", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        with raises(ValueError, str(tmp_path / name), "pipe"):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ("cut.pth", "eval.pth", "nan.safetensors", "huge header.safetensors", "folder.pth"))
def test_weights_on_the_command_line(folder, tmp_path, name):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    pair = ["pair", str(tmp_path / "a.png"), str(tmp_path / "a.png")]
    out = tmp_path / "out.pth"
    for arguments in (
        [*pair, "--trunk-weights", str(folder / name)],
        ["convert", str(folder / name), str(out), "--to", "lpips"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert result.output.startswith("lpips-fast: error: ")
        assert name in result.output
        assert "Traceback" not in result.output
    assert not out.exists()


SMALL = {"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.float16)}
SOUND = {
    "a.pth": stored(SMALL),
    "legacy.pth": stored(SMALL, _use_new_zipfile_serialization=False),
    "a.safetensors": save(SMALL),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", SOUND)
@given(data=st.data())
def test_damaged_weights(tmp_path_factory, name, data):
    """Reading gives tensors or an error that names the file, never anything else."""
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data.draw(damaged(SOUND[name])))
    found = outcome(read_state_dict, path, ValueError)
    if isinstance(found, ValueError):
        assert str(path) in str(found)
    else:
        assert all(isinstance(name, str) and tensor.sum().numel() for name, tensor in found.items())


CHECKPOINT = {"args": argparse.Namespace(lr=[0.1]), "log": defaultdict(list, {"a": [1]}), "lin0.model.1.weight": 0}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data())
def test_damaged_checkpoints(tmp_path_factory, data):
    """The error names the file, whichever objects stand-ins replace."""
    path = tmp_path_factory.getbasetemp() / "last.ckpt"
    path.write_bytes(data.draw(damaged(stored(CHECKPOINT))))
    assert str(path) in str(outcome(lpips_fast.load_any, path, ValueError))
