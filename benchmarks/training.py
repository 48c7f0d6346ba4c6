"""A step of training the linear weights: lpips 0.1.4's Trainer, ours, and ours with cached features.

    python -m benchmarks.training [--net squeeze --net alex --batch 50 --repeats 7 --json training.jsonl]

A step takes a batch of triplets of 64 x 64, or their features, from memory and runs forward, backward, Adam and
clamping. It is timed with dropout, as in the recipe, and without. All providers have the same weights: ImageNet's in
the trunk or, if they cannot be had, random ones. Nothing is timed unless the first three steps without dropout give the
losses of lpips to 1e-5 relative.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from pathlib import Path

import lpips
import torch

import lpips_fast
from lpips_fast.bapps import TwoAFCDataset, give_taste, read_batches, synthesize
from lpips_fast.bench.records import Run, append
from lpips_fast.bench.timing import Clock, interleaved
from lpips_fast.calibration import Calibration, FeatureCache, Recipe

REFERENCE = "lpips 0.1.4"


def make_ours(net, state, batch, dropout, triplets):
    fn = lpips_fast.LPIPS(net=net, pretrained=False, pnet_rand=True, eval_mode=False)
    fn.load_state_dict(state["fn"])
    calibration = Calibration(fn, Recipe(batch_size=batch, epochs=1000, dropout=dropout), triplets)
    calibration._model.ranking.load_state_dict(state["ranking"])
    return calibration


def make_theirs(net, state, dropout):
    trainer = lpips.Trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
        trainer.initialize(net=net, use_gpu=False, is_train=True, pnet_rand=True)
    trainer.net.load_state_dict(state["fn"])
    trainer.net.train(dropout)
    trainer.rankLoss.load_state_dict(state["ranking"])
    # By itself lpips also clamps SqueezeNet's 1 x 1 convolutions. Without that it has less work, and comparable losses.
    linear = list(trainer.net.lins.parameters())
    trainer.clamp_weights = lambda: [weight.data.clamp_(min=0) for weight in linear]
    return trainer


def their_step(trainer, batch):
    trainer.set_input(batch._asdict())
    trainer.optimize_parameters()
    return trainer.loss_total.item()


def our_step(calibration, batch):
    return calibration.step(torch.cat((batch.ref, batch.p0, batch.p1)), batch.judge).loss.item()


def cached_step(calibration, features, triplets):
    return calibration.step(*features.take(triplets)).loss.item()


def steps(net, state, samples, size, dropout, features):
    """By provider, a function that takes the next step. All take the same batches."""
    theirs = make_theirs(net, state, dropout)
    plain, cached = (make_ours(net, state, size, dropout, len(samples)) for _ in range(2))
    indices = list(itertools.islice(plain.batches(), 3))
    batches = list(read_batches(samples, indices, 0))
    each = {name: itertools.cycle(range(3)) for name in ("theirs", "plain", "cached")}
    return {
        REFERENCE: lambda: their_step(theirs, batches[next(each["theirs"])]),
        "ours": lambda: our_step(plain, batches[next(each["plain"])]),
        "ours, cached features": lambda: cached_step(cached, features, indices[next(each["cached"])]),
    }


def check(calls):
    for _ in range(3):
        expected, *found = (call() for call in calls.values())
        for name, loss in zip(list(calls)[1:], found, strict=True):
            if not abs(loss - expected) <= 1e-5 * expected:
                raise SystemExit(f"{name} is off: loss {loss}, that of lpips {expected}")


def measure(net, size, repeats):
    try:
        fn = lpips_fast.LPIPS(net=net, pretrained=False, eval_mode=False, verbose=False)
    except RuntimeError:
        fn = lpips_fast.LPIPS(net=net, pretrained=False, eval_mode=False, pnet_rand=True)
    state = {"fn": fn.state_dict(), "ranking": lpips_fast.BCERankingLoss().state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        judge = lpips_fast.LPIPS(net=net, pnet_rand=True)
        give_taste(judge)
        synthesize(Path(folder) / "judged", judge, triplets=3 * size)
        samples = TwoAFCDataset(Path(folder) / "judged", ["train/synthetic"])
        features = FeatureCache(fn, samples)
        for _ in features.fill(0):
            pass
        check(steps(net, state, samples, size, False, features))
        for dropout in (True, False):
            calls = steps(net, state, samples, size, dropout, features)
            setups = {name: lambda call=call: call for name, call in calls.items()}
            seconds, errors = interleaved(setups, Clock(torch.device("cpu")), repeats)
            if errors:
                raise SystemExit(f"failed: {errors}")
            for name, quantiles in seconds.items():
                yield {
                    "net": net,
                    "triplets": size,
                    "size": 64,
                    "dropout": dropout,
                    "provider": name,
                    "repeats": repeats,
                    **quantiles.record(),
                    "times_faster_than_lpips": seconds[REFERENCE].median / quantiles.median,
                }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--batch", type=int, default=50, help="triplets a step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    args = parser.parse_args()
    run = Run(torch.device("cpu"))
    for net in args.net or ("squeeze", "alex"):
        for record in measure(net, args.batch, args.repeats):
            print(
                f"{record['net']:8} dropout {'on ' if record['dropout'] else 'off'}  {record['provider']:22}"
                f"{1e3 * record['median_s']:9.1f} ms  ({1e3 * record['q20_s']:.1f} to {1e3 * record['q80_s']:.1f})"
                f"{record['times_faster_than_lpips']:8.2f} x",
                flush=True,
            )
            if args.json:
                append(args.json, {**record, **run.context})


if __name__ == "__main__":
    main()
