"""The synthetic data set: reproducible, written whole or not at all, and judged by the weights that it names."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lpips_fast.bapps import JNDDataset, SampleError, TwoAFCDataset, evaluate, give_taste, synthesize


@pytest.fixture(scope="module")
def judge(trunk_states):
    import lpips_fast

    fn = lpips_fast.LPIPS(net="squeeze", trunk_weights=trunk_states["squeeze"])
    give_taste(fn)
    return fn


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout_and_votes(tmp_path, judge, make_ours):
    advanced = []
    synthesize(tmp_path / "a", judge, triplets=40, advance=advanced.append)
    synthesize(tmp_path / "b", judge, triplets=40)
    synthesize(tmp_path / "other", judge, triplets=40, seed=1)
    assert sum(advanced) == 60
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "other")
    train = TwoAFCDataset(tmp_path / "a", ["train/synthetic"])
    assert len(train) == 40
    shares = {round(5 * sample.judge.item(), 5) for sample in train}
    assert shares <= {0, 1, 2, 3, 4, 5}
    assert {0, 5} < shares

    def score(fn, samples):
        def distance(image, others):
            return [fn(image, other) for other in others]

        return evaluate(samples, distance, batch_size=16)

    same = make_ours("squeeze", model_path=tmp_path / "a" / "judge.safetensors")
    assert score(same, train) == score(judge, train) > 0.8
    assert score(same, JNDDataset(tmp_path / "a", ["val/synthetic"])) > 0.7


def test_given_images(tmp_path, judge):
    flat = np.full((80, 100, 3), (200, 30, 90), np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    synthesize(tmp_path / "made", judge, triplets=4, images=[tmp_path / "flat.png"])
    ref = Image.open(tmp_path / "made/2afc/train/synthetic/ref/000003.png")
    assert ref.size == (64, 64)
    assert ref.getcolors() == [(64 * 64, (200, 30, 90))]
    Image.new("RGB", (63, 80)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small.png must be at least 64 x 64 pixels, it is 63 x 80"):
        synthesize(tmp_path / "more", judge, triplets=4, images=[tmp_path / "small.png"])
    content = (tmp_path / "flat.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[:-30])
    (tmp_path / "text.png").write_bytes(b"no image")
    for name in ("broken.png", "text.png", "nowhere.png"):
        with pytest.raises(SampleError, match=name):
            synthesize(tmp_path / "more", judge, triplets=4, images=[tmp_path / name])


def test_whole_or_not_at_all(tmp_path, judge):
    def interrupt(samples):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "made", judge, triplets=4, advance=interrupt)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "made").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        synthesize(tmp_path / "made", judge)
    with pytest.raises(ValueError, match="triplets must be at least 4, got 3"):
        synthesize(tmp_path / "other", judge, triplets=3)
