"""lpips.LPIPS and torchmetrics' network replaced in the running process, and put back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import lpips_fast
from lpips_fast import metric
from tests.support.images import pair
from tests.support.tolerances import METRIC_TOLERANCE, OTHERS_TOLERANCE

lpips = pytest.importorskip("lpips")

Imported = lpips.lpips.LPIPS  # before the patch, as other code does
REGISTRY = {"perceptual": lpips.LPIPS}
ORIGINAL = lpips.LPIPS.__init__


class Subclass(lpips.LPIPS):
    """A subclass in other code, which relies on the inside of the original."""


@pytest.fixture
def patched():
    with lpips_fast.patch():
        yield


@pytest.mark.usefixtures("patched")
def test_whatever_name_it_goes_by(make_ours, trunk_states):
    in0, in1 = pair(1, 40, 40)
    for make in (lpips.LPIPS, Imported, REGISTRY["perceptual"]):
        module = make(net="squeeze", pnet_rand=True, verbose=False)
        assert type(module) is lpips_fast.LPIPS
        module.load_state_dict(make_ours("squeeze").state_dict())
        assert torch.equal(module(in0, in1), make_ours("squeeze")(in0, in1))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(in0, in1), module(in0, in1))


@pytest.mark.usefixtures("patched")
def test_positional_arguments_and_errors():
    assert lpips.LPIPS(False, "squeeze", pnet_rand=True).pnet_type == "squeeze"
    with pytest.raises(ValueError, match="'resnet'"):
        lpips.LPIPS(net="resnet")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision's, in lpips
@pytest.mark.usefixtures("patched")
def test_subclasses_are_left_alone():
    module = Subclass(net="squeeze", pnet_rand=True, verbose=False)
    assert isinstance(module, lpips.LPIPS)
    assert not isinstance(module, lpips_fast.LPIPS)
    assert module(*pair(1, 40, 40)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_torchmetrics(monkeypatch, cached_trunk, net):
    torchmetrics = pytest.importorskip("torchmetrics")
    functional = torchmetrics.functional.image.learned_perceptual_image_patch_similarity
    monkeypatch.setattr("lpips_fast.weights.published.provide", cached_trunk)
    ours = metric.LearnedPerceptualImagePatchSimilarity(net_type=net)
    in0, in1 = (x.clamp(-1, 1) for x in pair(2, 40, 40))
    with lpips_fast.patch():
        theirs = torchmetrics.image.LearnedPerceptualImagePatchSimilarity(net_type=net)
        value = functional(in0, in1, net_type=net, reduction="none")
    assert type(theirs) is not type(ours)
    assert type(theirs.net) is type(ours.net)
    assert torch.equal(theirs(in0, in1), ours(in0, in1))
    assert torch.equal(theirs(in0[:1], in1[:1]), ours(in0[:1], in1[:1]))
    assert torch.equal(value.mean(), ours(in0, in1))
    assert theirs.state_dict().keys() == ours.state_dict().keys()


@pytest.fixture
def theirs_lpips(monkeypatch, cached_trunk, torchvision_features):
    """torchmetrics' module of LPIPS; one random trunk replaces ImageNet's in both packages."""
    module = pytest.importorskip("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(module, "_get_tv_model_features", torchvision_features)
    monkeypatch.setattr("lpips_fast.weights.published.provide", cached_trunk)
    return module


@pytest.mark.parametrize("name", ("_LPIPS", "_NoTrainLpips"))
@pytest.mark.parametrize(
    "arguments, options",
    (
        ((), {"net": "squeeze"}),
        ((True, "squeeze", True), {}),
        ((True, "squeeze", True, False, False, True, None, True, 48), {}),
        ((), {"net": "squeeze", "pnet_tune": True, "use_dropout": False}),
    ),
)
def test_the_network_inside_torchmetrics(theirs_lpips, name, arguments, options):
    """Code that makes the network itself keeps its arguments, calls and results."""
    kind = getattr(theirs_lpips, name)
    theirs = kind(*arguments, **options)
    with lpips_fast.patch():
        ours = kind(*arguments, **options)
    assert type(ours) is metric.Network
    theirs.load_state_dict(ours.state_dict(), strict=True)
    in0, in1 = ((x + 1) / 2 for x in pair(2, 40, 50))
    for call in ({}, {"retperlayer": True}, {"normalize": True}):
        torch.testing.assert_close(ours(in0, in1, **call), theirs(in0, in1, **call), **METRIC_TOLERANCE)


def test_subclasses_of_the_network_inside_torchmetrics(theirs_lpips):
    class Subclass(theirs_lpips._NoTrainLpips):
        pass

    with lpips_fast.patch():
        module = Subclass(net="squeeze")
    assert isinstance(module, theirs_lpips._NoTrainLpips)
    assert module(*pair(1, 40, 40)).shape == (1, 1, 1, 1)


class Generator(torch.nn.Module):
    """Images of 40 x 50 pixels in [0, 255], as the perceptual path length needs them."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 3 * 40 * 50), torch.nn.Sigmoid())

    def forward(self, z):
        return 255 * self.model(z).view(-1, 3, 40, 50)

    def sample(self, num_samples):
        return torch.randn(num_samples, 4)


@pytest.mark.parametrize("resize", (64, None))
def test_perceptual_path_length(theirs_lpips, resize):
    from torchmetrics.functional.image import perceptual_path_length
    from torchmetrics.image import PerceptualPathLength

    generator = Generator()

    def lengths(sim_net="squeeze"):
        made = PerceptualPathLength(num_samples=6, epsilon=0.5, resize=resize, sim_net=sim_net)
        made.update(generator)
        torch.manual_seed(0)
        by_metric = made.compute()
        torch.manual_seed(0)
        by_function = perceptual_path_length(generator, 6, epsilon=0.5, resize=resize, sim_net=sim_net)
        return made.net, (by_metric, by_function)

    theirs, expected = lengths()
    with lpips_fast.patch():
        patched, found = lengths()
    assert not isinstance(theirs, metric.Network)
    assert type(patched) is metric.Network
    torch.testing.assert_close(found, expected, rtol=OTHERS_TOLERANCE, atol=0)
    _, given = lengths(metric.Network(net="squeeze", resize=resize))
    torch.testing.assert_close(given, expected, rtol=OTHERS_TOLERANCE, atol=0)
    if resize:  # which torchmetrics leaves to a network that it is given
        _, ((mean, *_), _) = lengths(metric.Network(net="squeeze"))
        assert abs(mean / expected[0][0] - 1) > 0.01


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision's, in lpips
def test_undone():
    from torchmetrics.functional.image.lpips import _LPIPS, _NoTrainLpips

    originals = lpips.LPIPS, _LPIPS, _NoTrainLpips
    before = [dict(vars(original)) for original in originals]
    patch = lpips_fast.patch()
    made = lpips.LPIPS(net="squeeze", pnet_rand=True)
    with lpips_fast.patch():  # within the other, which goes on
        pass
    assert type(lpips.LPIPS(net="squeeze", pnet_rand=True)) is lpips_fast.LPIPS
    patch.undo()
    patch.undo()
    assert [dict(vars(original)) for original in originals] == before
    module = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    assert type(module) is Imported
    in0, in1 = pair(1, 40, 40)
    module.load_state_dict(made.state_dict())
    torch.testing.assert_close(module(in0, in1), made(in0, in1))
    with lpips_fast.patch():
        assert type(lpips.LPIPS(net="squeeze", pnet_rand=True)) is lpips_fast.LPIPS


def test_undone_after_an_exception():
    with pytest.raises(ValueError, match="'resnet'"), lpips_fast.patch():
        lpips.LPIPS(net="resnet")  # ours, which says so
    assert lpips.LPIPS.__init__ is ORIGINAL


def test_nothing_to_patch(monkeypatch):
    monkeypatch.setattr("lpips_fast.compat.monkeypatch.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lpips and torchmetrics.*neither"):
        lpips_fast.patch()
