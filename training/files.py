"""Where training finds its corpora and keeps what it made once, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hbaf_edge.files import write_atomically

CHECKOUT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """Where the corpora of DATA.md lie: $HBAF_DATA, or `../shared/data` beside the checkout."""
    return Path(os.environ.get("HBAF_DATA") or CHECKOUT.parent / "shared" / "data")


def cache_folder() -> Path:
    """Where converted encoders, cached states and made clips are kept: $HBAF_CACHE, or `.cache` in the checkout."""
    return Path(os.environ.get("HBAF_CACHE") or CHECKOUT / ".cache")


def write(path: Path, content: bytes) -> None:
    """A file that everybody may read, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, mode=0o644)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """The same, of JSON."""
    write(path, (json.dumps(content, indent=indent) + "\n").encode())
