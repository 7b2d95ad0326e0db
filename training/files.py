"""Data and cache folders, and atomic writing of files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hbaf_edge.files import write_atomically

CHECKOUT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """Folder of the corpora of docs/data.md: $HBAF_DATA, or `../shared/data` next to the checkout."""
    return Path(os.environ.get("HBAF_DATA") or CHECKOUT.parent / "shared" / "data")


def cache_folder() -> Path:
    """Folder of converted encoders, cached states and generated clips: $HBAF_CACHE, or `.cache` in the checkout."""
    return Path(os.environ.get("HBAF_CACHE") or CHECKOUT / ".cache")


def write(path: Path, content: bytes) -> None:
    """Write a world-readable file atomically. Create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, mode=0o644)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON atomically."""
    write(path, (json.dumps(content, indent=indent) + "\n").encode())
