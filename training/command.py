"""Command lines from function signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import tyro

from hbaf_edge.errors import HBAFError


def cli(function: Callable[..., None], description: str | None) -> None:
    """A command line from a function's signature, in the words of its docstring."""
    prog = f"python -m training.{Path(inspect.getfile(function)).stem}"
    try:
        tyro.cli(function, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,))
    except (HBAFError, FileNotFoundError) as error:
        raise SystemExit(f"{error}") from error
