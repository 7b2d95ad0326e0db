"""All that a conversation is: rings of the last W turns' keys and values, who spoke, and how many turns there were.

Turn i owns slot i mod W. A slot becomes visible only when the turn counter moves on, and the slot about to be
written is the one that has just left the window; so a commit that is cut short changes nothing a reader can see.
Order enters the model only through distance and speaker relation (training/MODEL.md, "Two scopes"), so no stored
key is ever recomputed.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SAME, OTHER, UNKNOWN = 0, 1, 2


class Recall(NamedTuple):
    """What a turn may recall, as the graphs take it (batch of one).

    Shapes: context_keys and context_values (1, W, 2, d), keys and values (1, layers, W, 2, d), visible (1, W, 2)
    bool, distance and relation (1, W) int64, own_relation (1, 1) int64. Modality 0 is audio, 1 is text.
    """

    context_keys: NDArray[np.float32]
    context_values: NDArray[np.float32]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    visible: NDArray[np.bool_]
    distance: NDArray[np.int64]
    relation: NDArray[np.int64]
    own_relation: NDArray[np.int64]


class Slot(NamedTuple):
    """What one turn leaves behind: context key and value (2, d), keys and values (layers, 2, d), present (2,) bool."""

    context_key: NDArray[np.float32]
    context_value: NDArray[np.float32]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    present: NDArray[np.bool_]


class Conversation:
    """One dialogue's state; make it with `HBAFRuntime.conversation()`. Its size is constant, 384 KiB at the defaults.

    Turns of one conversation run one after another, also when several threads ask at once.

    Attributes:
        turn: how many turns were committed.
    """

    def __init__(self, key: str, window: int, layers: int, width: int) -> None:
        self.turn = 0
        self._key = key
        self._lock = threading.Lock()
        self._window = window
        self._context_keys = np.zeros((window, 2, width), np.float32)
        self._context_values = np.zeros_like(self._context_keys)
        self._keys = np.zeros((layers, window, 2, width), np.float32)
        self._values = np.zeros_like(self._keys)
        self._present = np.zeros((window, 2), bool)
        self._speakers: list[str | None] = [None] * window

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self._context_keys, self._context_values, self._keys, self._values, self._present)
        return sum(array.nbytes for array in arrays)

    def __len__(self) -> int:
        return self.turn

    def __repr__(self) -> str:
        return f"<Conversation of {self.turn} turns, {self.nbytes / 1024:.0f} KiB>"

    def recall(self, speaker: str | None) -> Recall:
        """What the next turn, spoken by `speaker`, may recall."""
        distance = (self.turn - 1 - np.arange(self._window)) % self._window + 1
        inside = (distance < self._window) & (distance <= self.turn)
        relation = [relate(speaker, other) for other in self._speakers]
        return Recall(
            self._context_keys[None],
            self._context_values[None],
            self._keys[None],
            self._values[None],
            (self._present & inside[:, None])[None],
            distance[None],
            np.array([relation], np.int64),
            np.array([[relate(speaker, speaker)]], np.int64),
        )

    def commit(self, slot: Slot, speaker: str | None) -> None:
        """Store the turn in its slot, then let it be seen."""
        place = self.turn % self._window
        self._context_keys[place] = slot.context_key
        self._context_values[place] = slot.context_value
        self._keys[:, place] = slot.keys
        self._values[:, place] = slot.values
        self._present[place] = slot.present
        self._speakers[place] = speaker
        self.turn += 1

    def __enter__(self) -> Conversation:
        self._lock.acquire()
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock.release()


def relate(speaker: str | None, other: str | None) -> int:
    """Relation of a turn's speaker to another turn's, as training and runtime both see it.

    >>> relate("anna", "anna"), relate("anna", "bob"), relate("anna", None)
    (0, 1, 2)
    """
    if speaker is None or other is None:
        return UNKNOWN
    return SAME if speaker == other else OTHER
