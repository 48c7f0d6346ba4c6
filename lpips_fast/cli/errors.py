"""The two exceptions that end a command with a message, and the exit statuses."""

from __future__ import annotations

READ_ERRORS = 1
USAGE = 2
FAILED = 3
INTERRUPTED = 130
STDOUT_CLOSED = 141  # the status of a program that SIGPIPE ends


class UsageError(Exception):
    """The command cannot do what was asked for. It ends with status 2 and this message."""


class ReadError(Exception):
    """The command needs an image that cannot be read or compared. It ends with status 1 and this message."""
