"""Where bundles come to stand: nothing else is ever replaced, and a kill or a full disk loses nothing.

A bundle is written in a hidden folder beside its place and moved there whole; the one that it replaces waits beside it
until then. Their names, .NAME.hbaf-partial and .NAME.hbaf-old, are this module's alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hbaf_edge.errors import InputError
from hbaf_edge.sign import SIGNATURE


def check_place(out: Path) -> Path:
    """`out` made absolute, once it is sure that nothing but a bundle would be replaced.

    What a killed run left is put in order first: the old bundle in its place, a half-written one gone.

    Raises:
        InputError: `out` is something else.
    """
    out = out.resolve()
    work, old = beside(out)
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    check_replaceable(out)
    return out


def beside(out: Path) -> tuple[Path, Path]:
    """Where a bundle is written, and where the one that it replaces waits meanwhile."""
    return out.with_name(f".{out.name}.hbaf-partial"), out.with_name(f".{out.name}.hbaf-old")


def check_replaceable(out: Path) -> None:
    """That a place is free, empty or a bundle with nothing else in it: runs, data and calibrations lie near."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        manifest = json.loads((out / "manifest.json").read_text())
        known = {"manifest.json", SIGNATURE, *manifest["files"]} if {"format", "graphs"} <= set(manifest) else set()
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    if not known:
        raise InputError(f"{out} is there and is no bundle; nothing is replaced: give --out another place")
    strange = sorted(path.name for path in out.iterdir() if path.name not in known)
    if strange:
        raise InputError(f"{out} holds {strange[0]} beside a bundle; nothing is replaced: move it away")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to write a bundle in, which is moved to `out` once the block has ended without error.

    Killed while it is moved, the old bundle waits beside its place for the next run.
    """
    place = check_place(out)
    work, old = beside(place)
    work.mkdir(parents=True)
    try:
        yield work
        if place.exists():
            place.rename(old)
        work.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `out`, where there is room for what goes there."""
    parent = out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hbaf-work-", dir=parent) as folder:
        yield Path(folder)
