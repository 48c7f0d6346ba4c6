"""LPIPS whole, as a metric and as a loss: ours against lpips 0.1.4, time and memory.

    python -m benchmarks.end_to_end --case vgg:4:256 --case alex:4:256 [--threads 2 --json end_to_end.jsonl]

A case is net:pairs:size. Providers take turns; times are medians with 20% and 80% quantiles, ratios those of medians.
`forward` is the metric without gradients, `step` the loss with the gradient to the first image, as in training. Both
use one random trunk, and nothing is timed unless values agree to 1e-5 and gradients to a cosine of 0.9999.
Memory: `kept` are the bytes of the tensors that a forward keeps for its backward, apart from inputs and weights;
`peak` is how far the resident memory of a process of its own rises above where it was before its first call.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import threading
import warnings

import torch

import lpips_fast

from .common import context, interleaved, quantiles, write_records

OURS = {
    "ours": {},
    "ours, direct convolution": {"cpu_conv": "direct"},
    "ours, gradient in forward": {"grad_in_forward": True},
}
PROVIDERS = ("lpips 0.1.4", *OURS)


def make(provider, net, state):
    if provider in OURS:
        fn = lpips_fast.LPIPS(net=net, pnet_rand=True, **OURS[provider])
    else:
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
            fn = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    fn.load_state_dict(state)
    return fn


def make_state(net):
    torch.manual_seed(0)
    return lpips_fast.LPIPS(net=net, pnet_rand=True).state_dict()


def make_images(pairs, size):
    gen = torch.Generator().manual_seed(0)
    in0 = torch.rand(pairs, 3, size, size, generator=gen) * 2 - 1
    return in0, (in0 + 0.2 * torch.randn(in0.shape, generator=gen)).clamp(-1, 1)


def forward(fn, in0, in1):
    with torch.no_grad():
        return fn(in0, in1)


def step(fn, in0, in1):
    in0 = in0.detach().requires_grad_()
    fn(in0, in1).mean().backward()
    return in0.grad


def kept_bytes(fn, in0, in1):
    in0 = in0.clone().requires_grad_()
    step(fn, in0, in1)  # weights that are converted once are no part of it
    before = {t.data_ptr() for t in (in0, in1, *fn.parameters(), *fn.buffers())}
    if isinstance(fn, lpips_fast.LPIPS):
        before |= {t.data_ptr() for t in fn.net.tensors(fn.net.setting(in0.device))}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fn(in0, in1)
    return sum(storages.values())


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def peak_bytes(mode, fn, in0, in1):
    start, peak, done = resident(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        {"forward": forward, "step": step}[mode](fn, in0, in1)
    done.set()
    watcher.join()
    return peak - start


def peak_in_process(provider, mode, net, pairs, size, threads):
    command = [sys.executable, "-m", "benchmarks.end_to_end", "--peak-of", provider, mode, net, str(pairs), str(size)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def check(functions, in0, in1):
    expected = functions["lpips 0.1.4"]
    value, grad = forward(expected, in0, in1), step(expected, in0, in1)
    for name, fn in functions.items():
        error = ((forward(fn, in0, in1) - value) / value).abs().max().item()
        cosine = torch.cosine_similarity(step(fn, in0, in1).flatten(), grad.flatten(), dim=0).item()
        if not (error < 1e-5 and cosine > 0.9999):
            raise SystemExit(f"{name} is off: value by {error:.1e}, gradient's cosine {cosine}")


def measure(net, pairs, size, repeats, threads):
    state = make_state(net)
    functions = {name: make(name, net, state) for name in PROVIDERS}
    in0, in1 = make_images(pairs, size)
    check(functions, in0, in1)
    for mode, call in (("forward", forward), ("step", step)):
        calls = {name: functools.partial(call, fn, in0, in1) for name, fn in functions.items()}
        seconds = {name: quantiles(values) for name, values in interleaved(calls, "cpu", repeats).items()}
        theirs = seconds["lpips 0.1.4"][1]
        for name, (q20, median, q80) in seconds.items():
            yield {
                "net": net,
                "pairs": pairs,
                "size": size,
                "mode": mode,
                "provider": name,
                "threads": threads,
                "median_s": median,
                "q20_s": q20,
                "q80_s": q80,
                "times_faster_than_lpips": theirs / median,
                "kept_bytes": kept_bytes(functions[name], in0, in1) if mode == "step" else 0,
                "peak_bytes": peak_in_process(name, mode, net, pairs, size, threads),
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="net:pairs:size, again and again; default vgg:4:256")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="file to append records to, a line each")
    parser.add_argument("--peak-of", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        provider, mode, net, pairs, size = args.peak_of
        fn = make(provider, net, make_state(net))
        print(peak_bytes(mode, fn, *make_images(int(pairs), int(size))))
        return
    for case in args.case or ["vgg:4:256"]:
        net, pairs, size = case.split(":")
        for record in measure(net, int(pairs), int(size), args.repeats, args.threads):
            if args.json:
                write_records(args.json, [{**record, **context("cpu")}])
            print(
                f"{case:14s} {record['mode']:8s} {record['provider']:26s} {record['median_s'] * 1e3:9.1f} ms "
                f"({record['q20_s'] * 1e3:.1f} to {record['q80_s'] * 1e3:.1f})  "
                f"x{record['times_faster_than_lpips']:.2f}  "
                f"kept {record['kept_bytes'] / 2**20:.1f} MiB  peak {record['peak_bytes'] / 2**20:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
