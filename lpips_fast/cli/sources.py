"""Index files as commands open them: with the image files that they were made of, to be read again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from lpips_fast.cli import output
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.reading import load
from lpips_fast.cli.settings import Reading
from lpips_fast.images import resize_image
from lpips_fast.search import Header, Index, files
from lpips_fast.search.header import distance_of
from lpips_fast.trunk.nets import NETS


class Files:
    """The image files of an index, read again as the index was made. It is a `Source`.

    Args:
        folder: where the files are.
        names: their paths within it, a row each.
        header: how the index was made.
        stamps: what `stamp` gave for the files then; None if that is unknown.
        model, reading: as the index was made.

    Attributes:
        errors: why files cannot be read, by row.
        changed: the rows that were read from other files than the index was made of.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], header: Header, stamps: Tensor | None, model: Model, reading: Reading
    ) -> None:
        self.folder, self.names, self.header, self.stamps = folder, names, header, stamps
        self.model, self.reading = model, reading
        self.errors: dict[int, str] = {}
        self.changed: set[int] = set()

    def read(self, rows: Sequence[int]) -> list[Tensor | None]:
        """The images of the rows, [3, H, W] on the device; None for one that cannot be read, or has another size.

        Raises:
            ReadError: there is one, with --strict.
        """
        # Pillow lets other threads run while it decodes, so there is no need for processes.
        with ThreadPoolExecutor(max(1, self.model.settings.reader_count())) as readers:
            return list(readers.map(self._read, rows))

    def _read(self, row: int) -> Tensor | None:
        path = self.folder / self.names[row]
        found = stamp(path)
        height, width = self.header.size
        try:
            pixels = load(path, self.reading).pixels
            if self.header.resized:
                pixels = resize_image(pixels, width, height)
            elif pixels.shape[:2] != (height, width):
                raise OSError(f"{path} is {pixels.shape[1]} x {pixels.shape[0]} pixels now, and was {width} x {height}")
        except OSError as error:
            if self.model.settings.strict:
                raise ReadError(str(error)) from error
            self.errors[row] = " ".join(str(error).split())
            return None
        if self.stamps is not None and found != tuple(self.stamps[row].tolist()):
            self.changed.add(row)
        return self.model.tensor([pixels])[0]


def stamp(path: Path) -> tuple[int, int]:
    """By which a changed file is known: its size in bytes and its time of change in nanoseconds; -1 if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def open_index(
    where: Path,
    model: Model,
    reading: Reading,
    notices: Notices,
    folder: Path | None = None,
    exact: bool = True,
    otherwise: str = "",
) -> Index:
    """Opens the file of an index.

    Args:
        where: the file.
        model, reading: as it must have been made.
        notices: notes whether its images are transparent.
        folder: where its images are now; None for where they were.
        exact: whether exact distances are wanted, for which an index of sketches alone needs the images.
        otherwise: what the command offers if they are not there, for messages.

    Raises:
        UsageError: the file is no index, or was made otherwise; or images are needed, and their folder is not there.
    """
    if not where.exists():
        raise UsageError(f"no folder or index {where}")
    remedy = f": use it likewise, or lpips-fast index FOLDER -o {where} --rebuild builds it anew"
    try:
        check_options(where, files.read_header(where), model, reading, "used", remedy)
        index = Index.load(where, model.lpips)
    except (ValueError, FileNotFoundError) as error:
        makes = "lpips-fast index makes an index of a folder, with --rebuild in the place of a damaged one"
        raise UsageError(f"{error} ({makes})") from error
    notices.index(where, index.header.transparent, index.header.opaque)
    if exact and index.vectors is None:
        made_in = folder or (Path(index.header.folder) if index.header.folder is not None else None)
        if index.header.reading is None or index.names is None or made_in is None:
            raise UsageError(
                f"{where} keeps sketches alone, and was made in Python from images that are not known here{otherwise}"
            )
        if not made_in.is_dir():
            raise UsageError(
                f"{where} keeps sketches alone, and the folder of its images, {made_in}, is not there: if it has "
                f"moved, lpips-fast index FOLDER -o {where} notes the new place, or --folder says it{otherwise}"
            )
        index.images = Files(made_in, index.names, index.header, index.stamps, model, reading)
    return index


def failed(where: Path, error: ValueError) -> UsageError:
    """What to raise if an index file that could be opened is refused after all: what is wrong, and a remedy."""
    remedy = ""
    if not files.sound_rows(where).all():
        remedy = f" (it is damaged; lpips-fast index FOLDER -o {where} makes what is damaged again)"
    return UsageError(f"{where}: {error}{remedy}")


def reading_errors(index: Index, where: Path) -> list[str]:
    """Why images of an index could not be read again. Warns if images have changed since the index was made."""
    if not isinstance(index.images, Files):
        return []
    if changed := index.images.changed:
        first = index.images.names[min(changed)]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        output.warn(
            f"{first}{more}: changed since {where} was made; distances are those of the files as they are now, and "
            "lpips-fast index brings the index up to date"
        )
    return [why for _, why in sorted(index.images.errors.items())]


def check_options(where: Path, header: Header, model: Model, reading: Reading, use: str, remedy: str) -> None:
    """Raises a UsageError if an index was made by other options than this run's: the network, and how images are read.

    What an index that was made in Python does not know is no difference.

    Args:
        use, remedy: what the run does with the index, and what to do then, for the message.
    """
    here = header._replace(**distance_of(model.lpips))
    if header.reading is not None:
        here = here._replace(precision=model.precision, reading=reading.described())
    if header.raw is not None:
        here = here._replace(raw=not model.settings.normalize)
    same_net = (header.net, header.version) == (here.net, here.version)  # else the weights differ, too
    check_equal(where, _options(header, same_net), _options(here, same_net), use, remedy)


def check_equal(where: Path, made: Sequence[str], here: Sequence[str], use: str, remedy: str) -> None:
    """Raises a UsageError if the options of an index and of a run differ, which names those that do."""
    if made != here:
        raise UsageError(
            f"{where} was made with {', '.join(o for o in made if o not in here)}, and is {use} with "
            f"{', '.join(o for o in here if o not in made)}{remedy}"
        )


def _options(header: Header, weights: bool) -> list[str]:
    """The options of an index, as a user would give them."""
    names = {net.model: name for name, net in NETS.items()}
    options = [
        f"--net {names.get(header.net, header.net)}",
        f"--version {header.version}",
        "--no-normalize" if header.raw else "--normalize",
        f"--precision {header.precision}",
        *(_option(key, value) for key, value in (header.reading or {}).items()),
    ]
    if weights:
        options.append(f"linear weights {header.linear_sha256[:8]} (--weights)")
        options.append(f"trunk weights {header.trunk_sha256[:8]} (--trunk-weights)")
    return options


def _option(key: str, value: Any) -> str:
    if value is None:
        return f"no --{key}"
    if isinstance(value, list):
        return f"--{key} {':'.join(repr(end).removesuffix('.0') for end in value):.99}"
    return f"--{key} {value!r:.99}"
