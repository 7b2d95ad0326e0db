"""Turns gathered to rounds: in order within a conversation, as alone in value, and one's error is nobody else's."""

import threading

import numpy as np
import pytest

from hbaf_edge import BackendError, HBAFRuntime, InputError
from hbaf_edge.gather import Gatherer
from tests.conftest import speech


def test_many_conversations_at_once_are_as_one_by_one(tiny_runtime):
    def said(place, n):
        sound = {"audio": speech(0.3, seed=n), "sample_rate": 16_000} if (place + n) % 3 == 0 else {}
        return {"text": f"Conversation {place}, turn {n}.", "speaker": "ab"[n % 2], **sound}

    def run(place):
        chat = tiny_runtime.conversation()
        found[place] = [gatherer.predict(**said(place, n), conversation=chat) for n in range(6)]

    found = {}
    with Gatherer(tiny_runtime, wait_ms=20) as gatherer:
        threads = [threading.Thread(target=run, args=(place,)) for place in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for place, results in found.items():
        chat = tiny_runtime.conversation()
        for n, p in enumerate(results):
            alone = tiny_runtime.predict(**said(place, n), conversation=chat)
            np.testing.assert_allclose(p.embedding, alone.embedding, atol=1e-5)
            assert p.turn == alone.turn == n


def test_turns_of_one_conversation_keep_their_order(tiny_runtime):
    chat = tiny_runtime.conversation()
    with Gatherer(tiny_runtime, wait_ms=50) as gatherer:
        futures = [gatherer.submit(text=f"Turn {n}.", conversation=chat) for n in range(9)]
    assert [f.result().turn for f in futures] == list(range(9)), "closing computes what was submitted"
    assert chat.turn == 9


def test_rounds_hold_several_turns(tiny, monkeypatch):
    runtime, sizes = HBAFRuntime(tiny.bundle, threads=1), []
    many = runtime._many
    monkeypatch.setattr(runtime, "_many", lambda turns: sizes.append(len(turns)) or many(turns))
    with Gatherer(runtime, wait_ms=300, most=4) as gatherer:
        for future in [gatherer.submit(text=f"Turn {n}.") for n in range(8)]:
            future.result()
    assert sum(sizes) == 8
    assert max(sizes) == 4
    assert runtime.stats()["turns"] == 8


def test_what_cannot_be_used_is_refused_where_it_came_from(tiny_runtime):
    with Gatherer(tiny_runtime) as gatherer:
        with pytest.raises(InputError, match="nothing to judge"):
            gatherer.submit(text="")
        assert gatherer.predict(text="Hello.").turn == 0
    with pytest.raises(BackendError, match="closed"):
        gatherer.submit(text="Hello.")
    gatherer.close()
    for bad in ({"wait_ms": -1}, {"wait_ms": "5"}, {"most": 0}, {"most": 2.5}):
        with pytest.raises(InputError, match="are accepted"):
            Gatherer(tiny_runtime, **bad)


def test_a_round_that_fails_commits_nothing_and_the_next_one_works(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    chats = [runtime.conversation() for _ in range(2)]
    session = runtime._judge.backend._sessions.pop("dialogue")
    with Gatherer(runtime, wait_ms=50) as gatherer:
        futures = [gatherer.submit(text="Hello.", conversation=chat) for chat in chats]
        for future in futures:
            with pytest.raises(KeyError):
                future.result()
        assert [chat.turn for chat in chats] == [0, 0]
        runtime._judge.backend._sessions["dialogue"] = session
        assert gatherer.predict(text="Hello.", conversation=chats[0]).turn == 0


def test_one_that_fails_fails_alone(tiny, monkeypatch):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    text = runtime._judge.backend.text
    monkeypatch.setattr(runtime._judge.backend, "text", lambda ids: text(ids) if max(map(len, ids)) < 20 else 1 / 0)
    with Gatherer(runtime, wait_ms=100) as gatherer:
        futures = [gatherer.submit(text=text) for text in ("Hello.", "no " * 30, "Well.")]
        assert futures[0].result().turn == futures[2].result().turn == 0
        with pytest.raises(ZeroDivisionError):
            futures[1].result()
    assert (runtime.stats()["turns"], runtime.stats()["failed"]) == (2, 1)


def test_somebody_elses_code_cannot_stop_it(tiny):
    def leave(prediction):
        raise SystemExit

    runtime = HBAFRuntime(tiny.bundle, threads=1, on_prediction=leave)
    with Gatherer(runtime, wait_ms=20) as gatherer:
        futures = [gatherer.submit(text=f"Turn {n}.") for n in range(3)]
        futures[0].add_done_callback(leave)
        assert [f.result(timeout=60).turn for f in futures] == [0, 0, 0]
        assert gatherer.predict(text="Still there?").turn == 0


def test_waiting_for_oneself_is_an_error(tiny):
    seen = []

    def again(prediction):
        try:
            gatherer.predict(text="Again.")
        except BackendError as error:
            seen.append(str(error))

    runtime = HBAFRuntime(tiny.bundle, threads=1, on_prediction=again)
    with Gatherer(runtime, wait_ms=5) as gatherer:
        gatherer.predict(text="Hello.")
    assert "use submit" in seen[0]
