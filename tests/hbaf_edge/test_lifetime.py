"""A runtime's life: warm-up, counts, hooks, logs, closing, and what a fork does to it."""

import logging
import multiprocessing

import pytest

from hbaf_edge import BackendError, HBAFRuntime, InputError
from tests.conftest import speech

SECRET = "My password is swordfish"


@pytest.fixture
def runtime(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as made:
        yield made


def test_a_closed_runtime_says_so(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as runtime:
        chat = runtime.conversation()
        runtime.predict(text="Hello.", conversation=chat)
    for use in (lambda: runtime.predict(text="Hello.", conversation=chat), runtime.warmup):
        with pytest.raises(BackendError, match="closed; make a new"):
            use()
    assert chat.turn == 1
    assert "closed" in repr(runtime)
    runtime.close()


def test_counts_and_times(runtime):
    runtime.warmup()
    assert runtime.stats()["turns"] == 0, "warming up is nobody's turn"
    for n in range(3):
        runtime.predict(text=f"Turn {n}.")
    with pytest.raises(InputError):
        runtime.predict()
    found = runtime.stats()
    assert (found["turns"], found["failed"]) == (3, 1)
    assert found["stages"]["total"]["p50"] >= found["stages"]["text"]["p50"] > 0
    assert found["resident_mb"] > 10


def test_a_hook_sees_every_prediction_and_cannot_break_one(tiny, caplog):
    seen = []

    def hook(prediction):
        seen.append((prediction.turn, chat.turn))
        raise KeyError("not ours")

    runtime = HBAFRuntime(tiny.bundle, threads=1, on_prediction=hook)
    chat = runtime.conversation()
    with caplog.at_level(logging.ERROR, "hbaf_edge"):
        found = [runtime.predict(text="Hello.", conversation=chat) for _ in range(2)]
    assert seen == [(0, 1), (1, 2)], "after the turn is committed"
    assert [p.turn for p in found] == [0, 1]
    assert caplog.text.count("on_prediction raised") == 2
    with pytest.raises(InputError, match="callable"):
        HBAFRuntime(tiny.bundle, on_prediction="print")


def test_logs_tell_of_turns_and_never_what_was_said(runtime, caplog):
    with caplog.at_level(logging.DEBUG, "hbaf_edge"):
        runtime.predict(text=SECRET, speaker="anna")
    assert "turn 0: text" in caplog.text
    assert "swordfish" not in caplog.text
    assert "anna" not in caplog.text


def test_without_a_handler_nothing_is_printed(runtime, capsys):
    runtime.predict(text=SECRET)
    assert capsys.readouterr() == ("", "")


def _predict_in_child(runtime, answers):
    try:
        answers.put(runtime.predict(text="Hello.").label)
    except BackendError as error:
        answers.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_the_child_is_told_to_make_its_own(runtime):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_predict_in_child, args=(runtime, answers))
    child.start()
    assert "did not survive the fork" in answers.get(timeout=60)
    child.join()
    assert runtime.predict(text="Hello.").turn == 0, "the parent goes on"


def _close_in_child(runtime, answers):
    runtime.close()
    answers.put("closed")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_closing_in_a_forked_child_does_not_hang(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=2)
    runtime.begin().feed(speech(0.1), 16_000)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_close_in_child, args=(runtime, answers))
    child.start()
    assert answers.get(timeout=60) == "closed"
    child.join(timeout=60)
    assert child.exitcode == 0


def test_a_hook_or_filter_that_raises_does_not_fail_a_turn(tiny):
    def no(record):
        raise OSError("the log's disk is full")

    log = logging.getLogger("hbaf_edge")
    runtime, level = HBAFRuntime(tiny.bundle, threads=1), log.level
    log.addFilter(no)
    log.setLevel(logging.DEBUG)
    try:
        with pytest.raises(OSError, match="disk is full"):
            log.debug("the filter works")
        assert runtime.predict(text="Hello.").turn == 0
    finally:
        log.removeFilter(no)
        log.setLevel(level)
