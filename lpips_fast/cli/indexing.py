"""Makes the index of a folder of images, for `index` and `search`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lpips_fast.cli import output
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.folders import list_folder, one_size
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.reading import Images, read_ahead
from lpips_fast.cli.settings import Reading
from lpips_fast.search import Index


def build_index(
    folder: Path, model: Model, size: tuple[int, int] | None, reading: Reading, notices: Notices
) -> tuple[Index, list[str]]:
    """Makes the index of the images in a folder.

    Args:
        size: the width and height that all images take; None if they have one size already.

    Returns:
        the index of the images that can be read, and for each of the others why it cannot.

    Raises:
        ReadError: no image can be read; or with --strict, one cannot.
        UsageError: there are no images, or their sizes differ, or are too small for the net.
    """
    names = list_folder(folder)
    paths = [folder / name for name in names]
    width, height = size or one_size(paths)
    if why := model.too_small(height, width):
        raise UsageError(f"the images are {why}")
    with output.progress(len(paths), "images") as advance:
        images = _Files(paths, (width, height), model, reading, notices, advance)
        built = Index.build(
            model.lpips,
            images,
            names=[name.as_posix() for name in names],
            size=(height, width) if size else None,
            batch=model.settings.batch_size,
        )
    built.header = built.header._replace(raw=not model.settings.normalize, reading=reading.described())
    if not images.errors:
        return built, []
    kept = [i for i in range(len(paths)) if i not in images.errors]
    if not kept:
        raise ReadError(f"none of the {len(paths)} images can be read: {images.errors[0]}")
    return Index(model.lpips, built.header, built.table.selected(torch.tensor(kept))), list(images.errors.values())


class _Files:
    """Image files that become tensors a slice at a time, in order, and are read ahead.

    A file that cannot be read is black, and has its reason in `errors`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        model: Model,
        reading: Reading,
        notices: Notices,
        advance: Callable[[], None],
    ) -> None:
        self.paths, self.size, self.model, self.notices, self.advance = paths, size, model, notices, advance
        self.errors: dict[int, str] = {}
        self._items = read_ahead(Images(paths, size, reading), model.settings.reader_count())
        self._held: dict[int, np.ndarray] = {}
        self._read = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        self._held = {i: image for i, image in self._held.items() if i >= start}
        while self._read < stop:
            image = next(self._items)
            if isinstance(image, str):
                if self.model.settings.strict:
                    raise ReadError(image)
                self.errors[self._read] = " ".join(image.split())
                self._held[self._read] = np.zeros((self.size[1], self.size[0], 3), np.uint8)
            else:
                self._held[self._read] = self.notices.image(self.paths[self._read], image)
            self._read += 1
            self.advance()
        return self.model.tensor([self._held[i] for i in range(start, stop)])
