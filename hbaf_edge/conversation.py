"""All that a conversation is: rings of the last W turns' keys and values, who spoke, and how many turns there were.

Turn i owns slot i mod W. A slot becomes visible only when the turn counter moves on, and the slot about to be
written is the one that has just left the window; so a commit that is cut short changes nothing a reader can see.
Order enters the model only through distance and speaker relation (training/MODEL.md, "Two scopes"), so no stored
key is ever recomputed.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbaf_edge import state
from hbaf_edge.errors import InputError, StateError
from hbaf_edge.text import normalise_name

SAME, OTHER, UNKNOWN = 0, 1, 2
_stamps = itertools.count()  # no two states of conversations have the same


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


class Turn(NamedTuple):
    """A committed turn: its 0-based number, estimate, speaker, modalities used, and when (Unix time, seconds)."""

    number: int
    label: str | None
    confidence: float
    speaker: str | None
    modalities: tuple[str, ...]
    at: float


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
        self._turns: list[Turn | None] = [None] * window
        self._changed()

    def _changed(self) -> None:
        """Whoever keeps a copy of the rings (hbaf_edge/gpu/pool.py) has to write it anew."""
        self._stamp, self._place = next(_stamps), -1
        self._before: int | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The last W turns, oldest first. Older ones are dropped: a conversation of weeks must not grow."""
        return tuple(sorted(t for t in self._turns if t is not None))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self._context_keys, self._context_values, self._keys, self._values, self._present)
        return sum(array.nbytes for array in arrays)

    def __len__(self) -> int:
        return self.turn

    def __repr__(self) -> str:
        return f"<Conversation of {self.turn} turns, {self.nbytes / 1024:.0f} KiB>"

    def recall(self, speaker: str | None, number: int | None = None) -> Recall:
        """What the next turn, spoken by `speaker`, may recall; or the last one again, if that is its number."""
        number = self.turn if number is None else number
        distance = (number - 1 - np.arange(self._window)) % self._window + 1
        inside = (distance < self._window) & (distance <= number)
        relation = [relate(speaker, turn and turn.speaker) for turn in self._turns]
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

    def commit(
        self,
        slot: Slot,
        speaker: str | None,
        label: str | None = None,
        confidence: float = 0.0,
        modalities: tuple[str, ...] = (),
        number: int | None = None,
    ) -> Turn:
        """Store the turn in its slot, then let it be seen; with the last turn's number, in that one's place."""
        number = self.turn if number is None else number
        place = number % self._window
        self._present[place] = False  # so that a slot that is revised is seen whole or not at all
        self._context_keys[place] = slot.context_key
        self._context_values[place] = slot.context_value
        self._keys[:, place] = slot.keys
        self._values[:, place] = slot.values
        self._present[place] = slot.present
        turn = Turn(number, label, confidence, speaker, modalities, time.time())
        self._turns[place] = turn
        self._before, self._stamp, self._place = self._stamp, next(_stamps), place
        self.turn = number + 1
        return turn

    def last(self, turn: Turn) -> int:
        """The number of a committed turn, if no other was committed since.

        Raises:
            InputError: later turns have built on it, or the conversation was reset.
        """
        if self.turn != turn.number + 1 or self._turns[turn.number % self._window] is not turn:
            raise InputError(
                f"turn {turn.number} cannot be revised any more: the conversation has gone on or was reset; "
                "revise a turn before the next one is committed"
            )
        return turn.number

    def reset(self) -> None:
        """Forget every turn, as if it had just been made."""
        with self._lock:
            self.turn = 0
            self._present[:] = False
            self._turns = [None] * self._window
            self._changed()

    def fork(self) -> Conversation:
        """Another conversation with the same past; from here on neither knows of the other."""
        layers, _, _, width = self._keys.shape
        made = Conversation(self._key, self._window, layers, width)
        with self._lock:
            for ours, theirs in zip(self._rings(), made._rings()):
                theirs[:] = ours
            made._present[:] = self._present
            made._turns, made.turn = list(self._turns), self.turn
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file that `HBAFRuntime.load_conversation` goes on from, bit for bit.

        The file holds speakers' names and what they seemed to express: treat it as personal data.

        Raises:
            StateError: it cannot be written; a file that was there before is as it was.
        """
        with self._lock:
            layers, window, _, width = self._keys.shape
            sizes = {"window": window, "layers": layers, "width": width}
            found = {"present": self._present.tolist(), "turns": self._turns, "turn": self.turn}
            state.write(path, {"bundle": self._key, **sizes, **found}, self._rings())

    def _restore(self, path: str | os.PathLike[str]) -> Conversation:
        """Take over what `save` wrote."""
        rings = self._rings()
        header, values = state.read(path, sum(ring.size for ring in rings))
        if header.get("bundle") != self._key:
            raise StateError(f"{path} was begun with another bundle, whose keys mean other things; begin a new one")
        try:
            turns = [t and Turn(t[0], t[1], t[2], _known(t[3]), tuple(t[4]), float(t[5])) for t in header["turns"]]
            present = np.array(header["present"], bool).reshape(self._window, 2)
            count = int(header["turn"])
            _check_turns(count, turns, self._window)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise StateError(f"{path}: its header does not describe a conversation ({error})") from None
        if not np.isfinite(values).all():
            raise StateError(f"{path} holds values that are not numbers; begin a new conversation")
        for ring, part in zip(rings, np.split(values, np.cumsum([ring.size for ring in rings])[:-1])):
            ring[:] = part.reshape(ring.shape)
        self._present, self._turns, self.turn = present, turns, count
        self._changed()
        return self

    def _rings(self) -> list[NDArray[np.float32]]:
        return [self._context_keys, self._context_values, self._keys, self._values]


def _known(speaker: Any) -> Any:
    """A name from a file as `predict` would keep it, since the next turns are compared with it."""
    return normalise_name(speaker) if isinstance(speaker, str) else speaker


def _check_turns(count: int, turns: list[Turn | None], window: int) -> None:
    """Turn i in slot i mod W, the last W of them and no other: what `recall` relies on."""
    if count < 0 or len(turns) != window:
        raise ValueError(f"{len(turns)} slots and {count} turns in a window of {window}")
    expected = {i % window: i for i in range(max(0, count - window), count)}
    for place, turn in enumerate(turns):
        if (turn and turn.number) != expected.get(place):
            raise ValueError(f"slot {place} holds turn {turn and turn.number}")
        if turn and not (turn.speaker is None or isinstance(turn.speaker, str)):
            raise TypeError(f"turn {turn.number} was spoken by a {type(turn.speaker).__name__}")


def relate(speaker: str | None, other: str | None) -> int:
    """Relation of a turn's speaker to another turn's, as training and runtime both see it.

    >>> relate("anna", "anna"), relate("anna", "bob"), relate("anna", None)
    (0, 1, 2)
    """
    if speaker is None or other is None:
        return UNKNOWN
    return SAME if speaker == other else OTHER
