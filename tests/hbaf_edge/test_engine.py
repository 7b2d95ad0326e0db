"""Order, dynamic batching, bounds and failures: what the engine does with turns from many callers."""

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
from tests.backends import failing, watched
from tests.conftest import speech


def hold(backend):
    """Results stay away until the returned event is set; and an event that says that a turn is being computed."""
    gate, begun = threading.Event(), threading.Event()
    backend.before = lambda requests: (begun.set(), gate.wait(30))
    return gate, begun


@pytest.fixture
def runtime(tiny):
    with HBAFRuntime(tiny.bundle, threads=1) as made:
        yield made


@pytest.fixture
def batching(tiny):
    with HBAFRuntime(tiny.bundle, threads=1, max_batch_size=4, max_wait_ms=200) as made:
        yield made


class Slow(io.BytesIO):
    """A file object that gives its sound when it is let go."""

    def __init__(self, path):
        super().__init__(path.read_bytes())
        self.gate, self.is_read = threading.Event(), threading.Event()

    def read(self, size=-1):
        self.is_read.set()
        self.gate.wait(30)
        return super().read(size)


class TestOrder:
    def test_turns_of_a_conversation_are_in_the_order_of_the_calls(self, runtime):
        chat = runtime.conversation()
        futures = [runtime.submit(text=f"Turn {n}.", conversation=chat) for n in range(20)]
        assert [f.result().turn for f in futures] == list(range(20))

    def test_with_asyncio_too_whatever_takes_long_to_decode(self, runtime):
        async def main():
            chat = runtime.conversation()
            sounds = [{"audio": speech(3.0), "sample_rate": 44_100} if n % 2 == 0 else {} for n in range(8)]
            calls = (runtime.apredict(text=f"Turn {n}.", conversation=chat, **s) for n, s in enumerate(sounds))
            return await asyncio.gather(*calls)

        assert [p.turn for p in asyncio.run(main())] == list(range(8))

    def test_a_slow_file_stalls_its_own_conversation_alone(self, runtime, clips):
        chat, slow = runtime.conversation(), Slow(clips[0])
        first = threading.Thread(target=lambda: runtime.predict(slow, conversation=chat, speaker="first"))
        first.start()
        assert slow.is_read.wait(10)
        second = runtime.submit(text="Second.", conversation=chat, speaker="second")
        assert runtime.predict(text="Somebody else.").turn == 0
        assert not second.done()
        slow.gate.set()
        assert second.result(30).turn == 1
        first.join()
        assert [turn.speaker for turn in chat.turns] == ["first", "second"]

    def test_what_fails_or_is_cancelled_lets_the_next_one_go_on(self, runtime):
        chat = runtime.conversation()
        with pytest.raises(InputError):
            runtime.predict(text="", conversation=chat)
        with failing(runtime, ValueError("broken")):
            futures = [runtime.submit(text="No.", conversation=chat) for _ in range(3)]
            assert all(isinstance(f.exception(30), BackendError) for f in futures)
        with watched(runtime) as backend:
            gate, begun = hold(backend)
            first, second = (runtime.submit(text=text, conversation=chat) for text in ("One.", "Two."))
            assert begun.wait(10)
            assert second.cancel()
            third = runtime.submit(text="Three.", conversation=chat)
            gate.set()
            assert (first.result(30).turn, third.result(30).turn) == (0, 1)
        assert chat.turn == 2

    def test_a_cancelled_future_is_told_to_those_who_wait_and_never_takes_back_a_turn(self, runtime, tiny):
        chat = runtime.conversation()
        with watched(runtime) as backend:
            gate, begun = hold(backend)
            first, second = (runtime.submit(text=text, conversation=chat) for text in ("One.", "Two."))
            assert begun.wait(10)
            assert second.cancel()
            assert wait([second], 10).done == {second}
            gate.set()
            assert first.result(30).turn == 0
        with HBAFRuntime(tiny.bundle, threads=1, on_prediction=lambda p: cancelled.append(f.cancel())) as slow:
            cancelled, one = [], slow.conversation()
            with watched(slow) as backend:
                gate, _ = hold(backend)
                f = slow.submit(text="Hm.", conversation=one)
                gate.set()
            assert (f.result(30).turn, one.turn, cancelled) == (0, 1, [False])

    def test_a_batch_waits_for_all_its_conversations_and_none_waits_for_ever(self, runtime):
        a, b = runtime.conversation(), runtime.conversation()
        numbers = []

        def talk(*chats):
            for _ in range(10):
                numbers.extend(
                    p.turn for p in runtime.predict_batch([{"text": "Hm.", "conversation": c} for c in chats])
                )

        threads = [threading.Thread(target=talk, args=chats) for chats in ((a, b), (b, a), (a,), (b,))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert a.turn == b.turn == 30
        assert sorted(numbers) == sorted([*range(30)] * 2)

    def test_ended_with_asyncio_in_the_middle_a_conversation_goes_on(self, runtime):
        chat = runtime.conversation()

        async def main():
            tasks = [asyncio.create_task(runtime.apredict(text=f"{n}", conversation=chat)) for n in range(20)]
            await tasks[0]  # the others are cancelled where they are

        asyncio.run(main())
        count = runtime.predict(text="On.", conversation=chat).turn
        assert chat.turn == count + 1

    def test_asyncio_does_not_wait_for_threads_that_wait_for_it(self, runtime):
        chat = runtime.conversation()

        async def main():
            waiting = [asyncio.to_thread(runtime.predict, text=str(n), conversation=chat) for n in range(30)]
            sound = runtime.apredict(speech(0.3), sample_rate=16_000, conversation=chat)
            return await asyncio.wait_for(asyncio.gather(*waiting, sound), 60)

        assert len(asyncio.run(main())) == chat.turn == 31

    def test_a_live_turn_is_committed_once_whoever_finishes_it(self, runtime):
        for _ in range(10):
            chat, found = runtime.conversation(), []
            turn = runtime.begin(conversation=chat)

            def finish(turn=turn, found=found):
                with contextlib.suppress(InputError):
                    found.append(turn.finish("Done."))

            threads = [threading.Thread(target=finish) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert chat.turn == len(found) == 1

    def test_a_live_turn_refused_in_a_hook_can_be_finished_afterwards(self, tiny):
        said = []

        def hook(prediction):
            for use in (lambda: turn.finish("No."), turn.cancel, turn.provisional, lambda: turn.revise("No.")):
                try:
                    use()
                except HBAFError as error:
                    said.append(str(error))

        with HBAFRuntime(tiny.bundle, threads=1, on_prediction=hook) as runtime:
            turn = runtime.begin()
            runtime.predict(text="Hello.")
            assert sum("would wait for itself" in text for text in said) == 4
            assert turn.finish("Yes.").turn == 0


class TestVersions:
    def test_a_reset_meanwhile_makes_it_the_first_turn(self, runtime):
        chat = runtime.conversation()
        for _ in range(3):
            runtime.predict(text="Before.", conversation=chat)
        with watched(runtime) as backend:
            backend.before = lambda requests: chat.reset() if len(backend.sizes) == 1 else None
            found = runtime.predict(text="After.", conversation=chat)
        assert (found.turn, chat.turn, backend.sizes) == (0, 1, [1, 1])
        np.testing.assert_array_equal(found.embedding, runtime.predict(text="After.").embedding)

    def test_saving_does_not_wait_for_a_turn_nor_a_turn_for_a_disk(self, runtime, tmp_path, monkeypatch):
        chat, gate, writing = runtime.conversation(), threading.Event(), threading.Event()
        runtime.predict(text="One.", conversation=chat)
        monkeypatch.setattr("os.fsync", lambda _: (writing.set(), gate.wait(30)))
        saver = threading.Thread(target=chat.save, args=(tmp_path / "chat",))
        saver.start()
        assert writing.wait(10)
        assert runtime.predict(text="Two.", conversation=chat).turn == 1
        gate.set()
        saver.join()
        assert runtime.load_conversation(tmp_path / "chat").turn == 1

    def test_bytes_are_the_file(self, runtime, tmp_path):
        chat = runtime.conversation()
        runtime.predict(text="One.", speaker="anna", conversation=chat)
        chat.save(tmp_path / "chat")
        assert (tmp_path / "chat").read_bytes() == chat.to_bytes()
        again = runtime.load_conversation(chat.to_bytes())
        assert again.turns == chat.turns

    def test_copies_name_fork_and_save(self, runtime):
        for what, names in ((runtime.conversation(), "fork.*save"), (runtime, "one in each process")):
            for do in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(HBAFError, match=names):
                    do(what)

    def test_closing_finishes_what_was_submitted(self, tiny):
        runtime = HBAFRuntime(tiny.bundle, threads=1)
        chat = runtime.conversation()
        futures = [runtime.submit(text=str(n), conversation=chat) for n in range(250)]
        runtime.close()
        assert [f.result(60).turn for f in futures] == list(range(250))

    @pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_goes_on_with_a_conversation_that_was_busy(self, runtime, tiny):
        def child():
            with HBAFRuntime(tiny.bundle, threads=1) as own:
                turn.cancel()
                os._exit(own.predict(text="Hm.", conversation=chat).turn)

        chat, turn = runtime.conversation(), runtime.begin()
        with watched(runtime) as backend:
            gate, begun = hold(backend)
            future = runtime.submit(text="One.", conversation=chat)
            assert begun.wait(10)
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join(60)
            gate.set()
        assert process.exitcode == 0, "turn 0 of the child's copy"
        assert future.result(30).turn == 0


class TestBatching:
    def test_together_they_are_as_one_by_one(self, batching, tiny):
        def turn(place, n):
            sound = {"audio": speech(0.3, seed=n), "sample_rate": 16_000} if (place + n) % 3 == 0 else {}
            return {"text": f"Conversation {place}, turn {n}.", "speaker": "ab"[n % 2], **sound}

        def run(place):
            chat = batching.conversation()
            found[place] = [batching.predict(**turn(place, n), conversation=chat) for n in range(6)]

        found = {}
        threads = [threading.Thread(target=run, args=(place,)) for place in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with HBAFRuntime(tiny.bundle, threads=1) as alone:
            for place, results in found.items():
                chat = alone.conversation()
                for n, p in enumerate(results):
                    single = alone.predict(**turn(place, n), conversation=chat)
                    np.testing.assert_allclose(p.embedding, single.embedding, atol=1e-5)
                    assert p.turn == single.turn == n

    def test_groups_hold_several_turns_and_never_two_of_a_conversation(self, batching):
        chat = batching.conversation()
        with watched(batching) as backend:
            futures = [batching.submit(text=f"Turn {n}.") for n in range(8)]
            futures += [batching.submit(text=f"Turn {n}.", conversation=chat) for n in range(3)]
            turns = [f.result(30).turn for f in futures]
        assert turns == [0] * 8 + [0, 1, 2]
        assert sum(backend.sizes) == 11
        assert max(backend.sizes) == 4
        assert batching.stats()["turns"] == 11

    def test_one_that_fails_fails_alone(self, batching):
        def no_long_texts(requests):
            if any(len(request.tokens) > 20 for request in requests):
                raise ValueError("too long")

        with watched(batching) as backend:
            backend.before = no_long_texts
            futures = [batching.submit(text=text) for text in ("Hello.", "no " * 30, "Well.")]
            assert futures[0].result(30).turn == futures[2].result(30).turn == 0
            with pytest.raises(BackendError, match="too long"):
                futures[1].result(30)
        assert (batching.stats()["turns"], batching.stats()["failed"]) == (2, 1)

    @pytest.mark.parametrize(
        "bad",
        [{"max_wait_ms": -1}, {"max_wait_ms": "5"}, {"max_batch_size": 0}, {"max_batch_size": 2.5}, {"max_waiting": 0}],
    )
    def test_options_are_checked(self, tiny, bad):
        with pytest.raises(InputError, match="is expected"):
            HBAFRuntime(tiny.bundle, **bad)


class TestFailures:
    @pytest.mark.parametrize("part", ["logits", "embedding", "keys", "context_value"])
    def test_what_is_not_finite_is_not_committed(self, runtime, part):
        def spoil(results):
            (result,) = results
            name, value = (part, getattr(result, part, None)) if part in ("logits", "embedding") else ("state", None)
            broken = value * np.nan if value is not None else result.state._replace(
                **{part: getattr(result.state, part) + np.inf}
            )  # fmt: skip
            return [result._replace(**{name: broken})]

        chat = runtime.conversation()
        runtime.predict(text="Fine.", conversation=chat)
        before = chat.to_bytes()
        with watched(runtime) as backend:
            backend.after = spoil
            with pytest.raises(BackendError, match="not finite; nothing was committed"):
                runtime.predict(text="Hm.", conversation=chat)
        assert chat.to_bytes() == before
        assert runtime.predict(text="Hm.", conversation=chat).turn == 1

    def test_no_more_wait_than_may(self, tiny):
        with HBAFRuntime(tiny.bundle, threads=1, max_waiting=3) as runtime, watched(runtime) as backend:
            gate, begun = hold(backend)
            chat = runtime.conversation()
            first = runtime.submit(text="0", conversation=chat)
            assert begun.wait(10)
            waiting = [runtime.submit(text=str(n), conversation=chat) for n in range(1, 4)]
            with pytest.raises(BackendError, match=r"3 calls wait to be computed.*max_waiting"):
                runtime.predict(text="4", conversation=chat)
            waiting[0].cancel()
            gate.set()
            assert [f.result(30).turn for f in (first, *waiting[1:])] == [0, 1, 2]
            assert runtime.predict(text="5", conversation=chat).turn == 3
            assert runtime.stats()["failed"] == 1

    def test_a_hook_that_leaves_stops_nothing_and_one_that_waits_is_told(self, tiny):
        seen = []

        def leave(prediction):
            try:
                runtime.predict(text="Again.")
            except BackendError as error:
                seen.append(str(error))
            raise SystemExit

        runtime = HBAFRuntime(tiny.bundle, threads=1, on_prediction=leave)
        with watched(runtime) as backend:
            gate, _ = hold(backend)
            futures = [runtime.submit(text=f"Turn {n}.") for n in range(3)]
            futures[0].add_done_callback(leave)  # on a worker: nothing is computed yet
            gate.set()
        assert [f.result(timeout=60).turn for f in futures] == [0, 0, 0]
        assert runtime.predict(text="Still there?").turn == 0
        assert "use submit" in seen[0]

    def test_audio_that_a_worker_cannot_take_in_is_logged_counted_and_raised(self, runtime, caplog, monkeypatch):
        def broken(*_):
            raise MemoryError("no room")

        turn = runtime.begin()
        monkeypatch.setattr("hbaf_edge.mel.MelStream.feed", broken)
        turn.feed(speech(0.5), 16_000)
        until = time.monotonic() + 10
        while not runtime.stats()["failed"] and time.monotonic() < until:
            time.sleep(0.01)
        monkeypatch.undo()
        with pytest.raises(BackendError, match=r"could not be taken in \(MemoryError: no room\)"):
            turn.feed(speech(0.5), 16_000)
        with pytest.raises(InputError, match="lost"):
            turn.finish()
        assert "could not be taken in" in caplog.text
