"""Threads, forked and spawned processes, DataLoader workers, DDP and FSDP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import lpips_fast
import lpips_fast.distance.grad_in_forward
import lpips_fast.trunk.execute
from lpips_fast.lpips import LPIPS
from tests.support.comparisons import assert_close, assert_norms_close, assert_value_and_gradient_close
from tests.support.gradients import value_and_gradient
from tests.support.images import noise, pair
from tests.support.tolerances import GRAD_TOLERANCE, REORDERED_TOLERANCE, ROUNDED_INPUT_TOLERANCE, VALUE_TOLERANCE


def test_threads_at_once(make_ours):
    """Each thread may be the first to use the module, which then converts its weights and keeps them."""
    for _ in range(5):
        fn, barrier, found = make_ours("squeeze"), threading.Barrier(4), []

        def work(fn=fn, barrier=barrier, found=found):
            barrier.wait()
            found.append(value_and_gradient(fn, *pair(2, 40, 40)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


class Distances(torch.utils.data.Dataset):
    """Computes distances in the workers of a DataLoader."""

    def __init__(self, fn):
        self.fn = fn

    def __len__(self):
        return 2

    def __getitem__(self, i):
        in0, in1 = pair(2, 40, 40)
        with torch.no_grad():
            return self.fn(in0[i : i + 1], in1[i : i + 1]).squeeze(0), torch.utils.data.get_worker_info().id


@pytest.mark.parametrize("start", ("fork", "spawn"))
def test_shared_with_workers_of_a_dataloader(make_ours, expected, start):
    """The module was used in this process before; spawned workers open its shared memory by name."""
    fn = make_ours("squeeze").share_memory()
    assert all(p.is_shared() for p in fn.parameters())
    assert_value_and_gradient_close(value_and_gradient(fn, *pair(2, 40, 40)), expected)
    loader = torch.utils.data.DataLoader(Distances(fn), num_workers=2, multiprocessing_context=start)
    values, workers = zip(*loader)
    assert_close(torch.cat(values), expected[0].double(), VALUE_TOLERANCE[torch.float32])
    assert {worker.item() for worker in workers} == {0, 1}


def test_fork_after_import():
    """An import starts no threads, so a forked process can compute. (After a computation torch itself cannot.)"""
    script = """
import os, torch, lpips_fast
child = os.fork()
if child == 0:
    fn = lpips_fast.LPIPS(net="squeeze", pnet_rand=True)
    value = fn(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    os._exit(0 if value.isfinite().all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Loss(nn.Module):
    """A generator that holds its loss as a submodule, as training code does."""

    def __init__(self, state):
        super().__init__()
        self.generator = nn.Conv2d(3, 3, 3, padding=1)
        self.perceptual_loss = lpips_fast.LPIPS(net="squeeze", pnet_rand=True)
        self.perceptual_loss.load_state_dict(state)

    def forward(self, x, target):
        return self.perceptual_loss(torch.tanh(self.generator(x)), target).mean()


def _fsdp_worker(rank, world, state, folder, dtype):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = Loss(state)
    mesh = torch.distributed.init_device_mesh("cpu", (world,))
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype))
    in0, in1 = noise(2)
    for _ in range(2):  # FSDP gathers the parameters again in each step
        model.zero_grad()
        model(in0[rank : rank + 1], in1[rank : rank + 1]).backward()
    grad = model.generator.weight.grad.full_tensor()
    if rank == 0:
        torch.save(grad, folder / "grad.pt")
    torch.distributed.barrier()  # no process leaves while another needs it
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "dtype,tolerance", ((None, GRAD_TOLERANCE[torch.float32]), (torch.bfloat16, ROUNDED_INPUT_TOLERANCE)), ids=str
)
def test_fsdp2(module, tmp_path, dtype, tolerance):
    """LPIPS is sharded with the model around it, and the gradients are the same as in one process.

    With bfloat16, FSDP casts parameters and images, but not buffers.
    """
    state = module.state_dict()
    torch.manual_seed(0)
    model = Loss(state)
    if dtype is not None:
        for p in model.parameters():
            p.data = p.data.to(dtype)
    in0, in1 = (x.to(dtype or x.dtype) for x in noise(2))
    # The images come one at a time, as in the processes: the order of a convolution's sums depends on its batch.
    for i in range(2):
        (model(in0[i : i + 1], in1[i : i + 1]) / 2).backward()
    torch.multiprocessing.spawn(_fsdp_worker, (2, state, tmp_path, dtype), nprocs=2)
    found = torch.load(tmp_path / "grad.pt")
    assert (found - model.generator.weight.grad).norm() <= tolerance * found.norm()


def _ddp_worker(rank, world, port, path):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(_LossModule())
    in0, in1 = noise(4)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    model(in0[share], in1[share]).backward()
    if rank == 0:
        torch.save(model.module.generator.weight.grad, path)
    torch.distributed.barrier()  # no process leaves while another needs it
    torch.distributed.destroy_process_group()


class _LossModule(torch.nn.Module):
    """A generator that holds its loss as a submodule, as training code does."""

    def __init__(self):
        super().__init__()
        self.generator = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.perceptual_loss = LPIPS(net="squeeze", pnet_rand=True, grad_in_forward=True, chunk_size=1)

    def forward(self, x, target):
        return self.perceptual_loss(torch.tanh(self.generator(x)), target).mean()


def test_ddp_gives_the_same_gradients(tmp_path):
    grads = []
    for world in (1, 2):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        path = tmp_path / f"{world}.pt"
        torch.multiprocessing.spawn(_ddp_worker, (world, port, path), nprocs=world)
        grads.append(torch.load(path))
    assert_norms_close(grads[1:], grads[:1], REORDERED_TOLERANCE)
