"""Which conversations' rings lie on the GPU, in which row, and what of them is not there yet. Needs no GPU.

A conversation's memory (hbaf_edge/conversation.py) always holds all of its state; a row is a copy that follows it by
its version. So a GPU that fails loses no turn, and saving, forking and resetting know nothing of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

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


class _Row:
    """Whose memory it copies, and of which version."""

    def __init__(self, memory: Memory, version: int) -> None:
        self.owner, self.version = weakref.ref(memory), version


class Pool:
    """Rows for conversations; the one that was not used for longest gives way.

    Args:
        capacity: how many rows there are.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[int, _Row] = {}  # by row, the one used last at the end

    def place(self, views: Sequence[ContextView]) -> list[Place]:
        """A row for each of several conversations, and what it lacks; `confirm` what was written, or `forget` it.

        Raises:
            BackendError: they are more than there are rows.
        """
        if len(views) > self.capacity:
            raise BackendError(f"{len(views)} turns came at once; the GPU keeps {self.capacity} conversations")
        owners = {id(owner): row for row, held in self._rows.items() if (owner := held.owner()) is not None}
        found = {id(view.memory): owners[id(view.memory)] for view in views if id(view.memory) in owners}
        for row in found.values():
            self._rows[row] = self._rows.pop(row)  # to the end: used last
        return [self._old(v, found[id(v.memory)]) if id(v.memory) in found else self._new(v.memory) for v in views]

    def _old(self, view: ContextView, row: int) -> Place:
        version, memory = self._rows[row].version, view.memory
        if version == view.version:
            return Place(row, False, -1)
        if version == view.version - 1:  # one commit, or one revision, of the last turn
            return Place(row, False, (memory.count - 1) % memory.sizes.window)
        return Place(row, True, -1)

    def _new(self, memory: Memory) -> Place:
        row = self._free()
        self._rows[row] = _Row(memory, UNKNOWN)
        return Place(row, memory.count > 0, -1, memory.count == 0)

    def _free(self) -> int:
        """A row that nobody has, or whose conversation is gone, or was not used for longest."""
        for row in range(self.capacity):
            if row not in self._rows:
                return row
        gone = (row for row, held in self._rows.items() if held.owner() is None)
        row = next(gone, next(iter(self._rows)))
        del self._rows[row]
        return row

    def confirm(self, views: Sequence[ContextView], places: Sequence[Place]) -> None:
        """The rows hold now what the views show, unless a memory changed while it was copied."""
        for view, place in zip(views, places):
            self._rows[place.row].version = view.version if view.is_current else UNKNOWN

    def forget(self) -> None:
        """Nobody knows what the rows hold."""
        self._rows.clear()
