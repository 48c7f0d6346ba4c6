"""That what is wrong is not timed, that who fails does not stop the rest, and what is counted."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import lpips_fast
from lpips_fast.bench import cases, ceilings, end_to_end, head, layers, providers, timing
from lpips_fast.bench.cases import Case
from lpips_fast.bench.ceilings import Ceilings
from lpips_fast.bench.providers import Provider
from lpips_fast.cli import app

CPU = torch.device("cpu")
LIMITS = Ceilings(1e10, {"float32": 1e11})
SMALL = Case("alex", 3, 32)


def scaled(factor, gradient_factor):
    """Ours, with its distances and its gradients multiplied; and the list of its calls."""
    calls = []

    def make(weights, sample):
        fn = providers.copied(weights, sample[0])

        def distance(in0, in1):
            calls.append(in0)
            value = fn(in0, in1)
            return value * gradient_factor + (value * (factor - gradient_factor)).detach()

        return distance

    return Provider(make), calls


def whole(mode, others, rounds=2, memory=False):
    tried = {"ours": providers.PROVIDERS["ours"], **others}
    records = end_to_end.measure(SMALL, mode, CPU, rounds, tried, LIMITS, memory)
    return {record["provider"]: record for record in records}


@pytest.mark.parametrize("mode,factor,gradient_factor", (("forward", 1.001, 1), ("step", 1, 1.01), ("step", 1, -1)))
def test_wrong_provider_is_not_timed(mode, factor, gradient_factor):
    wrong, calls = scaled(factor, gradient_factor)
    found = whole(mode, {"wrong": wrong})
    assert "wrong, not timed" in found["wrong"]["error"]
    assert "median_s" not in found["wrong"]
    assert len(calls) == 1  # the check's
    assert found["ours"]["median_s"] > 0


def test_right_provider_is_timed():
    right, calls = scaled(1, 1)
    assert whole("step", {"right": right}, rounds=3)["right"]["median_s"] > 0
    assert len(calls) == 1 + 1 + 3  # checked, warmed up, timed


def test_what_is_compiled_keeps_no_record_back(monkeypatch):
    """Stopped while something is compiled, a run has the others' records; in the end all took turns."""
    told, turns = [], []

    def compile(fn, dynamic):
        assert [record["provider"] for record in told] == ["ours"]
        return fn

    def interleaved(setups, clock, rounds):
        turns.append(list(setups))
        return timing.interleaved(setups, clock, rounds)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(end_to_end, "interleaved", interleaved)
    ours = providers.PROVIDERS["ours"]
    tried = {"compiled": ours._replace(wrapper="compile"), "ours": ours}
    for record in end_to_end.measure(SMALL, "forward", CPU, 1, tried, LIMITS, False):
        told.append(record)
    assert turns == [["ours"], ["ours", "compiled"]]
    assert [record["provider"] for record in told] == ["ours", "ours", "compiled", "limit"]


def test_failures_and_absence_are_told():
    def fails(weights, sample):
        raise RuntimeError("out of\n memory")

    def fails_later(weights, sample):
        fn = providers.copied(weights, sample[0])
        turns = iter([True, True])
        return lambda in0, in1: fn(in0, in1) if next(turns, False) else fails(None, None)

    absent = Provider(fails, package="no_such_package")
    found = whole("forward", {"fails": Provider(fails), "later": Provider(fails_later), "absent": absent})
    assert found["fails"]["error"] == found["later"]["error"] == "RuntimeError: out of memory"
    assert found["absent"]["error"] == "no_such_package is not installed"
    assert found["ours"]["median_s"] > 0


def test_limit_is_the_larger_of_two():
    flops, n_bytes = cases.work(SMALL, "step", itemsize=4)
    for limits, expected in (
        (Ceilings(1e30, {"float32": 1e9}), flops / 1e9),
        (Ceilings(1e6, {"float32": 1e30}), n_bytes / 1e6),
    ):
        *_, record = end_to_end.measure(SMALL, "step", CPU, 1, {"ours": providers.PROVIDERS["ours"]}, limits, False)
        assert record["provider"] == "limit"
        assert record["median_s"] == pytest.approx(expected)


@pytest.mark.parametrize("mode", head.MODES)
def test_wrong_head_is_not_timed(mode):
    right = head.providers(CPU, compile=False)
    wrong = lambda *lists: right["reference"](*lists) * 1.001  # noqa: E731
    measured = head.measure(Case("alex", 1, 32), "float32", "nchw", mode, CPU, 1, {**right, "wrong": wrong})
    found = {record["provider"]: record for record in measured}
    assert "wrong, not timed" in found["wrong"]["error"]
    for name in (*right, "copy"):
        assert found[name]["median_s"] > 0
        assert found[name]["bytes"] > 0


def test_head_bytes():
    feats = head.features(Case("vgg", 2, 32), torch.bfloat16, "channels_last", "backward", CPU)
    _, taps = cases.trunk_layers("vgg", 32)
    assert feats.bytes_moved == 3 * 2 * 2 * sum(c * h * w for c, h, w in taps)


class WrongLayer(layers.Torch):
    def convolution(self, unit, x):
        return super().convolution(unit, x) * 1.0001


def test_wrong_layer_is_not_timed():
    candidates = {**layers.providers("alex", CPU, ["float32"]), "wrong": WrongLayer("float32")}
    names = set()
    for record in layers.measure(Case("alex", 1, 32), CPU, 1, candidates, LIMITS):
        assert ("error" in record) == (record["provider"] == "wrong"), record
        names.add((record["layer"], record["mode"], record["provider"]))
    assert len(names) == 5 * 2 * (1 + len(candidates))


@pytest.mark.parametrize("net,size", (("vgg", 64), ("alex", 70), ("squeeze", 65)))
def test_flops_are_torchs(net, size):
    found, taps = cases.trunk_layers(net, size)
    model = cases.random_lpips(net)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = cases.slices_of(model, torch.zeros(1, 3, size, size))
    assert sum(layer.flops for layer in found) == counter.get_total_flops()
    assert [tuple(t.shape[1:]) for t in outputs] == list(taps)


def test_work_of_vgg():
    layers_of_vgg, _ = cases.trunk_layers("vgg", 256)
    assert [layer.name for layer in layers_of_vgg][:3] == ["conv1_1", "conv1_2", "conv2_1"]
    per_image = sum(layer.flops for layer in layers_of_vgg)
    assert cases.work(Case("vgg", 4, 256), "forward", 4)[0] == 8 * per_image
    assert cases.work(Case("vgg", 4, 256), "step", 4)[0] == 12 * per_image


@pytest.mark.parametrize("text", ("vgg", "vgg:0:64", "vgg:1:15", "resnet:1:64", "vgg:1:64:2", "vgg:1:-64"))
def test_case_that_is_none(text):
    with pytest.raises(ValueError, match="case"):
        Case.parse(text)


def test_turns_and_quantiles():
    order = []
    setups = {name: functools.partial(lambda name: functools.partial(order.append, name), name) for name in "ab"}
    setups["broken"] = lambda: functools.partial(int, "x")
    times, failures = timing.interleaved(setups, timing.Clock(CPU), rounds=7)
    turns = {("a", "b"), ("b", "a")}
    assert {tuple(order[i : i + 2]) for i in range(0, 16, 2)} == turns  # all once a round, in changing order
    assert len(order) == 16
    assert set(times) == {"a", "b"}
    assert failures == {"broken": "ValueError: invalid literal for int() with base 10: 'x'"}
    assert timing.Quantiles.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)
    assert timing.Quantiles.of([7.0]) == (7.0, 7.0, 7.0)


def test_kept_bytes():
    x, weight = torch.rand(10, 10, requires_grad=True), torch.rand(10, 10)
    assert timing.kept_bytes(lambda: (x * weight).sum()) == 0  # an input and a weight
    assert timing.kept_bytes(lambda: (x * weight).exp().exp().sum()) == 2 * 400


def test_resident_peak():
    n_bytes = 64 << 20
    found = timing.resident_peak_bytes(lambda: torch.ones(n_bytes, dtype=torch.uint8))
    assert 0.9 * n_bytes < found < 1.5 * n_bytes  # some pages may have been there, or be another's


def test_ceilings(monkeypatch):
    small = torch.ones(64, 64)
    monkeypatch.setattr(ceilings, "copy", lambda device: (small.clone, 2 * small.nbytes))
    monkeypatch.setattr(ceilings, "product", lambda device, precision: (lambda: small @ small, 2 * 64**3))
    records = list(ceilings.measure(CPU, ["float32"], rounds=2))
    found = ceilings.of_records(records)
    assert found.bytes_per_s == 2 * small.nbytes / records[0]["median_s"]
    assert found.flops_per_s == {"float32": 2 * 64**3 / records[1]["median_s"]}


@pytest.mark.parametrize("name", sorted(set(providers.PROVIDERS) - set(providers.PEERS)))
def test_our_providers_are_lpips(name):
    """They differ in how they compute, not in what."""
    provider = providers.PROVIDERS[name]
    made = provider.make(cases.random_lpips("alex"), cases.images(SMALL, CPU))
    assert isinstance(made, lpips_fast.LPIPS)


def test_exit_status_and_usage(monkeypatch):
    def run(*arguments):
        command = ["bench", "end-to-end", "--device", "cpu", "--case", "alex:1:32", "--rounds", "1", "--no-memory"]
        return CliRunner().invoke(app, [*command, *arguments])

    monkeypatch.setattr(ceilings, "measure", lambda *_: iter(()))
    wrong, _ = scaled(1.1, 1.1)
    absent = Provider(wrong.make, package="no_such_package")
    monkeypatch.setattr(providers, "PROVIDERS", {"lpips 0.1.4": absent, "ours": wrong})
    assert run().exit_code == 1
    result = run("--provider", "lpips 0.1.4")  # a peer's absence is no failure
    assert result.exit_code == 0
    assert "not measured: lpips 0.1.4: no_such_package is not installed" in result.output
    result = run("--provider", "nobody")
    assert result.exit_code == 2
    assert "ours" in result.output
    assert run("--case", "vgg:1:1").exit_code == 2
    assert run("--device", "meta").exit_code == 2


def test_a_graph_keeps_what_has_its_weights(monkeypatch):
    """It knows their addresses alone: once they are freed it reads other memory."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda function, sample: lambda *images: sum(images))

    class Weights:
        def __call__(self, in0, in1):
            return in0 + in1

    weights = Weights()
    alive = weakref.ref(weights)
    distance = providers.graphed(weights, (torch.ones(1), torch.ones(1)))
    del weights
    gc.collect()
    assert alive() is not None
    assert distance(torch.ones(1), torch.ones(1)) == 2
