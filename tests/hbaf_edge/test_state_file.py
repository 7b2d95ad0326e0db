"""Saving, restoring, forking and forgetting a conversation: exact, or refused, and never half-done."""

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
from tests.backends import commit
from tests.hbaf_edge.test_conversation import slot


def talk(count, window=4):
    chat = Conversation("bundle", Sizes(window, 2, 4))
    for turn in range(count):
        commit(chat, slot(turn, present=(turn % 2 == 0, True)), ("anna", "bob", None)[turn % 3], "joy", 0.5, ("text",))
    return chat


def fresh(window=4):
    return Conversation("bundle", Sizes(window, 2, 4))


def same(a, b):
    left, right = a.view("anna").arrays, b.view("anna").arrays
    return a.turn == b.turn and a.turns == b.turns and all(np.array_equal(x, y) for x, y in zip(left, right))


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_restored_is_what_was_saved(tmp_path, count):
    chat = talk(count)
    chat.save(tmp_path / "chat")
    assert same(fresh().restore(tmp_path / "chat"), chat)
    assert os.listdir(tmp_path) == ["chat"]


def test_a_restored_conversation_goes_on_bit_for_bit(tiny_runtime, clips, tmp_path):
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


def test_a_fork_and_its_origin_know_nothing_of_each_other(tiny_runtime):
    chat = tiny_runtime.conversation()
    tiny_runtime.predict(text="Hello.", speaker="a", conversation=chat)
    fork = chat.fork()
    tiny_runtime.predict(text="I hate this!", speaker="a", conversation=fork)
    assert (chat.turn, fork.turn) == (1, 2)
    before = chat.view("a").arrays
    again = tiny_runtime.predict(text="I hate this!", speaker="a", conversation=chat.fork())
    assert again.turn == 1
    assert all(np.array_equal(x, y) for x, y in zip(before, chat.view("a").arrays))


def test_reset_is_a_new_conversation(tiny_runtime):
    chat = tiny_runtime.conversation()
    first = tiny_runtime.predict(text="We won!", speaker="a", conversation=chat)
    tiny_runtime.predict(text="Oh no.", speaker="b", conversation=chat)
    chat.reset()
    assert (chat.turn, chat.turns) == (0, ())
    again = tiny_runtime.predict(text="We won!", speaker="a", conversation=chat)
    assert again.probabilities == first.probabilities


def test_every_cut_and_every_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "chat"
    talk(3).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in {0, 7, 8, 15, 16, 40, len(whole) - 1, *rng.integers(0, len(whole), 30).tolist()}:
        path.write_bytes(whole[:length])
        with pytest.raises(StateError):
            fresh().restore(path)
    for place in {0, 9, 13, 20, len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StateError):
            fresh().restore(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(StateError):
        fresh().restore(path)


def forged(path, change):
    """A file whose hash fits and whose header was changed."""
    talk(3).save(path)
    content = path.read_bytes()[: -state_file.DIGEST]
    length = state_file.HEAD.unpack_from(content)[2]
    header = json.loads(content[state_file.HEAD.size : state_file.HEAD.size + length])
    change(header)
    text = json.dumps(header).encode()
    body = state_file.HEAD.pack(state_file.MAGIC, 1, len(text)) + text + content[state_file.HEAD.size + length :]
    path.write_bytes(body + hashlib.sha256(body).digest())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.update(bundle="other"), "another bundle"),
        (lambda h: h.update(turn=7), "slot"),
        (lambda h: h.update(turn=-1), "-1 turns"),
        (lambda h: h["turns"].pop(), "3 slots"),
        (lambda h: h["turns"][0].__setitem__(3, 5), "spoken by a int"),
        (lambda h: h.pop("present"), "present"),
        (lambda h: h.update(present=[[True]]), "reshape"),
    ],
)
def test_a_forged_header_is_refused(tmp_path, change, said):
    forged(tmp_path / "chat", change)
    with pytest.raises(StateError, match=said):
        fresh().restore(tmp_path / "chat")


def test_other_sizes_versions_kinds_and_places_are_refused(tmp_path):
    path = tmp_path / "chat"
    talk(3).save(path)
    with pytest.raises(StateError, match="bytes of rings"):
        fresh(window=8).restore(path)
    path.write_bytes(state_file.HEAD.pack(state_file.MAGIC, 9, 0) + bytes(64))
    with pytest.raises(StateError, match="version 9"):
        fresh().restore(path)
    path.write_text("hello")
    with pytest.raises(StateError, match="not a saved conversation"):
        fresh().restore(path)
    with pytest.raises(StateError, match="cannot be read"):
        fresh().restore(tmp_path / "nothing")
    with pytest.raises(StateError, match="cannot be saved"):
        talk(1).save(tmp_path / "no" / "folder")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "chat"
    talk(3).save(path)
    old = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        talk(9).save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["chat"]


def test_killed_while_saving_leaves_the_old_file(tmp_path):
    path = tmp_path / "chat"
    talk(3).save(path)
    old = path.read_bytes()
    code = f"""
import os
from tests.hbaf_edge.test_state_file import talk
os.replace = lambda *_: os._exit(9)
talk(9).save({str(path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.read_bytes() == old
    assert fresh().restore(path).turn == 3


def test_names_of_a_file_are_as_predict_keeps_them(tmp_path):
    """A file of an earlier version may hold a name as it came; the same person must go on being the same."""
    chat = fresh()
    for turn, name in enumerate(("  Anna ", "", "b\x1b[31mob", None)):
        commit(chat, slot(turn), name)
    chat.save(tmp_path / "chat")
    assert [turn.speaker for turn in fresh().restore(tmp_path / "chat").turns] == ["Anna", None, "bob", None]


def test_a_name_without_end_is_refused(tiny_runtime):
    chat = tiny_runtime.conversation()
    with pytest.raises(InputError, match="300 characters"):
        tiny_runtime.predict(text="Hi.", speaker="x" * 300, conversation=chat)
    assert chat.turn == 0
