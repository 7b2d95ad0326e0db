"""Worker threads: tasks in parallel with their callers, in order, and completed when the pool stops."""

import logging
import threading
from functools import partial

import pytest

from hbaf_edge import HBAFRuntime
from hbaf_edge.machine import available_cpus
from hbaf_edge.task_pool import TaskPool
from hbaf_edge.workers import Outcome, Workers
from tests.backends import spy_on_backend
from tests.conftest import speech

TEXT = "Well, I never thought that you would do that."


@pytest.fixture
def runtimes(tiny):
    """The same model with one thread and with three."""
    return HBAFRuntime(tiny.bundle, threads=1), HBAFRuntime(tiny.bundle, threads=3)


def predict_audio_and_text(runtime, chat=None, seconds=1.0, text=TEXT):
    return runtime.predict(speech(seconds), sample_rate=16_000, text=text, speaker="a", conversation=chat)


def assert_close(one, other):
    for label, p in one.probabilities.items():
        assert other.probabilities[label] == pytest.approx(p, abs=1e-5)


def test_text_is_encoded_in_parallel_with_audio(runtimes):
    single, parallel = runtimes
    barrier, thread_names = threading.Barrier(2, timeout=20), {}

    def wait_for_other(graph, inputs, outputs):
        thread_names[graph] = threading.current_thread().name
        if graph in ("audio", "text"):
            barrier.wait()  # passes only if the other encoder runs at the same time

    with parallel.tap(wait_for_other):
        p = predict_audio_and_text(parallel)
    assert_close(p, predict_audio_and_text(single))
    assert thread_names["audio"].startswith("hbaf_edge_")
    assert thread_names["text"].startswith("hbaf_edge_task")


def test_a_batch_is_split_over_the_threads_and_returned_in_order(runtimes):
    single, parallel = runtimes
    audio = [{"audio": speech(1.0, seed=n), "sample_rate": 16_000} if n % 2 else {} for n in range(7)]
    turns = [{"text": f"{TEXT} " * (1 + n % 3), **a} for n, a in enumerate(audio)]
    sizes = {}
    with parallel.tap(lambda graph, inputs, _: sizes.setdefault(graph, []).append(len(next(iter(inputs.values()))))):
        predictions = parallel.predict_batch(turns)
    for one, other in zip(single.predict_batch(turns), predictions, strict=True):
        assert_close(one, other)
    assert sorted(sizes["text"]) == sorted(sizes["utterance"]) == [2, 2, 3]


@pytest.mark.parametrize("failing", ["audio", "text"])
def test_an_error_on_either_thread_is_raised_and_the_next_turn_works(runtimes, failing):
    single, parallel = runtimes
    chat = parallel.conversation()

    def fail(graph, inputs, outputs):
        if graph == failing:
            raise MemoryError(failing)

    with parallel.tap(fail), pytest.raises(MemoryError, match=failing):
        predict_audio_and_text(parallel, chat)
    assert chat.turn == 0
    assert_close(predict_audio_and_text(parallel, chat), predict_audio_and_text(single))


def test_many_callers_get_the_results_of_separate_calls(runtimes):
    single, parallel = runtimes
    turns = [(0.5 + 0.1 * n, f"{TEXT} " * (1 + n % 4)) for n in range(8)]
    expected = [predict_audio_and_text(single, None, *turn) for turn in turns]
    errors = []

    def call(shift):
        for n in range(6):
            k = (shift + n) % len(turns)
            try:
                assert_close(expected[k], predict_audio_and_text(parallel, None, *turns[k]))
            except BaseException as error:
                errors.append(error)

    callers = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not errors


def test_the_caller_runs_the_task_when_no_worker_is_free():
    pool, release = TaskPool(1), threading.Event()
    first = pool.start(release.wait)
    second = pool.start(threading.current_thread)
    assert second() is threading.current_thread()
    release.set()
    assert first()


def test_tasks_run_once_and_a_warning_is_logged_when_no_thread_can_be_started(monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    done = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with caplog.at_level(logging.WARNING, "hbaf_edge"):
        pool = TaskPool(2)
    for wait in [pool.start(partial(done.append, n)) for n in range(4)]:
        wait()
    assert sorted(done) == [0, 1, 2, 3]
    assert "only 0 of 2 threads could be started (can't start new thread)" in caplog.text


def test_an_error_of_a_task_is_logged_and_the_thread_goes_on(caplog):
    workers, outcome = Workers(1, "example"), Outcome()
    with caplog.at_level(logging.ERROR, "hbaf_edge"):
        workers.submit(lambda: 1 / 0)
        workers.submit(lambda: outcome.set("on"))
        assert outcome.wait() == "on"
    assert "ZeroDivisionError" in caplog.text


def test_stopped_workers_complete_submitted_tasks_and_the_tasks_those_submit():
    workers, done = Workers(2, "example"), []
    for n in range(20):
        workers.submit(partial(done.append, n))
    workers.submit(lambda: [workers.submit(partial(done.append, 20 + n)) for n in range(500)])
    workers.stop()
    workers.join(30)
    assert sorted(done) == list(range(520))
    workers.submit(partial(done.append, "late"))
    assert done[-1] == "late", "run by the caller"


def test_no_more_turns_are_computed_at_once_than_there_are_cpus(tiny, monkeypatch):
    monkeypatch.setattr("hbaf_edge.engine.available_cpus", lambda: 2)
    runtime, running, counts = HBAFRuntime(tiny.bundle, threads=1), [], []

    def count(graph, inputs, outputs):
        if graph == "text":
            running.append(None)
        elif graph == "dialogue":
            counts.append(len(running))
            running.pop()

    with runtime.tap(count):
        callers = [threading.Thread(target=lambda: runtime.predict(text=TEXT)) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(counts) == 8
    assert max(counts) <= 2


def test_nothing_is_computed_on_the_callers_thread(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    with spy_on_backend(runtime) as backend:
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
def test_available_cpus_are_limited_by_affinity_and_quota(tmp_path, monkeypatch, files, cpus):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert available_cpus(tmp_path, "/a/b") == cpus
