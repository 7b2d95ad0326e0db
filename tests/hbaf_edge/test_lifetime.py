"""The lifetime of a runtime: warm-up, statistics, hooks, logs, closing, and forks."""

import logging
import multiprocessing

import pytest

from hbaf_edge import BackendError, HBAFRuntime, InputError
from tests.conftest import speech

SECRET = "My password is swordfish"


@pytest.fixture
def runtime(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as runtime:
        yield runtime


def test_a_closed_runtime_raises_an_error(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as runtime:
        chat = runtime.conversation()
        runtime.predict(text="Hello.", conversation=chat)
    for use in (lambda: runtime.predict(text="Hello.", conversation=chat), runtime.warmup):
        with pytest.raises(BackendError, match="closed; make a new"):
            use()
    assert chat.turn == 1
    assert "closed" in repr(runtime)
    runtime.close()


def test_stats_count_turns_and_failures_but_not_the_warm_up(runtime):
    runtime.warmup()
    assert runtime.stats()["turns"] == 0, "the warm-up is not counted"
    for n in range(3):
        runtime.predict(text=f"Turn {n}.")
    with pytest.raises(InputError):
        runtime.predict()
    stats = runtime.stats()
    assert (stats["turns"], stats["failed"]) == (3, 1)
    assert stats["stages"]["total"]["p50"] >= stats["stages"]["text"]["p50"] > 0
    assert stats["resident_mb"] > 10


def test_a_hook_gets_every_prediction_and_its_errors_are_logged(tiny, caplog):
    calls = []

    def hook(prediction):
        calls.append((prediction.turn, chat.turn))
        raise KeyError("error of the hook")

    runtime = HBAFRuntime(tiny.bundle, threads=1, on_prediction=hook)
    chat = runtime.conversation()
    with caplog.at_level(logging.ERROR, "hbaf_edge"):
        predictions = [runtime.predict(text="Hello.", conversation=chat) for _ in range(2)]
    assert calls == [(0, 1), (1, 2)], "called after the turn is committed"
    assert [p.turn for p in predictions] == [0, 1]
    assert caplog.text.count("on_prediction raised") == 2
    with pytest.raises(InputError, match="callable"):
        HBAFRuntime(tiny.bundle, on_prediction="print")


def test_logs_contain_turns_but_no_text_and_no_speaker(runtime, caplog):
    with caplog.at_level(logging.DEBUG, "hbaf_edge"):
        runtime.predict(text=SECRET, speaker="anna")
    assert "turn 0: text" in caplog.text
    assert "swordfish" not in caplog.text
    assert "anna" not in caplog.text


def test_nothing_is_printed_without_a_log_handler(runtime, capsys):
    runtime.predict(text=SECRET)
    assert capsys.readouterr() == ("", "")


def _predict_in_child(runtime, queue):
    try:
        queue.put(runtime.predict(text="Hello.").label)
    except BackendError as error:
        queue.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_an_error_and_the_parent_goes_on(runtime):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_predict_in_child, args=(runtime, queue))
    child.start()
    assert "did not survive the fork" in queue.get(timeout=60)
    child.join()
    assert runtime.predict(text="Hello.").turn == 0, "the parent goes on"


def _close_in_child(runtime, queue):
    runtime.close()
    queue.put("closed")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_closing_in_a_forked_child_does_not_hang(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=2)
    runtime.begin().feed(speech(0.1), 16_000)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_close_in_child, args=(runtime, queue))
    child.start()
    assert queue.get(timeout=60) == "closed"
    child.join(timeout=60)
    assert child.exitcode == 0


def test_a_log_filter_that_raises_does_not_fail_a_turn(tiny):
    def fail(record):
        raise OSError("the log's disk is full")

    log = logging.getLogger("hbaf_edge")
    runtime, level = HBAFRuntime(tiny.bundle, threads=1), log.level
    log.addFilter(fail)
    log.setLevel(logging.DEBUG)
    try:
        with pytest.raises(OSError, match="disk is full"):
            log.debug("the filter works")
        assert runtime.predict(text="Hello.").turn == 0
    finally:
        log.removeFilter(fail)
        log.setLevel(level)
