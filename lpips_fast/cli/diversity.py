"""The mean distance of all pairs of images in folders of any size, for `matrix --sketch`.

Images are read and embedded in units, which processes share. Units do not depend on the number of processes, and are
merged in their order, so neither does the mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lpips_fast.cli import output, processes
from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.reading import Images, read_ahead
from lpips_fast.cli.settings import Reading
from lpips_fast.diversity import Sample
from lpips_fast.sketch import Sketch

# The sample of a unit holds a vector as long as an embedding, which goes to rank 0, so units are large. But a folder
# has several, which processes can share; and the images of a unit are in memory together.
_MOST_IMAGES = 256
_MOST_PIXELS = 2**24
_LEAST_IMAGES = 16
_UNITS = 16


def mean_distance(
    sides: Sequence[Sequence[Path]],
    model: Model,
    size: tuple[int, int],
    sketch: Sketch,
    reading: Reading,
    notices: Notices,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads all images, and computes their mean distance.

    Args:
        sides: the paths of the images; if there are two lists, images of one are compared with those of the other.
        model: the network.
        size: the width and height of all images.
        sketch: what the standard error is computed from.
        reading: how the images are read.
        notices: notes the images.

    Returns:
        the number of pairs of readable images, their mean distance and its standard error; and why other images cannot
        be read, by path. On rank 0; other ranks have nothing.

    Raises:
        ReadError: an image cannot be read, with --strict.
        UsageError: the images are too small for the net.
    """
    if why := model.too_small(size[1], size[0]):
        raise UsageError(f"the images are {why}")
    units = _units(sides, size)
    own = processes.own(units)  # every K-th: the results of a round come in the order of units
    files = Images([path for _, paths in own for path in paths], size, reading)
    read = read_ahead(files, model.settings.reader_count())

    def computed() -> Iterator[tuple[int, int, Sample, dict[str, str]]]:
        for side, paths in own:
            of_unit = itertools.islice(read, len(paths))
            images, _, why = notices.readable(paths, of_unit, model.settings.strict)
            yield side, len(paths), model.sample(images, sketch) if images else Sample(), why

    samples = [Sample() for _ in sides]
    errors: dict[str, str] = {}
    with output.progress(sum(map(len, sides)), "images") as advance:
        for of_each_process in processes.gathered(computed(), len(units)):
            for side, n, sample, unreadable in of_each_process:
                samples[side].merge(sample)
                errors.update(unreadable)
                advance(n)
    return _summary(samples), dict(sorted(errors.items()))


def _units(sides: Sequence[Sequence[Path]], size: tuple[int, int]) -> list[tuple[int, Sequence[Path]]]:
    """The units: the number of a side, and some of its images."""
    share = max(_LEAST_IMAGES, sum(map(len, sides)) // _UNITS)
    length = max(1, min(share, _MOST_IMAGES, _MOST_PIXELS // (size[0] * size[1])))
    return [(side, paths[i : i + length]) for side, paths in enumerate(sides) for i in range(0, len(paths), length)]


def _summary(samples: Sequence[Sample]) -> dict[str, Any]:
    if min(sample.count for sample in samples) < (2 if len(samples) == 1 else 1):
        return {"count": 0, "mean": math.nan, "standard_error": math.nan}
    found = samples[0].mean_distance() if len(samples) == 1 else samples[0].mean_distance_to(samples[1])
    return {"count": found.pairs, "mean": found.mean, "standard_error": found.standard_error}
