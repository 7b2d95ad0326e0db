"""The engine with several callers: order, versions, dynamic batching, limits and failures."""

import asyncio
import contextlib
import copy
import io
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

from hbaf_edge import BackendError, HBAFError, HBAFRuntime, InputError
from tests.backends import failing_backend, spy_on_backend
from tests.conftest import speech


def block_backend(backend):
    """Block the back end until the first returned event is set; the second one is set when a computation starts."""
    release, started = threading.Event(), threading.Event()
    backend.before = lambda requests: (started.set(), release.wait(30))
    return release, started


@pytest.fixture
def runtime(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as runtime:
        yield runtime


@pytest.fixture
def batching_runtime(tiny):
    with HBAFRuntime(tiny.bundle, threads=1, max_batch_size=4, max_wait_ms=200) as runtime:
        yield runtime


class SlowFile(io.BytesIO):
    """A file whose `read` blocks until `release` is set."""

    def __init__(self, path):
        super().__init__(path.read_bytes())
        self.release, self.is_read = threading.Event(), threading.Event()

    def read(self, size=-1):
        self.is_read.set()
        self.release.wait(30)
        return super().read(size)


class TestOrder:
    def test_turns_of_a_conversation_are_committed_in_the_order_of_the_calls(self, runtime):
        chat = runtime.conversation()
        futures = [runtime.submit(text=f"Turn {n}.", conversation=chat) for n in range(20)]
        assert [f.result().turn for f in futures] == list(range(20))

    def test_asyncio_turns_keep_their_order_when_some_take_longer_to_decode(self, runtime):
        async def main():
            chat = runtime.conversation()
            audio = [{"audio": speech(3.0), "sample_rate": 44_100} if n % 2 == 0 else {} for n in range(8)]
            calls = (runtime.apredict(text=f"Turn {n}.", conversation=chat, **a) for n, a in enumerate(audio))
            return await asyncio.gather(*calls)

        assert [p.turn for p in asyncio.run(main())] == list(range(8))

    def test_a_slow_file_blocks_only_its_own_conversation(self, runtime, clips):
        chat, slow = runtime.conversation(), SlowFile(clips[0])
        first = threading.Thread(target=lambda: runtime.predict(slow, conversation=chat, speaker="first"))
        first.start()
        assert slow.is_read.wait(10)
        second = runtime.submit(text="Second.", conversation=chat, speaker="second")
        assert runtime.predict(text="Another conversation.").turn == 0
        assert not second.done()
        slow.release.set()
        assert second.result(30).turn == 1
        first.join()
        assert [turn.speaker for turn in chat.turns] == ["first", "second"]

    def test_the_next_turn_is_computed_after_one_that_fails_or_is_cancelled(self, runtime):
        chat = runtime.conversation()
        with pytest.raises(InputError):
            runtime.predict(text="", conversation=chat)
        with failing_backend(runtime, ValueError("broken")):
            futures = [runtime.submit(text="No.", conversation=chat) for _ in range(3)]
            assert all(isinstance(f.exception(30), BackendError) for f in futures)
        with spy_on_backend(runtime) as backend:
            release, started = block_backend(backend)
            first, second = (runtime.submit(text=text, conversation=chat) for text in ("One.", "Two."))
            assert started.wait(10)
            assert second.cancel()
            third = runtime.submit(text="Three.", conversation=chat)
            release.set()
            assert (first.result(30).turn, third.result(30).turn) == (0, 1)
        assert chat.turn == 2

    def test_cancelling_right_before_the_commit_logs_no_error(self, runtime, caplog):
        pending = runtime._pending_turn({"text": "Hello."})  # the moment cannot be hit through the public interface
        assert pending.future.cancel()
        assert not pending._claim_future(), "the engine asks this right before a commit"
        pending._call.outcome.fail(BackendError("cancelled"))
        pending._resolve(pending._call)
        assert pending.future.cancelled()
        assert not caplog.records

    def test_cancelling_a_future_wakes_its_waiters_and_never_removes_a_committed_turn(self, runtime, tiny):
        chat = runtime.conversation()
        with spy_on_backend(runtime) as backend:
            release, started = block_backend(backend)
            first, second = (runtime.submit(text=text, conversation=chat) for text in ("One.", "Two."))
            assert started.wait(10)
            assert second.cancel()
            assert wait([second], 10).done == {second}
            release.set()
            assert first.result(30).turn == 0
        with HBAFRuntime(tiny.bundle, threads=1, on_prediction=lambda p: cancelled.append(f.cancel())) as other:
            cancelled, chat = [], other.conversation()
            with spy_on_backend(other) as backend:
                release, _ = block_backend(backend)
                f = other.submit(text="Hm.", conversation=chat)
                release.set()
            assert (f.result(30).turn, chat.turn, cancelled) == (0, 1, [False])

    def test_batches_with_shared_conversations_do_not_deadlock(self, runtime):
        a, b = runtime.conversation(), runtime.conversation()
        numbers = []

        def predict_batches(*chats):
            for _ in range(10):
                numbers.extend(
                    p.turn for p in runtime.predict_batch([{"text": "Hm.", "conversation": c} for c in chats])
                )

        threads = [threading.Thread(target=predict_batches, args=chats) for chats in ((a, b), (b, a), (a,), (b,))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert a.turn == b.turn == 30
        assert sorted(numbers) == sorted([*range(30)] * 2)

    def test_a_conversation_goes_on_when_its_event_loop_has_ended(self, runtime):
        chat = runtime.conversation()

        async def main():
            tasks = [asyncio.create_task(runtime.apredict(text=f"{n}", conversation=chat)) for n in range(20)]
            await tasks[0]  # `asyncio.run` cancels the others

        asyncio.run(main())
        count = runtime.predict(text="On.", conversation=chat).turn
        assert chat.turn == count + 1

    def test_asyncio_does_not_deadlock_with_threads_that_wait_for_it(self, runtime):
        chat = runtime.conversation()

        async def main():
            waiting = [asyncio.to_thread(runtime.predict, text=str(n), conversation=chat) for n in range(30)]
            audio_turn = runtime.apredict(speech(0.3), sample_rate=16_000, conversation=chat)
            return await asyncio.wait_for(asyncio.gather(*waiting, audio_turn), 60)

        assert len(asyncio.run(main())) == chat.turn == 31

    def test_a_live_turn_is_committed_once_when_several_threads_finish_it(self, runtime):
        for _ in range(10):
            chat, predictions = runtime.conversation(), []
            turn = runtime.begin(conversation=chat)

            def finish(turn=turn, predictions=predictions):
                with contextlib.suppress(InputError):
                    predictions.append(turn.finish("Done."))

            threads = [threading.Thread(target=finish) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert chat.turn == len(predictions) == 1

    def test_a_live_turn_can_be_finished_after_a_hook_was_refused_to_use_it(self, tiny):
        messages = []

        def hook(prediction):
            for use in (lambda: turn.finish("No."), turn.cancel, turn.provisional, lambda: turn.revise("No.")):
                try:
                    use()
                except HBAFError as error:
                    messages.append(str(error))

        with HBAFRuntime(tiny.bundle, threads=1, on_prediction=hook) as runtime:
            turn = runtime.begin()
            runtime.predict(text="Hello.")
            assert sum("would wait for itself" in message for message in messages) == 4
            assert turn.finish("Yes.").turn == 0


class TestVersions:
    def test_a_turn_becomes_the_first_when_the_conversation_is_reset_meanwhile(self, runtime):
        chat = runtime.conversation()
        for _ in range(3):
            runtime.predict(text="Before.", conversation=chat)
        with spy_on_backend(runtime) as backend:
            backend.before = lambda requests: chat.reset() if len(backend.batch_sizes) == 1 else None
            p = runtime.predict(text="After.", conversation=chat)
        assert (p.turn, chat.turn, backend.batch_sizes) == (0, 1, [1, 1])
        np.testing.assert_array_equal(p.embedding, runtime.predict(text="After.").embedding)

    def test_a_turn_is_predicted_while_the_conversation_is_being_saved(self, runtime, tmp_path, monkeypatch):
        chat, release, is_writing = runtime.conversation(), threading.Event(), threading.Event()
        runtime.predict(text="One.", conversation=chat)
        monkeypatch.setattr("os.fsync", lambda _: (is_writing.set(), release.wait(30)))
        saver = threading.Thread(target=chat.save, args=(tmp_path / "chat",))
        saver.start()
        assert is_writing.wait(10)
        assert runtime.predict(text="Two.", conversation=chat).turn == 1
        release.set()
        saver.join()
        assert runtime.load_conversation(tmp_path / "chat").turn == 1

    def test_to_bytes_returns_the_content_of_the_saved_file(self, runtime, tmp_path):
        chat = runtime.conversation()
        runtime.predict(text="One.", speaker="anna", conversation=chat)
        chat.save(tmp_path / "chat")
        assert (tmp_path / "chat").read_bytes() == chat.to_bytes()
        restored = runtime.load_conversation(chat.to_bytes())
        assert restored.turns == chat.turns

    def test_copying_or_pickling_raises_an_error_that_names_the_alternative(self, runtime):
        for item, message in ((runtime.conversation(), "fork.*save"), (runtime, "one in each process")):
            for function in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(HBAFError, match=message):
                    function(item)

    def test_submitted_turns_are_completed_when_the_runtime_is_closed(self, tiny):
        runtime = HBAFRuntime(tiny.bundle, threads=1)
        chat = runtime.conversation()
        futures = [runtime.submit(text=str(n), conversation=chat) for n in range(250)]
        runtime.close()
        assert [f.result(60).turn for f in futures] == list(range(250))

    @pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_can_use_a_conversation_that_was_busy_in_the_parent(self, runtime, tiny):
        def child():
            with HBAFRuntime(tiny.bundle, threads=1) as child_runtime:
                turn.cancel()
                os._exit(child_runtime.predict(text="Hm.", conversation=chat).turn)

        chat, turn = runtime.conversation(), runtime.begin()
        with spy_on_backend(runtime) as backend:
            release, started = block_backend(backend)
            future = runtime.submit(text="One.", conversation=chat)
            assert started.wait(10)
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join(60)
            release.set()
        assert process.exitcode == 0, "turn 0 of the child's copy"
        assert future.result(30).turn == 0


class TestBatching:
    def test_batched_turns_equal_turns_computed_one_by_one(self, batching_runtime, tiny):
        def turn(index, n):
            audio = {"audio": speech(0.3, seed=n), "sample_rate": 16_000} if (index + n) % 3 == 0 else {}
            return {"text": f"Conversation {index}, turn {n}.", "speaker": "ab"[n % 2], **audio}

        def run(index):
            chat = batching_runtime.conversation()
            batched[index] = [batching_runtime.predict(**turn(index, n), conversation=chat) for n in range(6)]

        batched = {}
        threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with HBAFRuntime(tiny.bundle, threads=1) as runtime:
            for index, predictions in batched.items():
                chat = runtime.conversation()
                for n, p in enumerate(predictions):
                    single = runtime.predict(**turn(index, n), conversation=chat)
                    np.testing.assert_allclose(p.embedding, single.embedding, atol=1e-5)
                    assert p.turn == single.turn == n

    def test_batches_contain_several_turns_but_only_one_of_a_conversation(self, batching_runtime):
        chat = batching_runtime.conversation()
        with spy_on_backend(batching_runtime) as backend:
            futures = [batching_runtime.submit(text=f"Turn {n}.") for n in range(8)]
            futures += [batching_runtime.submit(text=f"Turn {n}.", conversation=chat) for n in range(3)]
            turns = [f.result(30).turn for f in futures]
        assert turns == [0] * 8 + [0, 1, 2]
        assert sum(backend.batch_sizes) == 11
        assert max(backend.batch_sizes) == 4
        assert batching_runtime.stats()["turns"] == 11

    def test_only_the_bad_turn_of_a_batch_fails(self, batching_runtime):
        def refuse_long_texts(requests):
            if any(len(request.tokens) > 20 for request in requests):
                raise ValueError("too long")

        with spy_on_backend(batching_runtime) as backend:
            backend.before = refuse_long_texts
            futures = [batching_runtime.submit(text=text) for text in ("Hello.", "no " * 30, "Well.")]
            assert futures[0].result(30).turn == futures[2].result(30).turn == 0
            with pytest.raises(BackendError, match="too long"):
                futures[1].result(30)
        assert (batching_runtime.stats()["turns"], batching_runtime.stats()["failed"]) == (2, 1)

    @pytest.mark.parametrize(
        "bad",
        [{"max_wait_ms": -1}, {"max_wait_ms": "5"}, {"max_batch_size": 0}, {"max_batch_size": 2.5}, {"max_waiting": 0}],
    )
    def test_invalid_options_raise_an_input_error(self, tiny, bad):
        with pytest.raises(InputError, match="is expected"):
            HBAFRuntime(tiny.bundle, **bad)


class TestFailures:
    @pytest.mark.parametrize("part", ["logits", "embedding", "keys", "context_value"])
    def test_a_turn_is_not_committed_when_its_result_is_not_finite(self, runtime, part):
        def spoil(results):
            (result,) = results
            if part in ("logits", "embedding"):
                return [result._replace(**{part: getattr(result, part) * np.nan})]
            state = result.state._replace(**{part: getattr(result.state, part) + np.inf})
            return [result._replace(state=state)]

        chat = runtime.conversation()
        runtime.predict(text="Fine.", conversation=chat)
        before = chat.to_bytes()
        with spy_on_backend(runtime) as backend:
            backend.after = spoil
            with pytest.raises(BackendError, match="not all values are finite; nothing was committed"):
                runtime.predict(text="Hm.", conversation=chat)
        assert chat.to_bytes() == before
        assert runtime.predict(text="Hm.", conversation=chat).turn == 1

    def test_a_call_is_refused_when_max_waiting_calls_wait(self, tiny):
        with HBAFRuntime(tiny.bundle, threads=1, max_waiting=3) as runtime, spy_on_backend(runtime) as backend:
            release, started = block_backend(backend)
            chat = runtime.conversation()
            first = runtime.submit(text="0", conversation=chat)
            assert started.wait(10)
            waiting = [runtime.submit(text=str(n), conversation=chat) for n in range(1, 4)]
            with pytest.raises(BackendError, match=r"3 calls wait to be computed.*max_waiting"):
                runtime.predict(text="4", conversation=chat)
            waiting[0].cancel()
            release.set()
            assert [f.result(30).turn for f in (first, *waiting[1:])] == [0, 1, 2]
            assert runtime.predict(text="5", conversation=chat).turn == 3
            assert runtime.stats()["failed"] == 1

    def test_a_hook_may_raise_system_exit_but_must_not_wait_for_a_turn(self, tiny):
        messages = []

        def predict_and_exit(prediction):
            try:
                runtime.predict(text="Again.")
            except BackendError as error:
                messages.append(str(error))
            raise SystemExit

        runtime = HBAFRuntime(tiny.bundle, threads=1, on_prediction=predict_and_exit)
        with spy_on_backend(runtime) as backend:
            release, _ = block_backend(backend)
            futures = [runtime.submit(text=f"Turn {n}.") for n in range(3)]
            futures[0].add_done_callback(predict_and_exit)  # runs on a worker, because nothing is computed yet
            release.set()
        assert [f.result(timeout=60).turn for f in futures] == [0, 0, 0]
        assert runtime.predict(text="Still there?").turn == 0
        assert "use submit" in messages[0]

    def test_an_error_while_processing_live_audio_is_logged_counted_and_raised(self, runtime, caplog, monkeypatch):
        def broken(*_):
            raise MemoryError("no room")

        turn = runtime.begin()
        monkeypatch.setattr("hbaf_edge.mel.MelStream.feed", broken)
        turn.feed(speech(0.5), 16_000)
        deadline = time.monotonic() + 10
        while not runtime.stats()["failed"] and time.monotonic() < deadline:
            time.sleep(0.01)
        monkeypatch.undo()
        with pytest.raises(BackendError, match=r"could not be processed \(MemoryError: no room\)"):
            turn.feed(speech(0.5), 16_000)
        with pytest.raises(InputError, match="lost"):
            turn.finish()
        assert "could not be processed" in caplog.text
