"""Which row of the GPU's rings holds which conversation, and which of its turns the row lacks. Needs no GPU.

A conversation's memory (hbaf_edge/conversation.py) always holds its complete state. A row is a copy with the version
that it was copied from. So a failing GPU loses no turn, and saving, forking and resetting need no code here.

Example: a row has version 7 of a memory. If the memory is at version 8, exactly one turn was committed or revised, and
one slot is copied. If it is at version 10, the whole conversation is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from hbaf_edge.conversation import ContextView, Memory
from hbaf_edge.errors import BackendError

UNKNOWN = -2  # a version that is never one less than another


class RowUpdate(NamedTuple):
    """The row of a conversation, and what has to be written into it.

    Attributes:
        row: index into the rings.
        copy_all: write the complete rings.
        slot: the one slot to write, or −1.
        clear: clear the row first. It was another conversation's, and nothing is written over its content.
    """

    row: int
    copy_all: bool
    slot: int
    clear: bool = False


class RowPool:
    """Assigns rows to conversations. If no row is free, the least recently used one is reassigned.

    Args:
        capacity: number of rows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Row and version of each memory, least recently used first. A deleted conversation frees its row.
        self._rows: WeakKeyDictionary[Memory, tuple[int, int]] = WeakKeyDictionary()

    def assign(self, views: Sequence[ContextView]) -> list[RowUpdate]:
        """Assign a row to each conversation. Call `confirm` once they are written, or `invalidate` if that failed.

        Raises:
            BackendError: there are more conversations than rows.
        """
        if len(views) > self.capacity:
            raise BackendError(f"{len(views)} turns came at once; the GPU keeps {self.capacity} conversations")
        for memory in [view.memory for view in views if view.memory in self._rows]:
            self._rows[memory] = self._rows.pop(memory)  # to the end: most recently used
        return [self._assign_one(view) for view in views]

    def _assign_one(self, view: ContextView) -> RowUpdate:
        memory = view.memory
        if memory not in self._rows:
            row = self._take_row()
            self._rows[memory] = row, UNKNOWN
            return RowUpdate(row, memory.count > 0, -1, memory.count == 0)
        row, version = self._rows[memory]
        behind = view.version - version
        if behind == 1:  # one commit, or one revision of the last turn
            return RowUpdate(row, False, (memory.count - 1) % memory.sizes.window)
        return RowUpdate(row, behind != 0, -1)

    def _take_row(self) -> int:
        """A free row, or the least recently used one."""
        used = {row for row, _ in self._rows.values()}
        for row in range(self.capacity):
            if row not in used:
                return row
        oldest, (row, _) = next(iter(self._rows.items()))
        del self._rows[oldest]
        return row

    def confirm(self, views: Sequence[ContextView], updates: Sequence[RowUpdate]) -> None:
        """Record that the rows are up to date, except for memories that changed while they were copied."""
        for view, update in zip(views, updates):
            self._rows[view.memory] = update.row, view.version if view.is_current else UNKNOWN

    def invalidate(self) -> None:
        """Forget all rows, because their content is unknown."""
        self._rows.clear()
