"""Which conversations' rings lie on the GPU, in which row, and what of them is not there yet. Needs no GPU.

A conversation's memory (hbaf_edge/conversation.py) always holds all of its state; a row is a copy that follows it by
its version. So a GPU that fails loses no turn, and saving, forking and resetting know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from hbaf_edge.conversation import ContextView, Memory
from hbaf_edge.errors import BackendError

UNKNOWN = -2  # a version that is never one less than another


class Place(NamedTuple):
    """Where a conversation's rings lie, and what they lack.

    Attributes:
        row: of the rings.
        whole: they have to be written whole.
        slot: the one slot that they lack, or −1.
        fresh: the row was another's, and is not written whole: what it holds may be anything.
    """

    row: int
    whole: bool
    slot: int
    fresh: bool = False


class Pool:
    """Rows for conversations; the one that was not used for longest gives way.

    Args:
        capacity: how many rows there are.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Row and version of each memory, the one used last at the end; a conversation that is gone leaves its row.
        self._rows: WeakKeyDictionary[Memory, tuple[int, int]] = WeakKeyDictionary()

    def place(self, views: Sequence[ContextView]) -> list[Place]:
        """A row for each of several conversations, and what it lacks; `confirm` what was written, or `forget` it.

        Raises:
            BackendError: they are more than there are rows.
        """
        if len(views) > self.capacity:
            raise BackendError(f"{len(views)} turns came at once; the GPU keeps {self.capacity} conversations")
        for memory in [view.memory for view in views if view.memory in self._rows]:
            self._rows[memory] = self._rows.pop(memory)  # to the end: used last
        return [self._place(view) for view in views]

    def _place(self, view: ContextView) -> Place:
        memory = view.memory
        if memory not in self._rows:
            row = self._free()
            self._rows[memory] = row, UNKNOWN
            return Place(row, memory.count > 0, -1, memory.count == 0)
        row, version = self._rows[memory]
        lacking = view.version - version
        if lacking == 1:  # one commit, or one revision, of the last turn
            return Place(row, False, (memory.count - 1) % memory.sizes.window)
        return Place(row, lacking != 0, -1)

    def _free(self) -> int:
        """A row that nobody has, or the one that was not used for longest."""
        taken = {row for row, _ in self._rows.values()}
        for row in range(self.capacity):
            if row not in taken:
                return row
        oldest, (row, _) = next(iter(self._rows.items()))
        del self._rows[oldest]
        return row

    def confirm(self, views: Sequence[ContextView], places: Sequence[Place]) -> None:
        """The rows hold now what the views show, unless a memory changed while it was copied."""
        for view, place in zip(views, places):
            self._rows[view.memory] = place.row, view.version if view.is_current else UNKNOWN

    def forget(self) -> None:
        """Nobody knows what the rows hold."""
        self._rows.clear()
