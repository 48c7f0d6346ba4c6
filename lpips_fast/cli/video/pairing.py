"""Which frames of two videos, and of their masks, belong together.

By time, a frame of A belongs to the frame of B that a player shows at that moment: the latest frame whose time is not
after the time of A's frame. Times count from the first frame of each file. A frame of B may be paired with several
frames of A, or with none. By index, the n-th frame of A belongs to the n-th frame of B. Masks are paired with A like B.

Containers round times, Matroska to 1 ms and GIF to 10 ms, and a rate of 29.97 drifts from a rate of 30. So a frame of B
also counts as shown up to nearly half a step before its time. The step is the time since the frame before, A's or B's,
whichever is shorter. At equal rates this pairs the nearest frames. The last frame of B is shown for one more step of B,
or for its own duration if that is longer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lpips_fast.cli import output
from lpips_fast.cli.errors import ReadError

if TYPE_CHECKING:
    from lpips_fast.cli.video.decoding import Frame

PairBy = Literal["time", "index"]

_EARLY = 0.45  # steps before its time from which on a frame counts as shown
_APART = 0.5  # steps: paired frames whose times are farther apart show different moments
_SAME_START = 0.006  # seconds: smaller differences come from rounding in containers
_NAMED = 10  # frames that a message names


class Moment(NamedTuple):
    """A frame in its stream."""

    number: int
    frame: Frame
    time: float | None  # seconds after the first frame; None if unknown, or not after the frame before
    step: float  # seconds after the frame before; 0 for the first frame

    @property
    def shown_for(self) -> float:
        """How many seconds the frame is shown if no frame follows."""
        return max(self.step, self.frame.duration or 0.0)


class Stream(NamedTuple):
    """The frames of a video, an animation or a folder."""

    path: Path
    frames: Iterator[Frame]

    def moments(self) -> Iterator[Moment]:
        """The frames with their numbers and times. After a frame without a time no frame has a time."""
        first: float | None = None
        last: float | None = None
        step = 0.0
        for number, frame in enumerate(self.frames):
            seconds = frame.seconds
            if seconds is None and isinstance(frame.image, str) and last is not None:
                seconds = last + step  # the file breaks off here
            if number == 0:
                first = seconds
            elif seconds is None or last is None or seconds <= last:
                seconds = None
            else:
                step = seconds - last
            yield Moment(number, frame, None if seconds is None or first is None else seconds - first, step)
            last = seconds


class Follower:
    """Finds the frames of a stream that belong to the frames of A, which it is given in order.

    Args:
        stream: B, or the masks.
        strict: whether to raise a ReadError at a frame of the stream that is in no pair.
    """

    def __init__(self, stream: Stream, strict: bool = False) -> None:
        self.path = stream.path
        self.by: PairBy = "index"
        self.index_from: int | None = None  # the first frame of A paired by index after pairs by time
        self.unused: list[int] = []  # frames in no pair
        self.numbers_differ = 0  # pairs whose frames have two numbers
        self.times_differ = 0  # pairs by index whose frames have two times
        self._strict = strict
        self._moments = stream.moments()
        self.now = next(self._moments, None)
        self.next = next(self._moments, None)
        self.start = _start(self.now)
        self._used = False

    def at(self, a: Moment) -> Moment | None:
        """The frame that belongs to a frame of A; None after the end."""
        if self.by == "index":
            if a.number > 0 and not self._advance():
                return None
        elif (shown := a.time) is not None:
            self._advance_while(lambda b, time: time <= shown + _early(a, b))
            if self._is_over(a, shown):
                return None
        if self.now is not None:
            self._used = True
            self.numbers_differ += self.now.number != a.number
            if self.by == "index" and self.now.time is not None and a.time is not None:
                self.times_differ += abs(self.now.time - a.time) > _APART * min(self.now.step, a.step)
        return self.now

    def goes_on(self, last: Moment | None) -> bool:
        """Whether frames follow after the end of A, whose last frame is given. Skips frames before that end."""
        if last is None:
            return self.now is not None
        if self.by == "time" and last.time is not None:
            end = last.time + last.shown_for
            self._advance_while(lambda b, time: time < end - _early(last, b))
            self._leave()
        return self.next is not None

    def _advance_while(self, wanted: Callable[[Moment, float], bool]) -> None:
        while self.next is not None and self.next.time is not None and wanted(self.next, self.next.time):
            self._advance()

    def _advance(self) -> bool:
        if self.next is None:
            return False
        self._leave()
        self.now, self.next, self._used = self.next, next(self._moments, None), False
        return True

    def _leave(self) -> None:
        if not self._used and self.now is not None:
            if self._strict:
                raise ReadError(
                    f"{self.path} frame {self.now.number} is paired with none of A by its time (--pair-by index pairs "
                    "by number)"
                )
            self.unused.append(self.now.number)
            self._used = True

    def _is_over(self, a: Moment, time: float) -> bool:
        if self.next is not None or self.now is None or self.now.time is None:
            return False
        return time > self.now.time and time >= self.now.time + self.now.shown_for - _early(a, self.now)


def _early(a: Moment, b: Moment) -> float:
    return _EARLY * min(a.step, b.step)


class Pairing:
    """The frames of A, with the frames of B and of the masks that belong to them.

    Args:
        a, b, masks: the streams. Their first frames are read at once.
        by: how to pair. None pairs by time if A and B have times for their frames, else by index. Masks without times
            are always paired by index.
        strict: whether to raise a ReadError at a frame of B that is in no pair.

    Raises:
        ReadError: `by` is "time", and A or B has no times; `frames` raises it if they go missing later.
    """

    def __init__(self, a: Stream, b: Stream, masks: Stream | None, by: PairBy | None, strict: bool) -> None:
        self._a = a.path
        moments = a.moments()
        first = next(moments, None)
        self._moments = itertools.chain(iter([] if first is None else [first]), moments)  # a list would keep the frame
        self._start = _start(first)
        self._by = by
        self._b = Follower(b, strict)
        self._followers = {"b": self._b, **({} if masks is None else {"mask": Follower(masks)})}
        self._count = 0
        self._is_uneven = False  # whether A and B end apart
        self._untimed: str | None = None  # why frames are paired by index, at least from some frame on
        begins = ((a.path, first), (b.path, self._b.now))
        without = [(path, moment) for path, moment in begins if moment is not None and moment.time is None]
        if by == "time" and without:
            raise ReadError(f"--pair-by time: {_untimed(*without[0])} (--pair-by index)")
        if without and not any(path.is_dir() for path, _ in begins):
            self._untimed = _untimed(*without[0])
        for follower in self._followers.values():
            if by != "index" and all(moment and moment.time is not None for moment in (first, follower.now)):
                follower.by = "time"

    def frames(self, uneven: Callable[[str], None]) -> Iterator[list[tuple[Path, Moment]]]:
        """For each frame of A: this frame, B's and the mask. Ends with the shortest stream, and tells `uneven`."""
        last = None
        for a in self._moments:
            self._check_times(a)
            found = [(self._a, a)]
            for follower in self._followers.values():
                before, moment = follower.now, follower.at(a)
                if moment is None:
                    self._is_uneven = follower is self._b
                    uneven(f"{follower.path} ends after {_length(before, follower.by)}, {self._a} goes on")
                    return
                found.append((follower.path, moment))
            yield found
            self._count += 1
            last = a
        if self._b.goes_on(last):
            self._is_uneven = True
            uneven(f"{self._a} ends after {_length(last, self.by)}, {self._b.path} goes on")

    def _check_times(self, a: Moment) -> None:
        """Changes to pairs by index at the first frame without a time."""
        for follower in self._followers.values():
            for path, moment in ((self._a, a), (follower.path, follower.next)):
                if follower.by == "time" and moment is not None and moment.time is None:
                    if self._by == "time":
                        raise ReadError(f"--pair-by time: {_untimed(path, moment)} (--pair-by index)")
                    follower.by, follower.index_from = "index", a.number
                    self._untimed = self._untimed or _untimed(path, moment)

    @property
    def by(self) -> PairBy:
        """How the frames of A and B are paired now."""
        return self._b.by

    def described(self) -> dict[str, Any]:
        """How the frames were paired, as results hold it."""
        return {
            name: {
                "by": follower.by,
                "index_from": follower.index_from,
                "first_seconds": [self._start, follower.start],
                "numbers_differ": follower.numbers_differ,
                "times_differ": follower.times_differ,
                "unused": follower.unused,
            }
            for name, follower in self._followers.items()
        }

    def tell(self) -> None:
        """Prints where times are missing, and in how many pairs time and index disagree."""
        if self._untimed is not None and self._count > 1:
            since = "" if self._b.index_from is None else "from there on "
            output.warn(f"{self._untimed}: {since}frames are paired by index")
        if self.by == "time" and self._is_uneven:
            self._tell_starts()
        for follower in self._followers.values():
            between = f"{self._a} and {follower.path}"
            if follower.by == "time" and (follower.numbers_differ or follower.unused):
                unused = f", and {_listed(follower.unused)} of {follower.path} in none" if follower.unused else ""
                output.warn(
                    f"{between} are paired by time: the frame numbers differ in {follower.numbers_differ} of "
                    f"{self._count} pairs{unused} (--pair-by index pairs by number)"
                )
            if follower.by == "index" and follower.times_differ:
                output.warn(
                    f"{between} are paired by index: the times differ by more than half a frame in "
                    f"{follower.times_differ} of {self._count} pairs (--pair-by time pairs by time)"
                )

    def _tell_starts(self) -> None:
        """Prints that the first frames have different times. Often this is harmless: containers shift whole files."""
        starts = [start for start in (self._start, self._b.start) if start is not None]
        if max(starts) - min(starts) > _SAME_START:
            begin = " s and ".join(f"{start:.4g}" for start in starts)
            output.warn(
                f"{self._a} and {self._b.path} begin at {begin} s: times count from their first frames, which are "
                "compared with each other (if they do not show the same moment, cut the files to a common start)"
            )


def _length(last: Moment | None, by: PairBy) -> str:
    """The length of a stream that ends with this frame."""
    if last is None:
        return "0 frames"
    frames = f"{last.number + 1} frame{'s' if last.number else ''}"
    seconds = 0.0 if last.time is None else last.time + last.shown_for
    return f"{frames} ({seconds:.4g} s)" if by == "time" and seconds else frames


def _listed(frames: Sequence[int]) -> str:
    """Names frames by their numbers; only the first ones if there are many."""
    some = ", ".join(map(str, frames[:_NAMED])) + (", ..." if len(frames) > _NAMED else "")
    return f"frame {some}" if len(frames) == 1 else f"{len(frames)} frames ({some})"


def _start(first: Moment | None) -> float | None:
    return None if first is None else first.frame.seconds


def _untimed(path: Path, moment: Moment) -> str:
    """Says why a frame cannot be paired by time."""
    if isinstance(moment.frame.image, str):
        return moment.frame.image
    if moment.number == 0:
        return f"{path} has no times"
    return f"{path} frame {moment.number} has no time, or none after that of the frame before"
