"""A conversation's state: ring buffers of the last W turns' keys and values, their speakers, and the turn count.

Turn i is stored in slot i mod W. The next turn overwrites the slot that has just left the window, and becomes visible
when the turn count is increased. Example with W = 4: turn 6 goes to slot 2, in place of turn 2, and sees turns 3, 4
and 5 in slots 3, 0 and 1. The model sees the order of turns only through distance and speaker relation
(docs/model.md, "Two scopes"), so stored keys are never recomputed.
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
    """The stored context of a turn, as the graphs take it.

    Shapes for one turn (a batch has a larger first axis): context_keys and context_values (1, W, 2, d), keys and values
    (1, layers, W, 2, d), visible (1, W, 2) bool, distance and relation (1, W) int64, own_relation (1, 1) int64.
    Modality 0 is audio, 1 is text.
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
    """A turn's context, and the memory and version that it was taken from.

    Attributes:
        arrays: the context; its rings are views of the memory, not copies.
        memory: the memory.
        version: the memory's version when the view was taken.
        number: number of the turn whose context this is.
    """

    arrays: Context
    memory: Memory
    version: int
    number: int

    @property
    def is_current(self) -> bool:
        """Whether the memory has not changed since."""
        return self.memory.version == self.version


class TurnState(NamedTuple):
    """What is stored of one turn: context key and value (2, d), keys and values (layers, 2, d), present (2,) bool."""

    context_key: Floats
    context_value: Floats
    keys: Floats
    values: Floats
    present: NDArray[np.bool_]


class Turn(NamedTuple):
    """A committed turn: 0-based number, label, confidence, speaker, modalities, and Unix time in seconds (`at`)."""

    number: int
    label: str | None
    confidence: float
    speaker: str | None
    modalities: tuple[str, ...]
    at: float


class Sizes(NamedTuple):
    """Sizes of a memory: turns in the window, layers of the dialogue scope, width d."""

    window: int
    layers: int
    width: int


class Memory:
    """The ring buffers and the data of their turns. Not thread-safe; `Conversation` has the lock.

    Attributes:
        count: number of committed turns.
        version: increased by every commit and revision. Each of them changes only the slot of turn count − 1.
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
        """Return a copy."""
        copy = Memory(self.sizes)
        for source, target in zip(self.rings, copy.rings):
            target[:] = source
        copy.present[:] = self.present
        copy.turns, copy.count = list(self.turns), self.count
        return copy

    def view(self, speaker: str | None, number: int | None = None) -> ContextView:
        """Return the context of the next turn, spoken by `speaker`; with a `number`, of the last turn to revise it."""
        number = self.count if number is None else number
        window = self.sizes.window
        distance = (number - 1 - np.arange(window)) % window + 1  # turns back, from 1 to W, by slot
        is_in_window = (distance < window) & (distance <= number)
        relation = [speaker_relation(speaker, turn and turn.speaker) for turn in self.turns]
        arrays = Context(
            self.context_keys[None],
            self.context_values[None],
            self.keys[None],
            self.values[None],
            (self.present & is_in_window[:, None])[None],
            distance[None],
            np.array([relation], np.int64),
            np.array([[speaker_relation(speaker, speaker)]], np.int64),
        )
        return ContextView(arrays, self, self.version, number)

    def store(self, state: TurnState, turn: Turn) -> None:
        """Store the next turn, or the last turn again, in its slot."""
        self.version += 1  # first: readers without the lock check the version after they have read
        slot = turn.number % self.sizes.window
        self.present[slot] = False  # a half-written slot stays invisible
        self.context_keys[slot] = state.context_key
        self.context_values[slot] = state.context_value
        self.keys[:, slot] = state.keys
        self.values[:, slot] = state.values
        self.present[slot] = state.present
        self.turns[slot] = turn
        self.count = turn.number + 1


_fork_count = 0  # forks between the first process and this one; cheaper than a weak set of all conversations


def _count_fork() -> None:
    global _fork_count
    _fork_count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Conversation:
    """One dialogue's state; make it with `HBAFRuntime.conversation()`. Its size is constant: 384 KiB by default.

    Turns of one conversation are computed one after another in the order of the calls, even if several threads or
    asyncio tasks call at the same time.
    """

    def __init__(self, key: str, sizes: Sizes) -> None:
        self.key = key
        self._memory = Memory(sizes)
        self._reset_lock()

    def _reset_lock(self) -> None:
        """Make a new lock and an empty queue. In a forked child, calls and threads of the parent do not exist."""
        self._lock, self._queue, self._lock_fork = threading.RLock(), deque[Any](), _fork_count

    @property
    def lock(self) -> threading.RLock:
        """Lock of the memory. It is never locked during a computation or a file operation."""
        if self._lock_fork != _fork_count:
            self._reset_lock()
        return self._lock

    @property
    def queue(self) -> deque[Any]:
        """Calls of this conversation that are not finished, in the order of arrival (hbaf_edge/calls.py)."""
        if self._lock_fork != _fork_count:
            self._reset_lock()
        return self._queue

    @property
    def memory(self) -> Memory:
        """The memory that the engine reads and writes; `reset` replaces it."""
        return self._memory

    @property
    def turn(self) -> int:
        """Number of committed turns."""
        return self._memory.count

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The last W turns, oldest first. Older turns are dropped, so that memory does not grow."""
        return tuple(sorted(turn for turn in self._memory.turns if turn is not None))

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(array.nbytes for array in (*self._memory.rings, self._memory.present))

    def __len__(self) -> int:
        return self.turn

    def __repr__(self) -> str:
        return f"<Conversation of {self.turn} turns, {self.nbytes / 1024:.0f} KiB>"

    def __reduce__(self) -> NoReturn:
        raise StateError(
            "a conversation cannot be copied or pickled: chat.fork() makes a second one with the same past, "
            "chat.save(path) or chat.to_bytes() stores it"
        )

    def view(self, speaker: str | None, number: int | None = None) -> ContextView:
        """Return `Memory.view` under the lock."""
        with self.lock:
            return self._memory.view(speaker, number)

    def revisable_number(self, turn: Turn) -> int:
        """Return the number of a committed turn if it is the last one, so that it can be revised.

        Raises:
            InputError: a later turn was committed, or the conversation was reset.
        """
        memory = self._memory
        if memory.count != turn.number + 1 or memory.turns[turn.number % memory.sizes.window] is not turn:
            raise InputError(
                f"turn {turn.number} cannot be revised any more: the conversation has gone on or was reset; "
                "revise a turn before the next one is committed"
            )
        return turn.number

    def reset(self) -> None:
        """Forget all turns. A turn that is being computed becomes the first one."""
        with self.lock:
            self._memory = Memory(self._memory.sizes)

    def fork(self) -> Conversation:
        """Return a second conversation with the same past. From here on they are independent."""
        fork = Conversation(self.key, self._memory.sizes)
        fork._memory = self._copy_memory()
        return fork

    def _copy_memory(self) -> Memory:
        with self.lock:
            return self._memory.copy()

    def to_bytes(self) -> bytes:
        """Return the conversation as bytes; `HBAFRuntime.load_conversation` restores it bit for bit.

        The bytes contain speakers' names and estimates of their emotions: treat them as personal data.
        """
        memory = self._copy_memory()
        header = {
            "bundle": self.key, **memory.sizes._asdict(),
            "present": memory.present.tolist(), "turns": memory.turns, "turn": memory.count,
        }  # fmt: skip
        return state_file.encode(header, memory.rings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_bytes` to a file. Turns that are committed while it is written are not in the file.

        Raises:
            StateError: the file cannot be written; an existing file is unchanged.
        """
        state_file.write(path, self.to_bytes())

    def restore(self, source: str | os.PathLike[str] | bytes) -> Conversation:
        """Replace the state by a saved one and return this conversation; called by `HBAFRuntime.load_conversation`.

        Args:
            source: path of a file that `save` wrote, or the bytes of `to_bytes`.

        Raises:
            StateError: the source cannot be read, or belongs to another bundle.
        """
        memory = Memory(self._memory.sizes)
        rings, window = memory.rings, memory.sizes.window
        name = state_file.name_of(source)
        header, values = state_file.read(source, sum(ring.size for ring in rings))
        if header.get("bundle") != self.key:
            raise StateError(f"{name} belongs to another bundle, whose keys are not compatible; begin a new one")
        try:
            memory.turns = [
                t and Turn(t[0], t[1], t[2], _normalise(t[3]), tuple(t[4]), float(t[5])) for t in header["turns"]
            ]
            memory.present = np.array(header["present"], bool).reshape(window, 2)
            memory.count = int(header["turn"])
            _check_turns(memory.count, memory.turns, window)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise StateError(f"{name}: its header does not describe a conversation ({error})") from None
        if not np.isfinite(values).all():
            raise StateError(f"{name} contains values that are not finite; begin a new conversation")
        for ring, part in zip(rings, np.split(values, np.cumsum([ring.size for ring in rings])[:-1])):
            ring[:] = part.reshape(ring.shape)
        with self.lock:
            self._memory = memory
        return self


def _normalise(speaker: Any) -> Any:
    """Normalise a name from a file as `predict` does, because speakers of later turns are compared with it."""
    return normalise_name(speaker) if isinstance(speaker, str) else speaker


def _check_turns(count: int, turns: list[Turn | None], window: int) -> None:
    """Raise unless the slots hold exactly the last W turns, turn i in slot i mod W; `Memory.view` relies on this."""
    if count < 0 or len(turns) != window:
        raise ValueError(f"{len(turns)} slots and {count} turns in a window of {window}")
    expected = {i % window: i for i in range(max(0, count - window), count)}
    for slot, turn in enumerate(turns):
        if (turn and turn.number) != expected.get(slot):
            raise ValueError(f"slot {slot} holds turn {turn and turn.number}")
        if turn and not (turn.speaker is None or isinstance(turn.speaker, str)):
            raise TypeError(f"the speaker of turn {turn.number} is of type {type(turn.speaker).__name__}")


def speaker_relation(speaker: str | None, other: str | None) -> int:
    """Return the relation of two turns' speakers: SAME, OTHER or UNKNOWN. Training and runtime share it.

    Examples:
        >>> speaker_relation("anna", "anna"), speaker_relation("anna", "bob"), speaker_relation("anna", None)
        (0, 1, 2)
    """
    if speaker is None or other is None:
        return UNKNOWN
    return SAME if speaker == other else OTHER
