"""The data sets: their samples, and their errors for samples that cannot be used."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import lpips_fast
from lpips_fast.bapps import JNDDataset, SampleError, TwoAFCDataset, list_subsets
from tests.support.bapps import write_judgements


def test_triplets(root):
    samples = TwoAFCDataset(root, ["train/mix", "train/cnn"])
    assert len(samples) == 6
    for i, subset in ((1, "train/mix"), (4, "train/cnn")):
        folder = root / "2afc" / subset
        for part in ("ref", "p0", "p1"):
            image = lpips_fast.load_image(folder / part / "000001.png")
            assert torch.equal(getattr(samples[i], part), lpips_fast.im2tensor(image)[0])
        assert samples[i].judge.item() == np.float32(1 / 3)
    batch = next(iter(DataLoader(samples, batch_size=4, num_workers=2)))
    assert batch.p1.shape == (4, 3, 64, 64)
    assert batch.judge.flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0])


def test_pairs(root):
    samples = JNDDataset(root, ["val/cnn"])
    assert len(samples) == 2
    assert samples[1].same.item() == 0.5
    assert torch.equal(samples[1].p1, lpips_fast.im2tensor(lpips_fast.load_image(samples.files(1)[1]))[0])


def test_list_subsets(root):
    assert list_subsets(root, "2afc", "train") == ["train/cnn", "train/mix"]
    assert list_subsets(root, "jnd", "train") == []


def test_missing(root):
    (root / "2afc/train/cnn/p1/000002.png").unlink()
    (root / "2afc/train/cnn/judge/000000.npy").unlink()
    with pytest.raises(SampleError, match=r"lacks 2 files: p1/000002.png, judge/000000.npy"):
        TwoAFCDataset(root, ["train/mix", "train/cnn"])
    shutil.rmtree(root / "2afc/train/mix/p0")
    with pytest.raises(ValueError, match=r"'train/mix': no folder .*p0"):
        TwoAFCDataset(root, ["train/mix"])
    for part in ("p0", "p1", "same"):
        for path in (root / "jnd/val/cnn" / part).iterdir():
            path.unlink()
    with pytest.raises(ValueError, match="no samples in"):
        JNDDataset(root, ["val/cnn"])
    with pytest.raises(ValueError, match="subsets must name at least one"):
        TwoAFCDataset(root, [])


def test_half_written(root):
    samples = TwoAFCDataset(root, ["train/cnn"])
    for i, part in ((0, 1), (1, 3)):
        path = samples.files(i)[part]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SampleError, match=r"p0/000000.png cannot be read"):
        samples[0]
    with pytest.raises(SampleError, match=r"judge/000001.npy cannot be read as a judgement"):
        samples[1]


@pytest.mark.parametrize("value", [[1.0001], [-0.1], [np.nan], [0.5, 0.5], ["0.5"], [0.5j]])
def test_bad_judgements(root, value):
    samples = TwoAFCDataset(root, ["train/cnn"])
    np.save(samples.files(2)[-1], np.array(value))
    with pytest.raises(SampleError, match=r"judge/000002.npy must be one number from 0 to 1"):
        samples[2]


def claiming(descr: str, shape: str) -> bytes:
    """A file of one number whose header claims others."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(
    "content",
    (
        claiming("<f8", f"({10**11},)"),
        claiming("<f8", f"({2**62}, {2**62})"),
        claiming("<f8", f"({10**30},)"),
        claiming("<f8", "(-1,)"),
        claiming("|O", "(1,)"),
        claiming("<f8", "(" * 60),
        b"PK\x03\x04",
        None,
    ),
    ids=("huge", "overflows", "no int64", "negative", "objects", "no header", "an archive", "a folder"),
)
def test_hostile_judgements(root, content):
    samples = TwoAFCDataset(root, ["train/cnn"])
    path = samples.files(2)[-1]
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SampleError, match=r"judge/000002.npy cannot be read as a judgement: .+"):
        samples[2]


def test_other_sizes(root):
    write_judgements(root, "jnd", "val/large", 1, size=65)
    with pytest.raises(SampleError, match=r"p0/000000.png must be 64 x 64 pixels, it is 65 x 65"):
        JNDDataset(root, ["val/large"])[0]
