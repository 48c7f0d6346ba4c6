"""Indexes for tests, and damage to their files."""

from __future__ import annotations

import json

from safetensors import safe_open
from safetensors.torch import save

N, Q, SIZE = 12, 3, 32  # images, queries, and their sides in pixels


def read_header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["header"])


def rewrite(path, tensors=(), **metadata):
    """Changes a saved index's file. None removes a tensor or a text; a value that is no text becomes JSON."""
    with safe_open(path, "pt") as file:
        texts = {**file.metadata(), **metadata}
        columns = {name: file.get_tensor(name) for name in file.keys()} | dict(tensors)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in texts.items() if v is not None}
    path.write_bytes(save({k: v for k, v in columns.items() if v is not None}, texts))
