"""Checks of arguments. An error names the argument, what was given and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from os import PathLike


def check_choice(name: str, given: str, accepted: Iterable[str]) -> None:
    """Raises a ValueError unless `given` is one of the accepted values."""
    if given not in tuple(accepted):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {given!r}")


def check_flags(**flags: object) -> None:
    """Raises a TypeError if one of the flags is a string: 'False' would count as true."""
    for name, given in flags.items():
        if isinstance(given, str):
            raise TypeError(f"{name} must be True or False, got the string {given!r}")


def checked_count(name: str, given: int, accepted: str) -> int:
    """The count as an int; raises a ValueError unless it is a whole number from 1."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:  # True is an int, too
        raise ValueError(f"{name} must be {accepted} from 1, got {given!r}")
    return int(given)


def check_path(name: str, given: object) -> None:
    """Raises a TypeError unless `given` can be the path of a file."""
    if not isinstance(given, str | PathLike):
        raise TypeError(f"{name} must be the path of a file, got {type(given).__name__}")


def some(names: Iterable[str]) -> str:
    """The first five names, each cut to 99 characters, and how many more there are.

    For errors about files, whose names may be of any number and length.
    """
    names = sorted(names)
    return ", ".join(f"{name!r:.99}" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
