"""The words are read while the sound is heard: what comes out is the same, and failures leave nothing behind."""

import logging
import threading
import time
from functools import partial

import pytest

from hbaf_edge import HBAFRuntime
from hbaf_edge.beside import Beside
from hbaf_edge.errors import InputError
from tests.conftest import speech

SAID = "Well, I never thought that you would do that."


@pytest.fixture
def pair(tiny):
    """The same model on one thread and on three."""
    return HBAFRuntime(tiny.bundle, threads=1), HBAFRuntime(tiny.bundle, threads=3)


def both(runtime, chat=None, seconds=1.0, text=SAID):
    return runtime.predict(speech(seconds), sample_rate=16_000, text=text, speaker="a", conversation=chat)


def close(one, other):
    for label, p in one.probabilities.items():
        assert other.probabilities[label] == pytest.approx(p, abs=1e-5)


def test_the_words_are_read_by_another_thread_while_this_one_hears(pair):
    alone, beside = pair
    met = threading.Barrier(2, timeout=20)
    ran = {}

    def meeting(name, work, given):
        ran[name] = threading.current_thread()
        met.wait()  # passes only if the other is running now
        return work(given)

    backend = beside._ready().backend
    backend.audio, backend.text = (partial(meeting, n, getattr(backend, n)) for n in ("audio", "text"))
    close(both(beside), both(alone))
    assert ran["audio"] is threading.current_thread()
    assert ran["text"].name.startswith("hbaf_edge_beside")
    assert alone._ready().backend.beside is None


def test_a_batch_is_split_into_rows_and_comes_back_in_order(pair):
    alone, beside = pair
    voices = [{"audio": speech(1.0, seed=n), "sample_rate": 16_000} if n % 2 else {} for n in range(7)]
    turns = [{"text": f"{SAID} " * (1 + n % 3), **voice} for n, voice in enumerate(voices)]
    backend, sizes = beside._ready().backend, {}
    run = backend._run

    def watched(graph, **inputs):
        sizes.setdefault(graph, []).append(len(next(iter(inputs.values()))))
        return run(graph, **inputs)

    backend._run = watched
    for one, other in zip(alone.predict_many(turns), beside.predict_many(turns), strict=True):
        close(one, other)
    assert sorted(sizes["text"]) == sorted(sizes["utterance"]) == [2, 2, 3]


@pytest.mark.parametrize("failing", ["audio", "text"])
def test_a_failure_on_either_side_is_the_call_s_and_the_next_turn_works(pair, failing, monkeypatch):
    alone, beside = pair
    chat, backend = beside.conversation(), beside._ready().backend

    def broken(_):
        raise MemoryError(failing)

    with monkeypatch.context() as patch:
        patch.setattr(backend, failing, broken)
        with pytest.raises(MemoryError, match=failing):
            both(beside, chat)
    assert chat.turn == 0
    close(both(beside, chat), both(alone))
    assert backend.beside._free._value == 2


def test_many_callers_get_what_each_would_get_alone(pair):
    alone, beside = pair
    given = [(0.5 + 0.1 * n, f"{SAID} " * (1 + n % 4)) for n in range(8)]
    expected = [both(alone, None, *one) for one in given]
    wrong = []

    def caller(shift):
        for n in range(6):
            k = (shift + n) % len(given)
            try:
                close(expected[k], both(beside, None, *given[k]))
            except BaseException as error:
                wrong.append(error)

    callers = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert not wrong


def test_who_finds_no_thread_free_does_it_himself():
    beside, gate = Beside(1), threading.Event()
    first = beside.start(gate.wait)
    second = beside.start(threading.current_thread)
    assert second() is threading.current_thread()
    gate.set()
    assert first()


def test_without_a_thread_work_is_done_once_and_that_is_said(monkeypatch, caplog):
    beside, done = Beside(2), []

    def refused(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with caplog.at_level(logging.WARNING, "hbaf_edge"):
        results = [beside.start(partial(done.append, n)) for n in range(4)]
    monkeypatch.undo()
    for result in results:
        result()
    assert sorted(done) == [0, 1, 2, 3]
    assert "can't start new thread" in caplog.text
    assert caplog.text.count("one after another") == 1


def test_an_interrupt_leaves_the_thread_to_the_next(monkeypatch):
    beside = Beside(1)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(beside._pool, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            beside.start(list)
    assert beside.start(threading.current_thread)() is not threading.current_thread()


def test_no_more_turns_compute_at_once_than_there_are_cores_and_one(tiny, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    backend, here, most = runtime._ready().backend, [], []
    read = backend.text

    def watched(tokens):
        here.append(None)
        most.append(len(here))
        time.sleep(0.02)
        here.pop()
        return read(tokens)

    backend.text = watched
    callers = [threading.Thread(target=lambda: runtime.predict(text=SAID)) for _ in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert (len(most), max(most)) == (8, 2)
    with pytest.raises(InputError):
        runtime.predict(text="")
    assert runtime._room._value == 2
