"""The network that the options ask for, and what it gives for uint8 images."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import lpips_fast
from lpips_fast.cli import model
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.model import Model, find_device, make_lpips
from lpips_fast.cli.reading import Pair
from lpips_fast.weights.published import linear_state_dict, published_linear_weights
from tests.support.image_files import save_noise, soft_disc
from tests.support.tolerances import MAP_MEAN_TOLERANCE, REORDERED_TOLERANCE


def test_weights_of_a_file(call, trunk, fn, distance, tmp_path):
    """A file of linear weights; and a file of a whole model, whose trunk is used as well."""
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "b.png", 1)
    expected = distance(tmp_path / "a.png", tmp_path / "b.png")
    torch.save(fn.state_dict(), tmp_path / "whole.pth")
    torch.save(linear_state_dict(2 * w for w in fn.linear_weights()), tmp_path / "twice.pth")
    for options, factor in (
        (("--net", "squeeze", "--weights", "whole.pth"), 1),
        ((*trunk, "--weights", "twice.pth"), 2),
    ):
        call("pair", "a.png", "b.png", *options, "--json", "out.json")
        found = json.loads((tmp_path / "out.json").read_text())["lpips"]
        assert found == pytest.approx(factor * expected, rel=REORDERED_TOLERANCE)


def test_without_normalization_pixels_stay_in_0_to_1(call, trunk, fn, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "b.png", 1)
    found = float(call("pair", "a.png", "b.png", "--no-normalize", *trunk).split()[1].strip("()"))
    in0, in1 = (lpips_fast.im2tensor(lpips_fast.load_image(tmp_path / name)) for name in ("a.png", "b.png"))
    with torch.no_grad():
        assert found == pytest.approx(fn(in0 / 2 + 0.5, in1 / 2 + 0.5).item(), rel=REORDERED_TOLERANCE)


def noise(seed: int, height: int = 32, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_what_the_default_precision_is(settings, monkeypatch):
    found = Model(settings)
    assert found.precision == "float32"
    found.device = torch.device("cuda")  # no call needs it
    monkeypatch.setattr(model, "allows_tf32", lambda flag: flag is None)
    assert found.precision == "tf32"
    found.settings = dataclasses.replace(settings, precision="float16")
    assert found.precision == "float16"


@pytest.mark.parametrize("net", ("alex", "vgg16", "squeeze"))
@pytest.mark.parametrize("version", ("0.0", "0.1"))
def test_net_version_and_precision(settings, cached_trunk, net, version):
    name = {"vgg16": "vgg"}.get(net, net)
    wanted = dataclasses.replace(
        settings, net=net, version=version, precision="bfloat16", trunk_weights=cached_trunk(name, False)
    )
    fn = make_lpips(wanted)
    assert fn.version == version
    assert fn.net.precision == "bfloat16"
    expected = published_linear_weights(name, version)
    assert all(torch.equal(a, b) for a, b in zip(fn.linear_weights(), expected, strict=True))


def test_weights_of_another_net(settings, cached_trunk, tmp_path):
    with pytest.raises(UsageError, match=r"alex.*\.pth"):
        make_lpips(dataclasses.replace(settings, trunk_weights=cached_trunk("alex", False)))
    torch.save(linear_state_dict(published_linear_weights("alex", "0.1")), tmp_path / "alex_linear.pth")
    with pytest.raises(UsageError, match="alex_linear"):
        make_lpips(dataclasses.replace(settings, weights=tmp_path / "alex_linear.pth"))


def test_devices(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="--device nonsense: "):
        find_device("nonsense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)  # which finds whether there is such a device
    assert find_device("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("auto") == torch.device("cuda:1")
    assert find_device("cuda:0") == torch.device("cuda:0")


def test_pixels_are_scaled_as_by_the_library(settings):
    """All 256 values, to the bit."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    images = [image, image[::-1]]
    expected = torch.cat([lpips_fast.im2tensor(i.copy()) for i in images])
    assert torch.equal(Model(settings).tensor(images), expected)
    raw = Model(dataclasses.replace(settings, normalize=False)).tensor(images)
    assert torch.equal(raw, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255)


def test_masks_are_weights_from_0_to_1(settings):
    net = Model(settings)
    mask = np.array([[0, 51], [102, 255]], np.uint8)
    expected = torch.tensor([[[[0, 0.2], [0.4, 1]]]])
    torch.testing.assert_close(net.weight([mask, mask]), expected.expand(2, 1, 2, 2), rtol=0, atol=0)
    assert net.weight([None, None]) is None


def test_outcomes(settings, measure, monkeypatch):
    """Numbers and reasons by the pairs' numbers, whatever their sizes, and however few go through at once."""
    mask = soft_disc(32, 40)
    pairs = [
        Pair(noise(0), noise(1)),
        "a.png cannot be read:\n  no more",
        Pair(noise(2, 40, 32), noise(3, 40, 32)),
        Pair(noise(4, 16, 40), noise(5, 16, 40)),
        Pair(noise(6), noise(7)),
        Pair(noise(8, 40, 32), noise(8, 40, 32)),
    ]
    numbered = [(10 * i, pair) for i, pair in enumerate(pairs)]
    net = Model(settings)
    expected = {10 * i: measure(*pairs[i][:2]) for i in (0, 2, 4, 5)}
    sizes = []
    distances = net.distances
    monkeypatch.setattr(net, "distances", lambda batch: (sizes.append(len(batch)), distances(batch))[1])
    for most, batches in ((1 << 22, [2, 2]), (1, [1, 1, 1, 1]), (3 * 32 * 40, [2, 1, 1])):
        monkeypatch.setattr(model, "_PIXELS_AT_ONCE", most)
        found = net.outcomes(iter(numbered))
        assert sorted(found) == [0, 10, 20, 30, 40, 50]
        assert found[10] == "a.png cannot be read: no more"
        assert found[30] == "40 x 16 pixels; net 'squeeze' needs sides of at least 17"
        for number, value in expected.items():
            assert found[number] == pytest.approx(value, rel=REORDERED_TOLERANCE)
        assert sizes == batches
        sizes.clear()
    masked = net.outcomes([(0, Pair(noise(0), noise(1), mask))])[0]
    assert masked == pytest.approx(measure(noise(0), noise(1), mask), rel=REORDERED_TOLERANCE)
    monkeypatch.setattr(net, "distances", lambda batch: [math.nan] * len(batch))
    assert net.outcomes(numbered[:1]) == {0: "the distance is not finite"}


def test_strict_ends_at_the_first_reason(settings):
    net = Model(dataclasses.replace(settings, strict=True))
    with pytest.raises(ReadError, match=r"b\.png is broken"):
        net.outcomes([(0, Pair(noise(0), noise(1))), (1, "b.png is broken"), (2, "c.png, too")])
    with pytest.raises(ReadError, match="9 x 9 pixels"):
        net.outcomes([(0, Pair(noise(0, 9, 9), noise(1, 9, 9)))])


def test_layers_and_maps(settings, measure):
    """They add up to the distance; a mask leaves nothing of a map outside of it."""
    net = Model(settings)
    mask = soft_disc(32, 40)
    pair = Pair(noise(0), noise(1))
    value, layers = net.layers(pair)
    assert value == pytest.approx(measure(*pair[:2]), rel=REORDERED_TOLERANCE)
    assert sum(layers) == pytest.approx(value, rel=REORDERED_TOLERANCE)
    assert len(layers) == 7
    assert net.layers(pair._replace(mask=mask))[0] == pytest.approx(measure(*pair[:2], mask), rel=REORDERED_TOLERANCE)
    total, of_layers = net.maps(pair)
    assert total.shape == (32, 40)
    np.testing.assert_allclose(np.sum(of_layers, axis=0), total, rtol=REORDERED_TOLERANCE)
    assert total.mean() == pytest.approx(value, rel=MAP_MEAN_TOLERANCE)
    for map_, masked in zip(
        (total, *of_layers), (lambda t, p: (t, *p))(*net.maps(pair._replace(mask=mask))), strict=True
    ):
        np.testing.assert_allclose(masked, map_ * (mask / 255), rtol=REORDERED_TOLERANCE)
    assert not net.lpips.spatial


def test_embeddings_are_those_of_the_library(settings, fn):
    images = [noise(0), noise(1), noise(2)]
    expected = fn.embed(torch.cat([lpips_fast.im2tensor(image) for image in images]))
    torch.testing.assert_close(Model(settings).embed(images), expected)
