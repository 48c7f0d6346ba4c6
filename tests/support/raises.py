"""An error's type and message."""

from __future__ import annotations

import re

import pytest


def raises(kind: type[Exception] | tuple[type[Exception], ...], *words: str):
    """Expects an exception whose message has all the words, in any order."""
    return pytest.raises(kind, match="".join(f"(?=.*{re.escape(word)})" for word in words).join(("(?s)", "")))
