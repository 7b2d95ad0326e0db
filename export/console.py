"""Notes and progress bars on stderr, so that stdout holds only a command's result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def note(message: Any) -> None:
    """Print a message, which may have rich markup, or a table."""
    Console(stderr=True, soft_wrap=isinstance(message, str)).print(message)


def progress(items: Iterable[T], description: str) -> Iterator[T]:
    """Iterate with a progress bar."""
    yield from track(items, description, console=Console(stderr=True))
