"""Pickles of NumPy arrays in dicts, as NumPy writes them; whatever else a pickle holds is refused and not run."""

from __future__ import annotations

import pickle
import re
import struct
import tracemalloc
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpips_fast
from lpips_fast.weights.files import read_file
from lpips_fast.weights.numpy_pickle import read_pickle
from tests.support.damage import damaged, outcome
from tests.support.raises import raises

PROTOCOLS = (3, 4, 5)
MATRIX = np.arange(12.0).reshape(3, 4)
TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
LAYOUTS = {
    "C": MATRIX,
    "Fortran": np.asfortranarray(MATRIX),
    "sliced": MATRIX[::2, 1::2],
    "backwards": MATRIX[::-1, ::-1],
    "axes exchanged": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),  # NumPy 2.4 writes the axes' order
    "expanded": np.broadcast_to(np.float32(2), (3, 4)),
    "no dimension": np.array(1.5),
    "no values": np.zeros((3, 0, 4)),
    "no values, no length": np.zeros(0),
    "many dimensions": np.zeros((1,) * 30 + (2,)),
    "read-only": np.frombuffer(MATRIX.tobytes()),
}


def equal(found, expected) -> bool:
    return (
        type(found) is np.ndarray
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", "<>=")
@pytest.mark.parametrize("kind", TYPES)
def test_types(protocol, order, kind):
    array = (MATRIX - 3).astype(np.dtype(kind).newbyteorder(order))
    assert equal(read_pickle(pickle.dumps(array, protocol)), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(protocol, array):
    assert equal(read_pickle(pickle.dumps(array, protocol)), array)


def renamed(pickled: bytes, before: bytes, after: bytes) -> bytes:
    """The pickle with another module's name, whose length protocol 4 writes before it, and without frames."""
    pickled = re.sub(rb"\x95.{8}", b"", pickled, flags=re.DOTALL)
    assert before in pickled
    return re.sub(
        rb"(\x8c.)?" + re.escape(before),
        lambda m: (b"\x8c" + bytes([m[1][1] - len(before) + len(after)]) if m[1] else b"") + after,
        pickled,
        flags=re.DOTALL,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_names_before_and_since_numpy_2(protocol):
    pickled = pickle.dumps({"a": MATRIX}, protocol)
    core = b"numpy._core." if b"numpy._core." in pickled else b"numpy.core."
    for name in (b"numpy.core.", b"numpy._core."):
        other = renamed(pickled, core, name)
        assert name in other
        assert equal(read_pickle(other)["a"], MATRIX)
    with raises(ValueError, "numpy.lib.", "only pickles of NumPy arrays in dicts"):
        read_pickle(renamed(pickled, core, b"numpy.lib."))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dicts(protocol):
    """A dict or an array may occur twice, and a dict may hold itself."""
    inner = {"weight": MATRIX, "again": MATRIX, "": np.zeros(2, ">f4")}
    whole = {"a": inner, "b": inner, "empty": {}, "many": {f"{i}": MATRIX[:1] for i in range(2000)}}
    whole["itself"] = whole
    found = read_pickle(pickle.dumps(whole, protocol))
    assert found["itself"] is found
    assert found["a"] is found["b"]
    assert found["empty"] == {}
    assert list(found["a"]) == list(inner)
    assert all(equal(found["a"][name], inner[name]) for name in inner)
    assert list(found["many"]) == list(whole["many"])
    assert all(equal(array, MATRIX[:1]) for array in found["many"].values())


def test_a_file_of_any_suffix_but_safetensors(tmp_path):
    for name in ("weights.ckpt", "weights.pkl", "weights"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": MATRIX}))
        assert equal(read_file(tmp_path / name)["a"], MATRIX)


class Trap:
    """Unpickling it makes a file, by a call, by a method of a class, or when its state is set."""

    def __init__(self, path: str, way: str) -> None:
        self.path, self.way = path, way

    def __reduce__(self):
        if self.way == "call":
            return Path.touch, (Path(self.path),)
        return Trapped, ((self.path,) if self.way == "class" else ()), (self.path if self.way == "state" else None)


class Trapped:
    def __init__(self, path: str | None = None) -> None:
        if path:
            Path(path).touch()

    def __setstate__(self, path: str) -> None:
        Path(path).touch()


@pytest.mark.parametrize("reader", (read_file, lpips_fast.load_any))
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("way", ("call", "class", "state"))
def test_code_is_not_run(tmp_path, reader, protocol, way):
    trap, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": {"a": MATRIX, "x": Trap(str(trap), way)}}, protocol))
    with raises(ValueError, str(path), "cannot be read", "only pickles of NumPy arrays in dicts"):
        reader(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # it would have been made


def tupled(depth: int) -> bytes:
    """Instructions for a tuple that holds the one before it twice, 2^depth ways to the innermost."""
    return b"K\x01" + b"".join(b"r%bh%b\x86" % (struct.pack("<I", i), bytes([i])) for i in range(depth))


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content.encode()


def dtype(kind: bytes = text("f4"), order: bytes = text("<")) -> bytes:
    return b"cnumpy\ndtype\n" + kind + b"\x89\x88\x87R(K\x03" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array(
    shape: bytes = b"K\x02\x85",
    data: bytes = b"C\x08" + bytes(8),
    order: bytes = text("C"),
    of: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    """A pickle of one array, as NumPy writes it in protocol 5, with these instructions for its parts."""
    of = dtype() if of is None else of
    return b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(" + data + of + shape + order + more + b"tR."


def state(shape: bytes = b"K\x02\x85", data: bytes = b"C\x08" + bytes(8)) -> bytes:
    """The same as in protocol 3."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    return b"\x80\x03" + made + b"(K\x01" + shape + dtype() + b"\x89" + data + b"tb."


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_these_instructions_are_those_of_numpy():
    for pickled in (array(), state()):
        assert equal(read_pickle(pickled), np.zeros(2, "f4"))
        assert equal(pickle.loads(pickled), np.zeros(2, "f4"))


# By name: what no file of arrays in dicts holds, and words of the error.
OBJECTS = {
    "global": (np.linalg.norm, "numpy.linalg"),
    "builtin": (len, "builtins.len"),
    "class": (OrderedDict(a=MATRIX), "collections.OrderedDict"),
    "list": ({"a": [MATRIX]}, "EMPTY_LIST"),
    "tuple": ({"a": (MATRIX, MATRIX)}, "type tuple"),
    "set": ({"a": {1}}, "only pickles of NumPy arrays in dicts"),
    "string": ({"a": "text"}, "type str"),
    "bytes": ({"a": b"1234"}, "type bytes"),
    "number": ({"a": 3}, "type int"),
    "float": ({"a": 0.5}, "BINFLOAT"),
    "None": (None, "type NoneType"),
    "NumPy's number": ({"a": np.float32(1)}, "multiarray.scalar"),
    "NumPy's type": ({"a": np.dtype("f4")}, "type _Dtype"),
    "NumPy's class": ({"a": np.ndarray}, "type _Name"),
    "key that is no string": ({1: MATRIX}, "int", "where NumPy writes a string"),
    "deque": ({"a": deque([1])}, "collections.deque"),
    "array of objects": (np.array([None, {}]), "'O8'", "real numbers"),
    "array of strings": (np.array(["ab"]), "'U2'", "real numbers"),
    "array of bytes": (np.array([b"ab"]), "'S2'", "real numbers"),
    "array of records": (np.zeros(2, [("a", "f4"), ("b", "i4")]), "'V8'", "real numbers"),
    "array of dates": (np.zeros(2, "M8[s]"), "'M8'", "real numbers"),
    "array of spans of time": (np.zeros(2, "m8[s]"), "'m8'", "real numbers"),
    "array of complex numbers": (np.zeros(2, "c8"), "'c8'", "real numbers"),
    "array of long doubles": (np.zeros(2, np.longdouble), "'f16'", "real numbers"),
    "subclass of arrays": (np.ma.masked_array([1.0]), "numpy.ma.core"),
    "matrix": (MATRIX.view(np.matrix), "numpy.matrix"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", OBJECTS)
def test_other_objects(tmp_path, protocol, name):
    content, *words = OBJECTS[name]
    path = tmp_path / "other.ckpt"
    path.write_bytes(pickle.dumps(content, protocol))
    with raises(ValueError, str(path), "cannot be read"):
        lpips_fast.load_any(path)
    with raises(ValueError, str(path), *words):
        read_file(path)


HUGE = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"  # 2^2039 - 1, of 255 bytes
NEGATIVE = b"J\xff\xff\xff\xff"
MARK_OF_100 = b"(" + b"K\x01" * 100 + b"t"
# No pickler writes these. Of some, a check that is too late takes forever, or gigabytes.
HOSTILE = {
    "nothing": b"\x80\x04.",
    "no stop": b"\x80\x04}",
    "two objects": b"\x80\x04}}.",
    "unknown instruction": b"\x80\x04\xff.",
    "instruction of another kind": b"\x80\x04(I1\nl.",
    "mark without end": b"\x80\x04(.",
    "end without mark": b"\x80\x04t.",
    "tuple of too few": b"\x80\x04K\x01\x87.",
    "nothing to keep": b"\x80\x04q\x00.",
    "nothing kept": b"\x80\x04h\x07.",
    "kept by a large number": b"\x80\x04}r" + struct.pack("<I", 2**31) + b"j" + struct.pack("<I", 2**31 + 1) + b".",
    "persistent": b"\x80\x04" + text("a") + b"Q.",
    "extension": b"\x80\x04\x82\x01.",
    "out of band": b"\x80\x05\x97.",
    "new object": b"\x80\x04cnumpy\nndarray\n)\x81.",
    "call of no function": b"\x80\x04})R.",
    "call of a dict": b"\x80\x04}}R.",
    "call of ndarray": b"\x80\x04cnumpy\nndarray\nK\x01\x85R.",
    "dtype without arguments": b"\x80\x04cnumpy\ndtype\n)R.",
    "state of a dict": b"\x80\x04}}b.",
    "state of a name": b"\x80\x04cnumpy\nndarray\n}b.",
    "array without state": b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R.",
    "array with another state": b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R}b.",
    "item of no dict": b"\x80\x04K\x01" + text("a") + b"K\x01s.",
    "item of a tuple": b"\x80\x04)" + text("a") + b"K\x01s.",
    "key without value": b"\x80\x04}(" + text("a") + b"u.",
    "items without mark": b"\x80\x04}" + text("a") + b"}u.",
    "name with a dot": b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.",
    "name of no string": b"\x80\x04}}\x93.",
    "name of tuples": b"\x80\x04" + tupled(200) + text("a") + b"\x93.",
    "module of tuples": b"\x80\x04" + text("a") + tupled(200) + b"\x93.",
    "key of tuples": b"\x80\x04}" + tupled(200) + b"}s.",
    "keys of tuples": b"\x80\x04}(" + tupled(200) + b"}u.",
    "tuples in tuples": b"\x80\x04" + b"(" * 10**5 + b"t" * 10**5 + b".",
    "dicts in dicts": b"\x80\x04" + (b"}" + text("a")) * 10**5 + b"}" + b"s" * 10**5 + b".",
    "long name": b"\x80\x04c" + b"n" * 10**6 + b"\nx\n.",
    "text past the end": b"\x80\x04X\xff\xff\xff\x7fabc.",
    "long text past the end": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "bytes past the end": array(data=b"B\xff\xff\xff\xff"),
    "long bytes past the end": array(data=b"\x8e" + struct.pack("<Q", 2**62)),
    "bytearray past the end": array(data=b"\x96" + struct.pack("<Q", 2**63 + 1)),
    "number past the end": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "too few bytes": array(data=b"C\x07" + bytes(7)),
    "too many bytes": array(data=b"C\x09" + bytes(9)),
    "no bytes": array(data=b"C\x00"),
    "data of text": array(data=text("12345678")),
    "data of a dict": array(data=b"}"),
    "data of a number": array(data=b"K\x08"),
    "data of an array": array(data=array()[2:-1]),
    "negative shape": array(shape=NEGATIVE + b"\x85"),
    "shape of two negatives": array(shape=NEGATIVE + b"J\xfe\xff\xff\xff\x86"),
    "shape of a number": array(shape=b"K\x02"),
    "shape of a text": array(shape=text("2")),
    "shape of truth": array(shape=b"\x88\x85", data=b"C\x04" + bytes(4)),
    "huge shape": array(shape=HUGE + b"\x85"),
    "huge shape without values": array(shape=HUGE + b"K\x00\x86", data=b"C\x00"),
    "large shape without values": array(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x00\x86", data=b"C\x00"),
    "shape of many huge numbers": array(shape=HUGE + b"q\x00(" + b"h\x00" * 10**5 + b"t"),
    "many dimensions": array(shape=MARK_OF_100, data=b"C\x04" + bytes(4)),
    "shape of tuples": array(shape=tupled(200)),
    "order of tuples": array(order=tupled(200)),
    "unknown order": array(order=text("Z")),
    "order without axes": array(order=text("K")),
    "axes of tuples": array(order=text("K"), more=tupled(200)),
    "too many axes": array(order=text("K"), more=MARK_OF_100),
    "axes twice": array(shape=b"K\x01K\x02\x86", order=text("K"), more=b"K\x00K\x00\x86"),
    "too many arguments": array(more=b"NN"),
    "no dtype": array(of=b"N"),
    "dtype of tuples": array(of=dtype(tupled(200))),
    "dtype of a long text": array(of=dtype(text("f" * 10**6))),
    "dtype of 3 bytes": array(of=dtype(text("f3"))),
    "dtype of a name": array(of=dtype(b"cnumpy\ndtype\n")),
    "byte order of tuples": array(of=dtype(order=tupled(200))),
    "unknown byte order": array(of=dtype(order=text("Z"))),
    "dtype with another state": array(of=b"cnumpy\ndtype\n" + text("f4") + b"\x85R}b"),
    "state, too few bytes": state(data=b"C\x07" + bytes(7)),
    "state, huge shape": state(shape=HUGE + b"\x85"),
    "state, shape of tuples": state(shape=tupled(200)),
    "state, list of objects": state(data=b"]"),
}
MEMORY = 64 * 2**20  # of a file of one megabyte; the longest here have 10^5 dicts or tuples


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(tmp_path, name):
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with raises(ValueError, str(path), "cannot be read") as refused:
            read_file(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 1000
    with raises(ValueError, str(path)):
        lpips_fast.load_any(path)


SOUND = {protocol: pickle.dumps({"a": {"b": MATRIX.astype("f4")}, "c": MATRIX.T}, protocol) for protocol in PROTOCOLS}


def is_valid(content: object) -> bool:
    """Whether this is an array, or dicts of strings to arrays, none of them larger than the pickle."""
    if isinstance(content, dict):
        return all(isinstance(name, str) and is_valid(value) for name, value in content.items())
    return type(content) is np.ndarray and content.dtype.kind in "fiub" and content.nbytes < 1000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cut_at_every_point(tmp_path, protocol):
    path = tmp_path / "cut.ckpt"
    for length in range(len(SOUND[protocol])):
        path.write_bytes(SOUND[protocol][:length])
        with raises(ValueError, str(path), "cannot be read"):
            read_file(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(data=st.data())
def test_a_changed_byte(tmp_path_factory, protocol, data):
    content = bytearray(SOUND[protocol])
    content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    check(tmp_path_factory, bytes(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(data=st.data())
def test_damaged(tmp_path_factory, protocol, data):
    check(tmp_path_factory, b"\x80" + data.draw(damaged(SOUND[protocol])))


INSTRUCTIONS = (
    *(b")", b"}", b"N", b"\x88", b"(", b"t", b"\x85", b"\x86", b"\x87", b"s", b"u", b"R", b"b", b"\x94", b"\x93", b"0"),
    *(b"K\x02", b"C\x08" + bytes(8), b"h\x00", b"q\x00", b"h\x01", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"),
    *(text("f4"), text("<"), text("C"), text("numpy"), dtype(), array()[2:-1], state()[2:-1]),
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
)


@given(st.lists(st.sampled_from(INSTRUCTIONS), max_size=12))
def test_any_instructions(tmp_path_factory, instructions):
    check(tmp_path_factory, b"\x80\x04" + b"".join(instructions) + b".")


def check(tmp_path_factory, content: bytes) -> None:
    """Reading gives an error that names the file, or a valid result."""
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        found = outcome(read_file, path, ValueError)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert str(path) in str(found) if isinstance(found, ValueError) else is_valid(found)
