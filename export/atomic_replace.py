"""Atomic replacement of bundle folders: only a bundle is ever replaced, and a kill or a full disk loses nothing.

A bundle is written to the hidden folder .NAME.hbaf-partial next to its final path and renamed when it is complete.
During the rename, the previous bundle is kept as .NAME.hbaf-old. No other module uses these two names.
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


def check_output(out: Path) -> Path:
    """Return the absolute path of `out` after cleaning up what a killed run left there.

    An old bundle is moved back if there is no new one; partly written folders are deleted.

    Raises:
        InputError: `out` exists and is not a bundle.
    """
    out = out.resolve()
    partial, old = sibling_folders(out)
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    check_replaceable(out)
    return out


def sibling_folders(out: Path) -> tuple[Path, Path]:
    """The folder in which a bundle is written, and the one that keeps the previous bundle during the rename."""
    return out.with_name(f".{out.name}.hbaf-partial"), out.with_name(f".{out.name}.hbaf-old")


def check_replaceable(out: Path) -> None:
    """Raise InputError unless `out` is missing, an empty folder, or a bundle without any other file.

    A mistyped --out must not delete checkpoints, data or calibration files.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        manifest = json.loads((out / "manifest.json").read_text())
        known = {"manifest.json", SIGNATURE, *manifest["files"]} if {"format", "graphs"} <= set(manifest) else set()
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    if not known:
        raise InputError(f"{out} exists and is not a bundle; nothing was replaced: give --out another folder")
    unknown = sorted(path.name for path in out.iterdir() if path.name not in known)
    if unknown:
        raise InputError(f"{out} is a bundle but also holds {unknown[0]}; nothing was replaced: move that file away")


@contextmanager
def replace_atomically(out: Path) -> Iterator[Path]:
    """Yield a folder to write a bundle in; rename it to `out` if the block ends without an error.

    If the process is killed during the rename, the next run restores the old bundle (`check_output`).
    """
    out = check_output(out)
    partial, old = sibling_folders(out)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same disk as `out`."""
    parent = out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hbaf-work-", dir=parent) as folder:
        yield Path(folder)
