"""Which conversations' rings lie on the GPU, in which row, and what of them is not there yet. Needs no GPU.

A conversation itself (hbaf_edge/conversation.py) always holds all of its state; a row is a copy that follows it. So a
GPU that fails loses no turn, and saving, forking and resetting know nothing of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

from hbaf_edge.conversation import Conversation
from hbaf_edge.errors import BackendError


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
    """Who has it, and the stamp of what it holds."""

    def __init__(self, chat: Conversation, stamp: int) -> None:
        self.owner, self.stamp = weakref.ref(chat), stamp


class Pool:
    """Rows for conversations; the one that was not used for longest gives way.

    Args:
        capacity: how many rows there are.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[int, _Row] = {}  # by row, the one used last at the end

    def place(self, chats: Sequence[Conversation]) -> list[Place]:
        """A row for each of several conversations, and what it lacks; `confirm` what was written, or `forget` it.

        Raises:
            BackendError: they are more than there are rows.
        """
        if len(chats) > self.capacity:
            raise BackendError(f"{len(chats)} turns came at once; the GPU keeps {self.capacity} conversations")
        owners = {id(owner): row for row, held in self._rows.items() if (owner := held.owner()) is not None}
        found = {id(chat): owners[id(chat)] for chat in chats if id(chat) in owners}
        for row in found.values():
            self._rows[row] = self._rows.pop(row)  # to the end: used last
        return [self._old(chat, found[id(chat)]) if id(chat) in found else self._new(chat) for chat in chats]

    def _old(self, chat: Conversation, row: int) -> Place:
        held = self._rows[row]
        if held.stamp == chat._stamp:
            return Place(row, False, -1)
        if held.stamp == chat._before:
            return Place(row, False, chat._place)
        return Place(row, True, -1)

    def _new(self, chat: Conversation) -> Place:
        row = self._free()
        self._rows[row] = _Row(chat, -1)
        return Place(row, chat.turn > 0, -1, chat.turn == 0)

    def _free(self) -> int:
        """A row that nobody has, or whose conversation is gone, or was not used for longest."""
        for row in range(self.capacity):
            if row not in self._rows:
                return row
        gone = (row for row, held in self._rows.items() if held.owner() is None)
        row = next(gone, next(iter(self._rows)))
        del self._rows[row]
        return row

    def confirm(self, chats: Sequence[Conversation], places: Sequence[Place]) -> None:
        """The rows hold now what their conversations do."""
        for chat, place in zip(chats, places):
            self._rows[place.row].stamp = chat._stamp

    def forget(self) -> None:
        """Nobody knows what the rows hold."""
        self._rows.clear()
