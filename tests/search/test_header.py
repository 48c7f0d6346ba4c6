"""What an index says of itself, and which distances fit it."""

from __future__ import annotations

import shutil

import pytest
import torch

import lpips_fast.search
from lpips_fast.search import Index
from tests.support.images import image
from tests.support.indexes import SIZE, read_header, rewrite
from tests.support.raises import raises

BAD_SIZES = (
    "ab",
    None,
    [64],
    [0, 0],
    10**9,
    [10**9, 10**9],
    [30_000, 30_000],
    [10**30, 32],
    [SIZE, SIZE + 16],
    [1.5, 64],
)


@pytest.mark.parametrize(
    "fields, words",
    (
        ({"extra": 1}, ("header must have", ", extra")),
        ({"resized": "yes"}, ("resized", "yes")),
        ({"normalize": 2}, ("normalize", "2")),
        ({"raw": "no"}, ("raw", "'no'")),
        ({"transparent": 1}, ("its transparent must be true or false", "1")),
        ({"opaque": "no"}, ("its opaque must be true or false", "'no'")),
        ({"reading": "white"}, ("reading must be options by name", "'white'")),
        ({"reading": ["white"]}, ("reading must be options by name", "['white']")),
        ({"resized": None}, ("resized", "None")),
        ({"folder": 3}, ("folder must be a path", "3")),
        ({"precision": None}, ("precision must be text", "None")),
        *(
            ({"sketch": sketch}, ("sketch must have", repr(sketch)))
            for sketch in (
                64,
                [64, 0],
                {"length": 64},
                {"length": 64.0, "seed": 0},
                {"length": True, "seed": 0},
                {"length": 8, "seed": 0},
                {"length": 2**40, "seed": 0},
                {"length": 64, "seed": -1},
                {"length": 64, "seed": 2**64},
            )
        ),
        *(({field: None}, (f"its {field} must be text", "None")) for field in ("net", "version", "trunk_sha256")),
        ({"net": "resnet"}, ("made with net resnet",)),
        ({"lpips": 2}, ("made with lpips 2",)),
        ({"values": 7}, ("made with values 7",)),
        *(({"size": size}, ("size" if size != [SIZE, SIZE + 16] else "made with values",)) for size in BAD_SIZES),
    ),
    ids=repr,
)
def test_damaged_headers(fn, saved, tmp_path, fields, words):
    """Nothing of the size that a file claims is allocated."""
    path = tmp_path / "damaged.index"
    shutil.copy(saved, path)
    rewrite(path, header={**read_header(path), **fields})
    with raises(ValueError, str(path), "cannot be read as an index", *words):
        Index.load(path, fn)


@pytest.mark.parametrize("net, size", (("alex", (31, 57)), ("vgg", (16, 45)), ("squeeze", (17, 90))))
def test_the_length_of_a_vector(make_ours, net, size):
    fn = make_ours(net)
    assert lpips_fast.search.header.vector_length(fn, size) == fn.embed(image(1, *size, seed=0)).shape[1]


def test_refuses_another_distance(fn, make_ours, images, tmp_path):
    path = tmp_path / "images.index"
    Index.build(fn, images).save(path)
    other_linear, other_trunk = make_ours(), make_ours()
    with torch.no_grad():
        other_linear.lin3.model[-1].weight[0, 0] += 0.5
        next(other_trunk.net.parameters())[0, 0, 0, 0] += 0.5
    for other, message in (
        (make_ours("squeeze"), "net alexnet, this LPIPS has squeezenet1_1"),
        (make_ours(version="0.0"), "version 0.1, this LPIPS has 0.0"),
        (make_ours(lpips=False), "lpips True, this LPIPS has False"),
        (other_linear, "linear_sha256"),
        (other_trunk, "trunk_sha256"),
    ):
        with pytest.raises(ValueError, match=f"was made with {message}"):
            Index.load(path, other)
    with pytest.raises(ValueError, match="images of 32 x 32 pixels, the queries are of 32 x 40"):
        Index.load(path, fn).search(image(1, 32, 40, seed=0))
