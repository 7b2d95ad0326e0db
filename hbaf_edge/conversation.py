"""A conversation's state: rings of the last W turns' keys and values, who spoke, and how many turns there were.

Turn i owns slot i mod W. A slot becomes visible only when the turn counter moves on, and the slot about to be written
is the one that has just left the window. Order enters the model only through distance and speaker relation
(training/MODEL.md, "Two scopes"), so no stored key is ever recomputed.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from hbaf_edge import state_file
from hbaf_edge.errors import InputError, StateError
from hbaf_edge.text import normalise_name

SAME, OTHER, UNKNOWN = 0, 1, 2
Floats = NDArray[np.float32]


class Context(NamedTuple):
    """What a turn may look back on, as the graphs take it (batch of one, or of several).

    Shapes: context_keys and context_values (1, W, 2, d), keys and values (1, layers, W, 2, d), visible (1, W, 2)
    bool, distance and relation (1, W) int64, own_relation (1, 1) int64. Modality 0 is audio, 1 is text.
    """

    context_keys: Floats
    context_values: Floats
    keys: Floats
    values: Floats
    visible: NDArray[np.bool_]
    distance: NDArray[np.int64]
    relation: NDArray[np.int64]
    own_relation: NDArray[np.int64]


class ContextView(NamedTuple):
    """A turn's context, and which memory of which version it shows.

    Attributes:
        arrays: views of the memory; the rings among them are not copies.
        memory: that they show.
        version: of the memory when the view was taken.
        number: of the turn that looks back.
    """

    arrays: Context
    memory: Memory
    version: int
    number: int

    @property
    def is_current(self) -> bool:
        """Whether the memory is still as it was."""
        return self.memory.version == self.version


class TurnState(NamedTuple):
    """What one turn leaves behind: context key and value (2, d), keys and values (layers, 2, d), present (2,) bool."""

    context_key: Floats
    context_value: Floats
    keys: Floats
    values: Floats
    present: NDArray[np.bool_]


class Turn(NamedTuple):
    """A committed turn: its 0-based number, estimate, speaker, modalities used, and when (Unix time, seconds)."""

    number: int
    label: str | None
    confidence: float
    speaker: str | None
    modalities: tuple[str, ...]
    at: float


class Sizes(NamedTuple):
    """Of a memory: turns in the window, layers of the dialogue scope, width d."""

    window: int
    layers: int
    width: int


class Memory:
    """The rings and what belongs to them. Not locked: `Conversation` is.

    Attributes:
        count: how many turns were committed.
        version: one more with every commit or revision, each of which changes the slot of turn count − 1 alone.
    """

    def __init__(self, sizes: Sizes) -> None:
        window, layers, width = self.sizes = sizes
        self.count = self.version = 0
        self.context_keys = np.zeros((window, 2, width), np.float32)
        self.context_values = np.zeros_like(self.context_keys)
        self.keys = np.zeros((layers, window, 2, width), np.float32)
        self.values = np.zeros_like(self.keys)
        self.present = np.zeros((window, 2), bool)
        self.turns: list[Turn | None] = [None] * window

    @property
    def rings(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Context keys, context values, keys, values."""
        return self.context_keys, self.context_values, self.keys, self.values

    def copy(self) -> Memory:
        """Another one with the same content."""
        made = Memory(self.sizes)
        for ours, theirs in zip(self.rings, made.rings):
            theirs[:] = ours
        made.present[:] = self.present
        made.turns, made.count = list(self.turns), self.count
        return made

    def view(self, speaker: str | None, number: int | None = None) -> ContextView:
        """What the next turn, spoken by `speaker`, may look back on; or the last one again, if that is its number."""
        number = self.count if number is None else number
        window = self.sizes.window
        distance = (number - 1 - np.arange(window)) % window + 1
        inside = (distance < window) & (distance <= number)
        relation = [relate(speaker, turn and turn.speaker) for turn in self.turns]
        arrays = Context(
            self.context_keys[None],
            self.context_values[None],
            self.keys[None],
            self.values[None],
            (self.present & inside[:, None])[None],
            distance[None],
            np.array([relation], np.int64),
            np.array([[relate(speaker, speaker)]], np.int64),
        )
        return ContextView(arrays, self, self.version, number)

    def store(self, state: TurnState, turn: Turn) -> None:
        """Write a turn into its slot: the next one, or the last one again."""
        self.version += 1  # first: who reads the rings unlocked looks at it last
        place = turn.number % self.sizes.window
        self.present[place] = False  # so that a slot is seen whole or not at all
        self.context_keys[place] = state.context_key
        self.context_values[place] = state.context_value
        self.keys[:, place] = state.keys
        self.values[:, place] = state.values
        self.present[place] = state.present
        self.turns[place] = turn
        self.count = turn.number + 1


_forks = 0  # how often this process was forked off; a weak set of conversations would run code whenever one goes


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Conversation:
    """One dialogue's state; make it with `HBAFRuntime.conversation()`. Its size is constant, 384 KiB at the defaults.

    Turns of one conversation are computed one after another, in the order of their calls, also when several threads or
    asyncio tasks ask at once.
    """

    def __init__(self, key: str, sizes: Sizes) -> None:
        self.key = key
        self._memory = Memory(sizes)
        self._renew()

    def _renew(self) -> None:
        """Nobody waits and nobody holds the lock: when it is made, and in a forked child, which has one thread."""
        self._lock, self._line, self._born = threading.RLock(), deque[Any](), _forks

    @property
    def lock(self) -> threading.RLock:
        """Held for moments, while the memory is read or changed as a whole."""
        if self._born != _forks:
            self._renew()
        return self._lock

    @property
    def line(self) -> deque[Any]:
        """Calls that wait for their turn in this conversation, first come first (hbaf_edge/calls.py)."""
        if self._born != _forks:
            self._renew()
        return self._line

    @property
    def memory(self) -> Memory:
        """What the engine reads and writes; `reset` puts another in its place."""
        return self._memory

    @property
    def turn(self) -> int:
        """How many turns were committed."""
        return self._memory.count

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The last W turns, oldest first. Older ones are dropped: a conversation of weeks must not grow."""
        return tuple(sorted(turn for turn in self._memory.turns if turn is not None))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in (*self._memory.rings, self._memory.present))

    def __len__(self) -> int:
        return self.turn

    def __repr__(self) -> str:
        return f"<Conversation of {self.turn} turns, {self.nbytes / 1024:.0f} KiB>"

    def __reduce__(self) -> NoReturn:
        raise StateError(
            "a conversation cannot be copied or pickled: chat.fork() makes a second one with the same past, "
            "chat.save(path) or chat.to_bytes() keeps it for later"
        )

    def view(self, speaker: str | None, number: int | None = None) -> ContextView:
        """`Memory.view` of this moment."""
        with self.lock:
            return self._memory.view(speaker, number)

    def last(self, turn: Turn) -> int:
        """The number of a committed turn, if no other was committed since.

        Raises:
            InputError: later turns have built on it, or the conversation was reset.
        """
        memory = self._memory
        if memory.count != turn.number + 1 or memory.turns[turn.number % memory.sizes.window] is not turn:
            raise InputError(
                f"turn {turn.number} cannot be revised any more: the conversation has gone on or was reset; "
                "revise a turn before the next one is committed"
            )
        return turn.number

    def reset(self) -> None:
        """Forget every turn, as if it had just been made. A turn under way becomes its first one."""
        with self.lock:
            self._memory = Memory(self._memory.sizes)

    def fork(self) -> Conversation:
        """Another conversation with the same past; from here on neither knows of the other."""
        made = Conversation(self.key, self._memory.sizes)
        made._memory = self._copied()
        return made

    def _copied(self) -> Memory:
        with self.lock:
            return self._memory.copy()

    def to_bytes(self) -> bytes:
        """All of it, to be gone on from bit for bit with `HBAFRuntime.load_conversation`.

        The bytes hold speakers' names and what they seemed to express: treat them as personal data.
        """
        memory = self._copied()
        header = {
            "bundle": self.key, **memory.sizes._asdict(),
            "present": memory.present.tolist(), "turns": memory.turns, "turn": memory.count,
        }  # fmt: skip
        return state_file.encode(header, memory.rings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_bytes` to a file. Turns go on meanwhile; the file shows the moment of the call.

        Raises:
            StateError: it cannot be written; a file that was there before is as it was.
        """
        state_file.write(path, self.to_bytes())

    def restore(self, source: str | os.PathLike[str] | bytes) -> Conversation:
        """Take over what `save` or `to_bytes` gave; `HBAFRuntime.load_conversation` calls it on a new conversation.

        Raises:
            StateError: it cannot be read, or is of another bundle.
        """
        memory = Memory(self._memory.sizes)
        rings, window = memory.rings, memory.sizes.window
        name = state_file.name_of(source)
        header, values = state_file.read(source, sum(ring.size for ring in rings))
        if header.get("bundle") != self.key:
            raise StateError(f"{name} was begun with another bundle, whose keys mean other things; begin a new one")
        try:
            memory.turns = [
                t and Turn(t[0], t[1], t[2], _known(t[3]), tuple(t[4]), float(t[5])) for t in header["turns"]
            ]
            memory.present = np.array(header["present"], bool).reshape(window, 2)
            memory.count = int(header["turn"])
            _check_turns(memory.count, memory.turns, window)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise StateError(f"{name}: its header does not describe a conversation ({error})") from None
        if not np.isfinite(values).all():
            raise StateError(f"{name} holds values that are not numbers; begin a new conversation")
        for ring, part in zip(rings, np.split(values, np.cumsum([ring.size for ring in rings])[:-1])):
            ring[:] = part.reshape(ring.shape)
        with self.lock:
            self._memory = memory
        return self


def _known(speaker: Any) -> Any:
    """A name from a file as `predict` would keep it, since the next turns are compared with it."""
    return normalise_name(speaker) if isinstance(speaker, str) else speaker


def _check_turns(count: int, turns: list[Turn | None], window: int) -> None:
    """Turn i in slot i mod W, the last W of them and no other: what `Memory.view` relies on."""
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
