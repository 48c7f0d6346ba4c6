"""The training: against the Trainer of lpips, resumed, with cached features, and whether it learns."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import lpips_fast
from lpips_fast.bapps import TwoAFCDataset, evaluate, give_taste, read_batches, synthesize
from lpips_fast.calibration import Calibration, FeatureCache, Recipe
from tests.support.images import SIZE, image
from tests.support.tolerances import (
    CACHED_TRAINED_WEIGHTS_TOLERANCE,
    DRAWS_MEAN_TOLERANCE,
    DRAWS_STD_TOLERANCE,
    HALF_TRAINED_WEIGHTS_TOLERANCE,
    REORDERED_TOLERANCE,
    TRAINED_WEIGHTS_TOLERANCE,
)


def train(calibration, samples, steps):
    for batch, _ in zip(read_batches(samples, calibration.batches(), 0), range(steps)):
        calibration.step(torch.cat(batch[:3]), batch.judge)


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name, **{"rtol": 0, "atol": 0, **tolerance})


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_as_the_reference(net, make, monkeypatch):
    """Both have the same weights after 20 steps from the same start, with dropout off."""
    lpips = pytest.importorskip("lpips")
    calibration = make(net, triplets=1000, dropout=False, learning_rate=1e-3)
    trainer = lpips.Trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's
        trainer.initialize(net=net, use_gpu=False, is_train=True, pnet_rand=True, lr=1e-3)
    trainer.net.load_state_dict(calibration.fn.state_dict())
    trainer.rankLoss.load_state_dict(calibration.state_dict()["ranking"])
    trainer.net.eval()
    if net == "squeeze":  # lpips destroys this trunk: it clamps every 1 x 1 convolution, not only the linear weights
        linear = list(trainer.net.lins.parameters())
        monkeypatch.setattr(trainer, "clamp_weights", lambda: [w.data.clamp_(min=0) for w in linear])
    before = copy.deepcopy(calibration.weights())
    for step in range(20):
        ref, p0, p1 = (image(4, *SIZE[net], seed=3 * step + k) for k in range(3))
        judge = torch.rand(4, 1, 1, 1)
        trainer.set_input({"ref": ref, "p0": p0, "p1": p1, "judge": judge})
        trainer.optimize_parameters()
        done = calibration.step(torch.cat((ref, p0, p1)), judge)
        assert done.loss.item() == pytest.approx(trainer.loss_total.item(), rel=REORDERED_TOLERANCE)
        assert done.agreement.item() == pytest.approx(trainer.get_current_errors()["acc_r"], rel=REORDERED_TOLERANCE)
    assert done.number == 20
    theirs = trainer.net.state_dict()
    assert_same(calibration.weights(), {name: theirs[name] for name in before}, atol=TRAINED_WEIGHTS_TOLERANCE)
    assert_same(calibration.state_dict()["ranking"], trainer.rankLoss.state_dict(), atol=TRAINED_WEIGHTS_TOLERANCE)
    moved = max((calibration.weights()[name] - before[name]).abs().max().item() for name in before)
    assert moved > 1e-2  # a thousand times the tolerance


def test_learning_rate():
    rates = [Recipe(learning_rate=1.0).rate(epoch) for epoch in range(10)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_batches(make):
    calibration = make(triplets=7, batch_size=3, epochs=2, decay_epochs=1)
    assert (calibration.steps_an_epoch, calibration.steps) == (3, 9)
    batches = list(calibration.batches())
    assert [len(batch) for batch in batches] == [3, 3, 1] * 3
    epochs = [[n for batch in batches[i : i + 3] for n in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    calibration.done = 4
    assert list(calibration.batches()) == batches[4:]


def test_dropout(make):
    """Half of the squared differences count double: mean and spread are those of nn.Dropout."""
    torch.manual_seed(0)
    model = make()._model
    taps = [torch.rand(6, c, 2, 3) for c in model.fn.chns]
    for weight in model.fn.linear_weights():
        weight.data.abs_()
    with torch.no_grad():
        seeds = (torch.Generator().manual_seed(i) for i in range(400))
        draws = torch.stack([torch.stack(model._with_dropout(taps, seed)) for seed in seeds])
        drop = nn.Dropout()
        expected = []
        for _ in range(400):
            total = 0
            for tap, weight in zip(taps, model.fn.linear_weights()):
                ref, p0, p1 = lpips_fast.normalize_tensor(tap).split(2)
                total = total + torch.stack([(weight * drop((ref - p) ** 2)).sum(1).mean((1, 2)) for p in (p0, p1)])
            expected.append(total)
        expected = torch.stack(expected)
        torch.testing.assert_close(draws.mean(0), torch.stack(model._without(taps)), rtol=DRAWS_MEAN_TOLERANCE, atol=0)
        torch.testing.assert_close(draws.std(0), expected.std(0), rtol=DRAWS_STD_TOLERANCE, atol=0)


def test_weights_stay_non_negative(make, samples):
    calibration = make(batch_size=8, learning_rate=0.05)
    train(calibration, samples, 3)
    weights = torch.cat([weight.flatten() for weight in calibration.weights().values()])
    assert weights.min() == 0
    assert weights.max() > 0


def test_resume(make, samples):
    """A resumed run is equal to the bit, in the middle of an epoch, with dropout."""
    recipe = {"triplets": 20, "batch_size": 8, "epochs": 1, "decay_epochs": 2}
    whole, first, second = (make(**recipe) for _ in range(3))
    train(whole, samples, 9)
    train(first, samples, 4)
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(5)
    second.load_state_dict(state)
    train(second, samples, 9)
    assert second.done == 9
    for part in ("weights", "ranking"):
        assert_same(second.state_dict()[part], whole.state_dict()[part])
    assert not torch.equal(state["weights"]["lin0.model.1.weight"], whole.weights()["lin0.model.1.weight"])


def test_state_of_another_run(make):
    state = make().state_dict()
    with pytest.raises(ValueError, match="net was 'alexnet', is 'squeezenet1_1'"):
        make("squeeze").load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size was 50, is 10"):
        make(batch_size=10).load_state_dict(state)
    other = make()
    with torch.no_grad():
        other.fn.net.slice1[0].bias += 1
    with pytest.raises(ValueError, match="trunk was"):
        other.load_state_dict(state)


DAMAGES = {
    "done": (None, "2", 2.0, -1, 10**6),
    "about": (None, [], 3),
    "weights": (None, [], {}, {"lin0.model.1.weight": 3}, {"lin0.model.1.weight": torch.zeros(2)}),
    "ranking": (None, 3, {}, {"net.model.0.weight": torch.zeros(2)}),
    "optimizer": (None, [], {}, {"state": {}}, {"state": {0: {}}}, {"state": [1]}),
}


@pytest.mark.parametrize("options", ({}, {"pnet_tune": True}), ids=("frozen", "tuned"))
def test_a_damaged_state(make, samples, options):
    recipe = {"triplets": 8, "batch_size": 4, "epochs": 1, "decay_epochs": 0, "options": options}
    calibration, other = make(**recipe), make(**recipe)
    train(calibration, samples, 1)
    state = copy.deepcopy(calibration.state_dict())
    for key, damages in DAMAGES.items():
        for damaged in ({k: v for k, v in state.items() if k != key}, *({**state, key: value} for value in damages)):
            with pytest.raises(ValueError, match=r"a damaged run: .{20}|a run with other settings: .{20}"):
                other.load_state_dict(damaged)
    for value in (torch.nan, 0):
        spoiled = copy.deepcopy(state)
        moment = spoiled["optimizer"]["state"][1]["exp_avg"]
        spoiled["optimizer"]["state"][1]["exp_avg"] = moment * value if value else moment.flatten()[:1]
        with pytest.raises(ValueError, match="a damaged run: 'optimizer'"):
            other.load_state_dict(spoiled)
    with pytest.raises(ValueError, match="a run with other settings: net was tensor"):
        other.load_state_dict({**state, "about": {**state["about"], "net": torch.zeros(2)}})
    other.load_state_dict(state)
    assert other.done == 1
    other = make(**recipe)
    other.load_state_dict(make(**recipe).state_dict())
    assert other.done == 0


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_cached_features(make, some, tmp_path, on_disk, dropout):
    plain, cached = (make("squeeze", triplets=70, batch_size=8, dropout=dropout) for _ in range(2))
    folder = tmp_path / "features" if on_disk else None
    features = FeatureCache(cached.fn, some, folder)
    assert list(features.fill(0)) == [32, 32, 6]
    if on_disk:
        features = FeatureCache(cached.fn, some, folder)
        assert list(features.fill(0)) == []
    train(plain, some, 4)
    for triplets, _ in zip(cached.batches(), range(4)):
        cached.step(*features.take(triplets))
    assert_same(cached.weights(), plain.weights(), atol=CACHED_TRAINED_WEIGHTS_TOLERANCE)


@pytest.mark.parametrize("dropout", [False, True])
def test_tuned_trunk(make, samples, tmp_path, dropout):
    """The trunk changes, and lpips and we read its file."""
    lpips = pytest.importorskip("lpips")
    calibration = make(options={"pnet_tune": True}, batch_size=4, dropout=dropout)
    before = calibration.fn.net.slice1[0].weight.detach().clone()
    train(calibration, samples, 2)
    assert not torch.equal(calibration.fn.net.slice1[0].weight, before)
    path = tmp_path / "weights.pth"
    lpips_fast.weights.files.save_state_dict(path, calibration.weights())
    calibration.fn.eval()
    pair = image(2, 40, 40, seed=1), image(2, 40, 40, seed=2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = calibration.fn(*pair)
        ours = lpips_fast.LPIPS(net="alex", model_path=path)
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, model_path=str(path), verbose=False)
        torch.testing.assert_close(ours(*pair), expected)
        torch.testing.assert_close(theirs(*pair), expected)
    with pytest.raises(ValueError, match="has a trunk, too"):
        lpips_fast.LPIPS(net="alex", model_path=path, trunk_weights=path)
    resumed = make(options={"pnet_tune": True}, batch_size=4, dropout=dropout)
    resumed.load_state_dict(calibration.state_dict())
    assert_same(resumed.weights(), calibration.weights())


def test_half_precision(make, samples):
    """With a trunk in bfloat16 the weights learn nearly the same, and stay in float32."""
    full, half = (make(options={"precision": p}, batch_size=16, dropout=False) for p in ("inherit", "bfloat16"))
    for calibration in (full, half):
        train(calibration, samples, 3)
    assert_same(half.weights(), full.weights(), atol=HALF_TRAINED_WEIGHTS_TOLERANCE)
    assert all(weight.dtype == torch.float32 for weight in half.weights().values())


def test_errors(make, make_ours):
    with pytest.raises(ValueError, match="make it with eval_mode=False"):
        Calibration(make_ours("alex"), Recipe(), 10)
    with pytest.raises(ValueError, match="tune it with precision 'bfloat16'"):
        make(options={"pnet_tune": True, "precision": "float16"})
    for name, value in (("batch_size", 0), ("epochs", -1), ("learning_rate", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
            Recipe(**{name: value})


@pytest.mark.parametrize("net, taste", [("alex", 0), ("squeeze", 3)])
def test_recovers_the_judge(net, taste, shared, monkeypatch, tmp_path):
    """On unseen triplets: at least 0.9 of the judge's own score, and clearly above uniform weights."""
    monkeypatch.setenv("TORCH_HOME", str(shared / "torch_home"))
    judge = lpips_fast.LPIPS(net=net)
    give_taste(judge, taste)
    synthesize(tmp_path / "judged", judge, triplets=800)
    samples = TwoAFCDataset(tmp_path / "judged", ["train/synthetic"])
    torch.manual_seed(1)
    fn = lpips_fast.LPIPS(net=net, pretrained=False, eval_mode=False)
    calibration = Calibration(fn, Recipe(batch_size=20, epochs=4, decay_epochs=4, learning_rate=1e-3), len(samples))
    features = FeatureCache(fn, samples)
    list(features.fill(0))
    for triplets in calibration.batches():
        calibration.step(*features.take(triplets))
    held_out = TwoAFCDataset(tmp_path / "judged", ["val/synthetic"])

    def score(fn):
        def distance(ref, others):
            taps = fn.features(ref)
            return [fn(other, taps) for other in others]

        return evaluate(held_out, distance)

    fn.eval()
    learnt, ceiling, uniform = score(fn), score(judge), score(lpips_fast.LPIPS(net=net, lpips=False))
    print(f"{net}: learnt {learnt:.4f}, judge {ceiling:.4f}, uniform {uniform:.4f}")
    assert learnt >= 0.9 * ceiling
    assert learnt >= (uniform + ceiling) / 2
    assert uniform < ceiling - 0.1
