"""lpips.LPIPS and torchmetrics' network replaced in the running process, and put back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import lpips_fast
from lpips_fast import metric

from .images import pair

lpips = pytest.importorskip("lpips")

Imported = lpips.lpips.LPIPS  # before the patch, as other code does
REGISTRY = {"perceptual": lpips.LPIPS}
ORIGINAL = lpips.LPIPS.__init__


class Subclass(lpips.LPIPS):
    """Other code's, which knows the original's inside."""


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
    monkeypatch.setattr("lpips_fast.weights._torchvision_file", cached_trunk)
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


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision's, in lpips
def test_undone():
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    before = dict(vars(lpips.LPIPS)), dict(vars(_NoTrainLpips))
    patch = lpips_fast.patch()
    made = lpips.LPIPS(net="squeeze", pnet_rand=True)
    with lpips_fast.patch():  # within the other, which goes on
        pass
    assert type(lpips.LPIPS(net="squeeze", pnet_rand=True)) is lpips_fast.LPIPS
    patch.undo()
    patch.undo()
    assert (dict(vars(lpips.LPIPS)), dict(vars(_NoTrainLpips))) == before
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
    monkeypatch.setattr("lpips_fast.patching.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lpips and torchmetrics.*neither"):
        lpips_fast.patch()
