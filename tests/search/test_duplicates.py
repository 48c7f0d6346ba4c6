"""Groups of near-duplicates against components of exact distances in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.sparse.csgraph import connected_components

from lpips_fast.search import Index
from lpips_fast.search import duplicates as module
from lpips_fast.search.duplicates import duplicates, find_edges, groups, tiles
from lpips_fast.sketch import Sketch, sketch_embeddings
from tests.support.images import image
from tests.support.raises import raises
from tests.support.tolerances import INDEX_TOLERANCE

SIZE = 32


class Vectors:
    """What `duplicates` needs of an index, of any vectors sqrt(H W) e."""

    device = torch.device("cpu")

    def __init__(self, vectors, *, names=None, sketch=None, lost=(), **header):
        self.vectors = vectors
        self.names = names
        self.lost = set(lost)
        self.asked = []  # the rows whose embeddings were asked for, call by call
        fields = dict.fromkeys(module._SHARED) | {"size": (SIZE, SIZE), "sketch": sketch} | header
        self.header = SimpleNamespace(**fields)

    def __len__(self):
        return len(self.vectors)

    def sketched(self, sketch):
        return sketch_embeddings(sketch, self.vectors, [(self.vectors.shape[1], 1, 1)]).half()

    def embeddings(self, rows):
        self.asked.append(list(rows))
        kept = [row for row in rows if row not in self.lost]
        return self.vectors[kept], kept


def expected(below, *sides):
    """The groups of vectors, as the brute force finds them: members, and distances to the first."""
    e = torch.cat([side.vectors for side in sides]).double() / SIZE
    distances = torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist").square()
    near = distances < below
    side = torch.tensor([s for s, x in enumerate(sides) for _ in range(len(x))])
    if len(sides) == 2:
        near &= side[:, None] != side
    _, labels = connected_components(near.numpy(), directed=False)
    starts = (0, len(sides[0]))
    found = {}
    for i, label in enumerate(labels.tolist()):
        found.setdefault(label, []).append(i)
    several = [members for members in found.values() if len(members) > 1]
    return [([(int(side[i]), i - starts[side[i]]) for i in m], distances[m[0], m]) for m in several]


def check(found, wanted):
    assert [group.members for group in found] == [members for members, _ in wanted]
    for group, (_, distances) in zip(found, wanted):
        assert group.distances[0] == 0
        values = torch.tensor(group.distances, dtype=torch.float64)
        torch.testing.assert_close(values, distances, **INDEX_TOLERANCE[torch.float16])


@pytest.fixture(scope="module")
def planted():
    """Images: 0 to 9 unlike; 10 to 14 like 3; 15 to 20 a chain from 5; 21 equal to 7."""
    gen = torch.Generator().manual_seed(1)
    x = image(22, SIZE, SIZE, seed=0)
    noise = torch.randn(22, 3, SIZE, SIZE, generator=gen)
    x[10:15] = x[3] + 0.02 * noise[10:15]
    for i in range(15, 21):
        x[i] = x[5 if i == 15 else i - 1] + 0.05 * noise[i]
    x[21] = x[7]
    return x


@pytest.fixture(params=(1, 3, 4096), ids="tiles of {}".format)
def tile(request, monkeypatch):
    """Tiles, and all other blocks, of one image, of few and of all."""
    monkeypatch.setattr(module, "_TILE", request.param)
    if request.param == 3:
        monkeypatch.setattr(module, "_STRIP", 2)
        monkeypatch.setattr(module, "_PAIRS", 2)
        monkeypatch.setattr(module, "_CONFIRMED", 1)
    return request.param


@pytest.mark.parametrize("kept", ({}, {"sketch": 1024}, {"sketch": 300, "vectors": True}), ids=str)
@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_groups_of_images(make_ours, planted, net, kept, tile):
    """Whether the index keeps vectors, or sketches and makes the vectors again."""
    fn = make_ours(net)
    exact = Vectors(SIZE * fn.embed(planted))
    chain = exact.vectors[[5, *range(15, 21)]].double() / SIZE
    below = 1.1 * chain.diff(dim=0).square().sum(dim=1).max().item()
    wanted = expected(below, exact)
    assert [[i for _, i in members] for members, _ in wanted] == [[3, *range(10, 15)], [5, *range(15, 21)], [7, 21]]
    assert wanted[1][1].max() > below, "a chain"
    check(duplicates(Index.build(fn, planted, **kept), below=below), wanted)


def test_indexes_of_different_sketches(make_ours, planted):
    fn = make_ours()
    indexes = [
        Index.build(fn, planted[:12], sketch=256, vectors=True),
        Index.build(fn, planted[12:], sketch=1024),
        Index.build(fn, planted[12:], sketch=512),
    ]
    wanted = expected(0.01, *(Vectors(SIZE * fn.embed(part)) for part in (planted[:12], planted[12:])))
    assert len(wanted) == 3
    check(duplicates(*indexes[:2], below=0.01), wanted)
    with raises(ValueError, "sketch must be the index's", "length=1024", "length=512"):
        duplicates(*indexes[1:], below=0.01)


def cloud(n, seed, dimensions=2, length=2000, **options):
    """Vectors whose distances have all values around 1."""
    gen = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(length, dimensions, generator=torch.Generator().manual_seed(0)))[0]
    points = torch.rand(n, dimensions, generator=gen) * 4
    return Vectors((SIZE * points @ turned.T).contiguous(), **options)


@pytest.mark.parametrize("length", (96, 128, 1000, 1024))
def test_groups_of_pairs_at_all_distances(length, tile):
    index = cloud(60, seed=2, sketch=Sketch(length))
    wanted = expected(0.1, index)
    assert len(wanted) > 5
    assert max(len(members) for members, _ in wanted) > 5
    check(duplicates(index, below=0.1), wanted)


def test_two_indexes(tile):
    a, b = cloud(30, seed=3), cloud(40, seed=4)
    wanted = expected(0.2, a, b)
    assert len(wanted) > 5
    assert any(len(members) > 3 for members, _ in wanted)
    check(duplicates(a, b, below=0.2), wanted)
    turned = [sorted((1 - side, row) for side, row in group.members) for group in duplicates(b, a, below=0.2)]
    assert sorted(turned) == [members for members, _ in wanted]


def test_the_order_of_images_has_no_influence():
    index = cloud(120, seed=2)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    turned = Vectors(index.vectors[order])
    found = {frozenset(row for _, row in group.members) for group in duplicates(index, below=0.1)}
    assert {frozenset(int(order[row]) for _, row in g.members) for g in duplicates(turned, below=0.1)} == found


@pytest.mark.parametrize("processes", (1, 2, 5))
def test_processes_share_the_tiles(processes, monkeypatch):
    monkeypatch.setattr(module, "_TILE", 10)
    for sides in ((cloud(60, seed=2), None), (cloud(30, seed=3), cloud(40, seed=4))):
        whole = tiles(*sides)
        n = len(whole)
        runs = [whole[n * i // processes : n * (i + 1) // processes] for i in range(processes)]
        edges = [edge for run in runs for edge in find_edges(*sides, run, below=0.1)]
        check(groups(*sides, edges), expected(0.1, *filter(None, sides)))


@pytest.mark.parametrize("tile", (30, 4096))
def test_a_clique_takes_as_many_confirmations_as_it_has_images(tile, monkeypatch):
    monkeypatch.setattr(module, "_TILE", tile)
    vectors = cloud(1, seed=6).vectors.repeat(300, 1)
    vectors[200:] += 1e-3  # alike, not equal
    index = Vectors(vectors)
    (group,) = duplicates(index, below=0.1)
    assert group.members == [(0, i) for i in range(300)]
    assert sorted(row for rows in index.asked for row in rows) == list(range(300)), "each image once"


def test_kept_embeddings_are_bounded(monkeypatch):
    index = cloud(120, seed=2)
    wanted = expected(0.1, index)
    monkeypatch.setattr(module, "_CACHE_BYTES", 3 * index.vectors[0].nbytes)
    monkeypatch.setattr(module, "_CONFIRMED", 1)
    kept = module._Embeddings([index])
    for i in (1, 2, 3):
        assert sorted(kept.of([0, i])) == [0, i]
    assert sorted(kept._held) == [0, 2, 3], "the latest"
    check(duplicates(index, below=0.1), wanted)


def test_images_that_cannot_be_read_join_nothing():
    line = torch.zeros(5, 2000)
    line[:, 0] = 0.3 * SIZE * torch.arange(5)  # each is at 0.09 from the next, and at 0.36 from the one after
    members = [[0, 1, 2, 3, 4], [0, 1], [3, 4]]
    for lost, wanted in (((), members[:1]), ((2,), members[1:]), (range(5), [])):
        found = duplicates(Vectors(line, lost=lost), below=0.1)
        assert [[row for _, row in group.members] for group in found] == wanted


def test_images_that_can_no_longer_be_read_have_no_distance():
    index = Vectors(torch.zeros(3, 2000))
    edges = find_edges(index, None, tiles(index, None), below=0.1)
    index.lost = {0, 1, 2}
    (group,) = groups(index, None, [(0, 1, 0.05), (1, 2, 0.05)])
    assert group.distances[:2] == [0.0, 0.05]
    assert math.isnan(group.distances[2])
    assert len(edges) == 2


def pairs(n, distance):
    """Vectors of length 1 in pairs of that distance, far from all others: rows 0 and 1, 2 and 3, ..."""
    gen = torch.Generator().manual_seed(7)
    base, step = torch.nn.functional.normalize(torch.randn(2, n, 2000, generator=gen), dim=2)
    return Vectors(SIZE * torch.stack([base, base + math.sqrt(distance) * step], dim=1).flatten(0, 1))


@pytest.mark.parametrize("below", (0.1, 1e-4, 1e-9))
def test_no_pair_below_the_limit_is_overlooked(below):
    """Distances are a hair below it. The least is less than what float16 and a product in float32 add to it."""
    found = duplicates(pairs(200, 0.99 * below), below=below)
    assert [group.members for group in found] == [[(0, 2 * i), (0, 2 * i + 1)] for i in range(200)]


@pytest.mark.parametrize("mode", ("medium", "autocast"))
def test_torchs_modes_have_no_influence(mode):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if mode == "medium" else before)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
            assert len(duplicates(pairs(200, 0.99e-6), below=1e-6)) == 200
    finally:
        torch.set_float32_matmul_precision(before)


def test_one_candidate_of_a_component_after_the_other():
    """Of two images that are in one component already, one is near enough; the other's estimate is often the lower."""
    gen = torch.Generator().manual_seed(7)
    u, v, far = torch.nn.functional.normalize(torch.randn(3, 60, 2000, generator=gen), dim=2)
    b, c = math.sqrt(0.101) * u, math.sqrt(0.099) * v
    between, near = 0.9 * (b + c), torch.zeros_like(b)  # the first rows join b and c
    index = Vectors(SIZE * (torch.stack([between, near, b, c]) + 3 * far).flatten(0, 1))
    found = duplicates(index, below=0.1)
    assert [[row for _, row in group.members] for group in found] == [[i, 60 + i, 120 + i, 180 + i] for i in range(60)]


def test_progress(monkeypatch):
    monkeypatch.setattr(module, "_TILE", 2)
    index, other, told = cloud(5, seed=9), cloud(4, seed=9), []
    duplicates(index, other, below=0.1, progress=lambda *done: told.append(done))
    assert told == [(i + 1, 6) for i in range(6)]


def test_nothing_to_find():
    assert duplicates(cloud(0, seed=0), below=0.1) == []
    assert duplicates(cloud(0, seed=0), cloud(3, seed=0), below=0.1) == []
    assert duplicates(cloud(1, seed=0), below=0.1) == []


@pytest.mark.parametrize("below", (0, -0.1, math.nan, math.inf, "0.1", None, True))
def test_bad_limits(below):
    with raises(ValueError, "below must be a finite number above 0", repr(below)):
        duplicates(cloud(3, seed=0), below=below)


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_broken_sketches_are_named(value):
    good, bad = cloud(4, seed=0), cloud(5, seed=0, names=["a", "b", "c", "d", "e"])
    bad.vectors[3] = value
    with raises(ValueError, "index must be finite", "image 3, 'd'"):
        duplicates(bad, below=0.1)
    with raises(ValueError, "other must be finite", "image 3, 'd'"):
        duplicates(good, bad, below=0.1)


@pytest.mark.parametrize("sides", (1, 2))
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_broken_vectors_are_named(value, sides):
    """An image may have changed since its sketch was made, and give NaN when it is read again."""
    indexes = [Vectors(torch.zeros(4, 2000), names=[f"{side}{i}" for i in range(4)]) for side in range(sides)]
    broken = indexes[-1]
    sound = broken.sketched(Sketch())
    broken.sketched = lambda sketch: sound
    broken.vectors[3, 1] = value
    name = ("index", "other")[sides - 1]
    with raises(ValueError, f"{name} must be finite", "in the vector of image 3", f"'{sides - 1}3'"):
        duplicates(*indexes, below=0.1)


def test_blocks_are_on_the_device_of_the_distance():
    """Sketches may be in memory or in a file; a block is taken where the distance is."""
    index = cloud(3, seed=0)
    sketches, taken = index.sketched(Sketch()), []

    class Noted:
        def __getitem__(self, rows):
            return SimpleNamespace(to=lambda device: taken.append(device) or sketches[rows])

    index.device, index.sketched = torch.device("cuda", 3), lambda sketch: Noted()
    module._Search(index, None, 0.1)._block(0, slice(0, 3))
    assert taken == [index.device]


def test_images_are_read_again_together():
    """Pairs that are far from each other ask for their embeddings in few calls."""
    index = pairs(40, 0.09)
    found = duplicates(index, below=0.1)
    assert len(found) == 40
    assert [len(rows) for rows in index.asked] == [32, 32, 16]


@pytest.mark.parametrize("field", [field for field in module._SHARED if field != "size"])
def test_indexes_made_otherwise(field):
    a, b, unknown = (cloud(3, seed=0, **{field: value}) for value in ("one", "other", None))
    with raises(ValueError, "index and other must be made alike", field, "'one'", "'other'"):
        duplicates(a, b, below=0.1)
    duplicates(a, unknown, below=0.1)
    with raises(ValueError, "size (16, 32)", "(32, 32)"):
        duplicates(cloud(3, seed=0, size=(16, 32)), b, below=0.1)
