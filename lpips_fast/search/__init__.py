"""Nearest neighbours and near-duplicates by LPIPS, among as many images as a disk holds."""

from __future__ import annotations

from lpips_fast.search.header import Header
from lpips_fast.search.index import Index
from lpips_fast.search.sources import Source

__all__ = ["Header", "Index", "Source"]
