"""Saving, restoring, forking and resetting a conversation: exact or refused, never half-done."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hbaf_edge import InputError, StateError, state_file
from hbaf_edge.conversation import Conversation, Sizes
from tests.backends import commit_turn
from tests.hbaf_edge.test_conversation import turn_state


def conversation_of(count, window=4):
    chat = Conversation("bundle", Sizes(window, 2, 4))
    for turn in range(count):
        commit_turn(
            chat,
            turn_state(turn, present=(turn % 2 == 0, True)),
            ("anna", "bob", None)[turn % 3],
            "joy",
            0.5,
            ("text",),
        )
    return chat


def new_conversation(window=4):
    return Conversation("bundle", Sizes(window, 2, 4))


def is_same(a, b):
    left, right = a.view("anna").arrays, b.view("anna").arrays
    return a.turn == b.turn and a.turns == b.turns and all(np.array_equal(x, y) for x, y in zip(left, right))


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_a_restored_conversation_equals_the_saved_one(tmp_path, count):
    chat = conversation_of(count)
    chat.save(tmp_path / "chat")
    assert is_same(new_conversation().restore(tmp_path / "chat"), chat)
    assert os.listdir(tmp_path) == ["chat"]


def test_later_predictions_of_a_restored_conversation_are_bit_identical(tiny_runtime, clips, tmp_path):
    chat = tiny_runtime.conversation()
    for n in range(5):
        tiny_runtime.predict(clips[n % 3], text=f"Turn {n}.", speaker="ab"[n % 2], conversation=chat)
    chat.save(tmp_path / "chat")
    other = tiny_runtime.load_conversation(tmp_path / "chat")
    for n in range(40):
        a, b = (tiny_runtime.predict(text=f"More {n}.", speaker="a", conversation=c) for c in (chat, other))
        assert a.probabilities == b.probabilities
        assert np.array_equal(a.embedding, b.embedding)
    assert [t.number for t in other.turns] == list(range(45 - chat.memory.sizes.window, 45))
    assert other.turns[-1].label == b.label


def test_a_fork_and_its_original_are_independent(tiny_runtime):
    chat = tiny_runtime.conversation()
    tiny_runtime.predict(text="Hello.", speaker="a", conversation=chat)
    fork = chat.fork()
    tiny_runtime.predict(text="I hate this!", speaker="a", conversation=fork)
    assert (chat.turn, fork.turn) == (1, 2)
    before = chat.view("a").arrays
    repeated = tiny_runtime.predict(text="I hate this!", speaker="a", conversation=chat.fork())
    assert repeated.turn == 1
    assert all(np.array_equal(x, y) for x, y in zip(before, chat.view("a").arrays))


def test_a_reset_conversation_equals_a_new_one(tiny_runtime):
    chat = tiny_runtime.conversation()
    first = tiny_runtime.predict(text="We won!", speaker="a", conversation=chat)
    tiny_runtime.predict(text="Oh no.", speaker="b", conversation=chat)
    chat.reset()
    assert (chat.turn, chat.turns) == (0, ())
    repeated = tiny_runtime.predict(text="We won!", speaker="a", conversation=chat)
    assert repeated.probabilities == first.probabilities


def test_a_cut_or_changed_file_is_refused(tmp_path):
    path = tmp_path / "chat"
    conversation_of(3).save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in {0, 7, 8, 15, 16, 40, len(content) - 1, *rng.integers(0, len(content), 30).tolist()}:
        path.write_bytes(content[:length])
        with pytest.raises(StateError):
            new_conversation().restore(path)
    for position in {0, 9, 13, 20, len(content) - 1, *rng.integers(0, len(content), 60).tolist()}:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(StateError):
            new_conversation().restore(path)
    path.write_bytes(content + b"more")
    with pytest.raises(StateError):
        new_conversation().restore(path)


def write_with_changed_header(path, change):
    """Write a file with a changed header and a correct hash."""
    conversation_of(3).save(path)
    content = path.read_bytes()[: -state_file.DIGEST]
    length = state_file.HEAD.unpack_from(content)[2]
    header = json.loads(content[state_file.HEAD.size : state_file.HEAD.size + length])
    change(header)
    text = json.dumps(header).encode()
    body = state_file.HEAD.pack(state_file.MAGIC, 1, len(text)) + text + content[state_file.HEAD.size + length :]
    path.write_bytes(body + hashlib.sha256(body).digest())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(bundle="other"), "another bundle"),
        (lambda h: h.update(turn=7), "slot"),
        (lambda h: h.update(turn=-1), "-1 turns"),
        (lambda h: h["turns"].pop(), "3 slots"),
        (lambda h: h["turns"][0].__setitem__(3, 5), "speaker of turn 0 is of type int"),
        (lambda h: h.pop("present"), "present"),
        (lambda h: h.update(present=[[True]]), "reshape"),
    ],
)
def test_an_inconsistent_header_is_refused(tmp_path, change, message):
    write_with_changed_header(tmp_path / "chat", change)
    with pytest.raises(StateError, match=message):
        new_conversation().restore(tmp_path / "chat")


def test_files_of_other_sizes_versions_and_kinds_are_refused(tmp_path):
    path = tmp_path / "chat"
    conversation_of(3).save(path)
    with pytest.raises(StateError, match="bytes of rings"):
        new_conversation(window=8).restore(path)
    path.write_bytes(state_file.HEAD.pack(state_file.MAGIC, 9, 0) + bytes(64))
    with pytest.raises(StateError, match="version 9"):
        new_conversation().restore(path)
    path.write_text("hello")
    with pytest.raises(StateError, match="not a saved conversation"):
        new_conversation().restore(path)
    with pytest.raises(StateError, match="cannot be read"):
        new_conversation().restore(tmp_path / "nothing")
    with pytest.raises(StateError, match="cannot be saved"):
        conversation_of(1).save(tmp_path / "no" / "folder")


def test_the_old_file_is_kept_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "chat"
    conversation_of(3).save(path)
    old = path.read_bytes()

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match="No space left"):
        conversation_of(9).save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["chat"]


def test_the_old_file_is_kept_when_the_process_is_killed(tmp_path):
    path = tmp_path / "chat"
    conversation_of(3).save(path)
    old = path.read_bytes()
    code = f"""
import os
from tests.hbaf_edge.test_state_file import conversation_of
os.replace = lambda *_: os._exit(9)
conversation_of(9).save({str(path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.read_bytes() == old
    assert new_conversation().restore(path).turn == 3


def test_speakers_of_a_file_are_normalised(tmp_path):
    """A file of an earlier version may contain other spellings; the same speaker must stay the same."""
    chat = new_conversation()
    for turn, name in enumerate(("  Anna ", "", "b\x1b[31mob", None)):
        commit_turn(chat, turn_state(turn), name)
    chat.save(tmp_path / "chat")
    assert [turn.speaker for turn in new_conversation().restore(tmp_path / "chat").turns] == ["Anna", None, "bob", None]


def test_a_very_long_speaker_name_is_refused(tiny_runtime):
    chat = tiny_runtime.conversation()
    with pytest.raises(InputError, match="300 characters"):
        tiny_runtime.predict(text="Hi.", speaker="x" * 300, conversation=chat)
    assert chat.turn == 0
