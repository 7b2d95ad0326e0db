"""Threads that do a runtime's work: beside their callers, in order, and ended in order."""

import logging
import threading
from functools import partial

import pytest

from hbaf_edge import HBAFRuntime
from hbaf_edge.machine import available_cpus
from hbaf_edge.task_pool import TaskPool
from hbaf_edge.workers import Outcome, Workers
from tests.backends import watched
from tests.conftest import speech

TEXT = "Well, I never thought that you would do that."


@pytest.fixture
def pair(tiny):
    """The same model on one thread and on three."""
    return HBAFRuntime(tiny.bundle, threads=1), HBAFRuntime(tiny.bundle, threads=3)


def both(runtime, chat=None, seconds=1.0, text=TEXT):
    return runtime.predict(speech(seconds), sample_rate=16_000, text=text, speaker="a", conversation=chat)


def close(one, other):
    for label, p in one.probabilities.items():
        assert other.probabilities[label] == pytest.approx(p, abs=1e-5)


def test_text_is_encoded_by_another_thread_while_audio_is(pair):
    alone, beside = pair
    met, ran = threading.Barrier(2, timeout=20), {}

    def meet(graph, inputs, outputs):
        ran[graph] = threading.current_thread().name
        if graph in ("audio", "text"):
            met.wait()  # passes only if the other one runs now

    with beside.tap(meet):
        found = both(beside)
    close(found, both(alone))
    assert ran["audio"].startswith("hbaf_edge_")
    assert ran["text"].startswith("hbaf_edge_task")


def test_a_batch_is_split_into_rows_and_comes_back_in_order(pair):
    alone, beside = pair
    voices = [{"audio": speech(1.0, seed=n), "sample_rate": 16_000} if n % 2 else {} for n in range(7)]
    turns = [{"text": f"{TEXT} " * (1 + n % 3), **voice} for n, voice in enumerate(voices)]
    sizes = {}
    with beside.tap(lambda graph, inputs, _: sizes.setdefault(graph, []).append(len(next(iter(inputs.values()))))):
        found = beside.predict_batch(turns)
    for one, other in zip(alone.predict_batch(turns), found, strict=True):
        close(one, other)
    assert sorted(sizes["text"]) == sorted(sizes["utterance"]) == [2, 2, 3]


@pytest.mark.parametrize("failing", ["audio", "text"])
def test_a_failure_on_either_thread_is_the_calls_and_the_next_turn_works(pair, failing):
    alone, beside = pair
    chat = beside.conversation()

    def fail(graph, inputs, outputs):
        if graph == failing:
            raise MemoryError(failing)

    with beside.tap(fail), pytest.raises(MemoryError, match=failing):
        both(beside, chat)
    assert chat.turn == 0
    close(both(beside, chat), both(alone))


def test_many_callers_get_what_each_would_get_alone(pair):
    alone, beside = pair
    turns = [(0.5 + 0.1 * n, f"{TEXT} " * (1 + n % 4)) for n in range(8)]
    expected = [both(alone, None, *turn) for turn in turns]
    wrong = []

    def caller(shift):
        for n in range(6):
            k = (shift + n) % len(turns)
            try:
                close(expected[k], both(beside, None, *turns[k]))
            except BaseException as error:
                wrong.append(error)

    callers = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert not wrong


def test_a_caller_that_finds_no_thread_free_runs_the_task_itself():
    pool, gate = TaskPool(1), threading.Event()
    first = pool.start(gate.wait)
    second = pool.start(threading.current_thread)
    assert second() is threading.current_thread()
    gate.set()
    assert first()


def test_without_threads_tasks_are_done_once_and_that_is_said(monkeypatch, caplog):
    def refused(*_):
        raise RuntimeError("can't start new thread")

    done = []
    monkeypatch.setattr(threading.Thread, "start", refused)
    with caplog.at_level(logging.WARNING, "hbaf_edge"):
        pool = TaskPool(2)
    for result in [pool.start(partial(done.append, n)) for n in range(4)]:
        result()
    assert sorted(done) == [0, 1, 2, 3]
    assert "only 0 of 2 threads could be started (can't start new thread)" in caplog.text


def test_a_task_that_fails_is_logged_and_the_thread_serves_on(caplog):
    workers, outcome = Workers(1, "example"), Outcome()
    with caplog.at_level(logging.ERROR, "hbaf_edge"):
        workers.submit(lambda: 1 / 0)
        workers.submit(lambda: outcome.set("on"))
        assert outcome.wait() == "on"
    assert "ZeroDivisionError" in caplog.text


def test_ended_workers_do_what_was_submitted_and_nobody_waits_for_ever():
    workers, done = Workers(2, "example"), []
    for n in range(20):
        workers.submit(partial(done.append, n))
    workers.submit(lambda: [workers.submit(partial(done.append, 20 + n)) for n in range(500)])
    workers.end()
    workers.join(30)
    assert sorted(done) == list(range(520)), "what tasks submit, too"
    workers.submit(partial(done.append, "late"))
    assert done[-1] == "late", "by the caller"


def test_no_more_turns_are_computed_at_once_than_there_are_cpus(tiny, monkeypatch):
    monkeypatch.setattr("hbaf_edge.engine.available_cpus", lambda: 2)
    runtime, here, most = HBAFRuntime(tiny.bundle, threads=1), [], []

    def count(graph, inputs, outputs):
        if graph == "text":
            here.append(None)
        elif graph == "dialogue":
            most.append(len(here))
            here.pop()

    with runtime.tap(count):
        callers = [threading.Thread(target=lambda: runtime.predict(text=TEXT)) for _ in range(8)]
        for one in callers:
            one.start()
        for one in callers:
            one.join()
    assert len(most) == 8
    assert max(most) <= 2


def test_callers_never_compute(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    with watched(runtime) as backend:
        runtime.predict(text=TEXT)
        runtime.predict_batch([{"text": TEXT}, {"text": "No."}])
        turn = runtime.begin()
        turn.feed(speech(0.5), 16_000)
        turn.provisional()
        turn.finish()
    assert threading.current_thread() not in backend.threads


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 4),
        ({"a/b/cpu.max": "150000 100000"}, 1),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ({"a/b/cpu.max": "50000 100000"}, 1),
        ({"a/b/cpu.max": "nonsense"}, 4),
        ({"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_cpus_are_those_of_affinity_and_quota(tmp_path, monkeypatch, files, cpus):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert available_cpus(tmp_path, "/a/b") == cpus
