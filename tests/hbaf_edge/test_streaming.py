"""Live turns: equal to `predict` on the recording, provisional estimates, revisions, and errors that lose no audio."""

import threading

import numpy as np
import pytest

from hbaf_edge import BackendError, HBAFRuntime, InputError
from tests.backends import failing_backend
from tests.conftest import speech

TEXT = "And how do you feel about that?"


@pytest.fixture
def chat(tiny_runtime):
    chat = tiny_runtime.conversation()
    for speaker, text in (("anna", "Hello."), ("robot", "What happened?")):
        tiny_runtime.predict(text=text, speaker=speaker, conversation=chat)
    return chat


def begin_and_feed(runtime, chat, audio, rate=16_000, chunk=0.02):
    turn = runtime.begin(speaker="anna", conversation=chat)
    for part in np.split(audio, range(int(chunk * rate), len(audio), int(chunk * rate))):
        turn.feed(part, rate)
    return turn


def assert_same(a, b, tolerance=0.0):
    np.testing.assert_allclose(a.embedding, b.embedding, atol=tolerance, rtol=0)
    np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=tolerance, rtol=0)
    for name in ("label", "turn", "speaker", "modalities", "warnings"):
        assert getattr(a, name) == getattr(b, name), name


def arrays(chat):
    return [*chat.memory.rings, chat.memory.present]


def assert_same_arrays(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("seconds", [0.1, 1.3, 23.7])
def test_audio_fed_at_16_khz_gives_the_prediction_of_the_recording_bit_for_bit(tiny_runtime, chat, seconds):
    audio, other = speech(seconds), chat.fork()
    streamed = begin_and_feed(tiny_runtime, chat, audio).finish(TEXT)
    offline = tiny_runtime.predict(audio, sample_rate=16_000, text=TEXT, speaker="anna", conversation=other)
    assert_same(streamed, offline)
    assert_same_arrays(arrays(chat), arrays(other))


@pytest.mark.parametrize(("rate", "kind"), [(48_000, np.int16), (44_100, np.float32), (8_000, np.float64)])
def test_audio_fed_at_any_rate_gives_the_prediction_of_the_recording(tiny_runtime, chat, rate, kind):
    audio = np.stack([speech(2.5, rate), 0.5 * speech(2.5, rate, seed=1)], 1)
    audio = (audio * 32767).astype(kind) if kind == np.int16 else audio.astype(kind)
    other = chat.fork()
    streamed = begin_and_feed(tiny_runtime, chat, audio, rate).finish(TEXT)
    offline = tiny_runtime.predict(audio, sample_rate=rate, text=TEXT, speaker="anna", conversation=other)
    assert_same(streamed, offline, 1e-5)


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_a_tenth_of_a_second_is_enough_at_any_rate(tiny_runtime, chat, rate):
    audio, other = speech(0.1, rate), chat.fork()
    streamed = begin_and_feed(tiny_runtime, chat, audio, rate).finish()
    assert_same(streamed, tiny_runtime.predict(audio, sample_rate=rate, speaker="anna", conversation=other), 1e-5)


def test_provisional_commits_nothing_and_uses_the_audio_fed_so_far(tiny_runtime, chat):
    audio, before = speech(2.0), [x.copy() for x in arrays(chat)]
    turn = begin_and_feed(tiny_runtime, chat, audio[:16_000])
    offline = tiny_runtime.predict(audio[:16_000], sample_rate=16_000, speaker="anna", conversation=chat.fork())
    assert_same(turn.provisional(), offline)
    assert chat.turn == 2
    assert_same_arrays(arrays(chat), before)
    turn.feed(audio[16_000:], 16_000)
    other = chat.fork()
    offline = tiny_runtime.predict(audio, sample_rate=16_000, speaker="anna", conversation=other)
    assert_same(turn.finish(), offline)
    assert turn.seconds == 2.0


def test_revise_with_a_late_text_equals_finish_with_the_text(tiny_runtime, chat):
    audio, other = speech(1.5), chat.fork()
    turn = begin_and_feed(tiny_runtime, chat, audio)
    assert turn.finish().modalities == ("audio",)
    assert turn.revise("A wrong transcript.").modalities == ("audio", "text")
    revised = turn.revise(TEXT)
    offline = tiny_runtime.predict(audio, sample_rate=16_000, text=TEXT, speaker="anna", conversation=other)
    assert_same(revised, offline)
    assert chat.turn == 3
    assert chat.turns[-1].label == revised.label
    for conversation in (chat, other):
        tiny_runtime.observe(text="I see.", conversation=conversation)
    assert_same_arrays(arrays(chat), arrays(other))


def test_revise_gives_the_same_result_when_the_window_is_full(tiny_runtime, chat):
    for n in range(7):
        tiny_runtime.predict(text=f"Turn {n}.", speaker="bob", conversation=chat)
    other, audio = chat.fork(), speech(0.7)
    turn = begin_and_feed(tiny_runtime, chat, audio)
    turn.finish()
    offline = tiny_runtime.predict(audio, sample_rate=16_000, text=TEXT, speaker="anna", conversation=other)
    assert_same(turn.revise(TEXT), offline)


def test_revise_raises_when_a_later_turn_was_committed(tiny_runtime, chat):
    turn = begin_and_feed(tiny_runtime, chat, speech(0.5))
    with pytest.raises(InputError, match="not finished"):
        turn.revise(TEXT)
    turn.finish()
    tiny_runtime.observe(text="I see.", conversation=chat)
    with pytest.raises(InputError, match="gone on or was reset"):
        turn.revise(TEXT)
    chat.reset()
    for n in range(3):
        tiny_runtime.predict(text=f"Turn {n}.", conversation=chat)
    with pytest.raises(InputError, match="gone on or was reset"):
        turn.revise(TEXT)  # the last turn has the same number, but it is another turn
    assert chat.turn == 3


def test_other_turns_may_be_committed_during_a_live_turn(tiny_runtime, chat):
    turn = begin_and_feed(tiny_runtime, chat, speech(0.5))
    tiny_runtime.observe(text="Go on.", conversation=chat)
    assert turn.finish().turn == 3
    assert [t.speaker for t in chat.turns] == ["anna", "robot", "robot", "anna"]


def test_an_invalid_chunk_raises_and_the_audio_fed_before_stays(tiny_runtime, chat):
    audio, other = speech(1.0), chat.fork()
    turn = tiny_runtime.begin(speaker="anna", conversation=chat)
    turn.feed(audio[:8_000], 16_000)
    for chunk, rate, message in (
        (np.full(160, np.nan, np.float32), 16_000, "NaN"),
        (np.full(160, 3000.0), 16_000, "-1..1"),
        (audio[:160], 48_000, "keep to one rate"),
        (audio[:160], 4_000, "8,000 to 192,000"),
        (b"\0" * 320, 16_000, "chunk of type bytes"),
        (audio[:160], None, "sample_rate is required"),
    ):
        with pytest.raises(InputError, match=message):
            turn.feed(chunk, rate)
    turn.feed(np.zeros(0, np.float32), 16_000)
    turn.feed(audio[8_000:], 16_000)
    offline = tiny_runtime.predict(audio, sample_rate=16_000, speaker="anna", conversation=other)
    assert_same(turn.finish(), offline)
    for use in (lambda: turn.feed(audio, 16_000), turn.finish, turn.provisional):
        with pytest.raises(InputError, match="is finished"):
            use()


def test_a_silent_turn_can_go_on_after_finish_has_raised(tiny_runtime, chat):
    for rate in (16_000, 48_000):
        turn, more = begin_and_feed(tiny_runtime, chat, np.zeros(rate, np.float32), rate), speech(0.5, rate)
        for use in (turn.provisional, turn.finish, lambda turn=turn: turn.finish(text=b"hi")):
            with pytest.raises(InputError, match=r"audio is digital silence|type bytes"):
                use()
        turn.feed(more, rate)
        assert turn.finish().modalities == ("audio",)
    empty = begin_and_feed(tiny_runtime, chat, np.zeros(0, np.float32))
    assert empty.finish(text="Hello?").modalities == ("text",)
    assert tiny_runtime.stats()["failed"] >= 4


def test_silence_before_a_short_sound_does_not_make_the_turn_silent(tiny_runtime, chat):
    """The resampler's output so far may be silent although the audio fed is not."""
    audio, other = np.concatenate([np.zeros(12_000, np.float32), speech(0.02, 48_000)]), chat.fork()
    streamed = begin_and_feed(tiny_runtime, chat, audio, 48_000).finish()
    assert_same(streamed, tiny_runtime.predict(audio, sample_rate=48_000, speaker="anna", conversation=other), 1e-5)


def test_provisional_counts_only_the_audio_that_was_processed(tiny_runtime, monkeypatch):
    """A chunk that arrives during the computation is not part of the estimate and not of its length."""
    turn = tiny_runtime.begin()
    monkeypatch.setattr(turn, "_process_on_worker", lambda: None)  # chunks are processed only by this test
    turn.feed(speech(0.05), 16_000)
    process_chunks = turn._process_chunks

    def process_and_feed(is_last=False):
        process_chunks(is_last)
        turn.feed(speech(30.0), 16_000)

    monkeypatch.setattr(turn, "_process_chunks", process_and_feed)
    with pytest.raises(InputError, match=r"audio of 0\.050 s is shorter"):
        turn.provisional()
    monkeypatch.undo()
    assert turn.finish().warnings == ("audio is 30.1 s long: only its last 20 s were used",)


def test_a_finished_turn_releases_its_audio(tiny_runtime, chat):
    turn = begin_and_feed(tiny_runtime, chat, speech(0.5))
    turn.finish()
    assert turn._mel._buffer.nbytes == 0
    assert turn.revise(TEXT).modalities == ("audio", "text")
    assert turn.seconds == 0.5


def test_a_cancelled_turn_commits_nothing(tiny_runtime, chat):
    turn = begin_and_feed(tiny_runtime, chat, speech(0.5))
    turn.cancel()
    with pytest.raises(InputError, match="is cancelled"):
        turn.feed(speech(0.1), 16_000)
    with pytest.raises(InputError, match="is cancelled"):
        turn.finish()
    assert chat.turn == 2
    assert "cancelled" in repr(turn)


def test_feed_does_not_wait_when_the_audio_lock_is_taken(tiny_runtime, chat):
    audio, other = speech(1.0), chat.fork()
    turn = tiny_runtime.begin(speaker="anna", conversation=chat)
    with turn._audio_lock:
        feeder = threading.Thread(target=lambda: turn.feed(audio, 16_000))
        feeder.start()
        feeder.join(timeout=20)
        assert not feeder.is_alive()
    offline = tiny_runtime.predict(audio, sample_rate=16_000, speaker="anna", conversation=other)
    assert_same(turn.finish(), offline)


def test_a_turn_can_be_finished_again_when_the_backend_has_failed(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    chat, audio = runtime.conversation(), speech(0.6)
    other = chat.fork()
    turn = begin_and_feed(runtime, chat, audio, 48_000)
    with failing_backend(runtime, ValueError("broken")), pytest.raises(BackendError, match="broken"):
        turn.finish()
    assert chat.turn == 0
    offline = runtime.predict(audio, sample_rate=48_000, speaker="anna", conversation=other)
    assert_same(turn.finish(), offline, 1e-5)


def test_feed_finish_and_provisional_raise_when_the_runtime_is_closed(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    turn = begin_and_feed(runtime, None, speech(0.3))
    runtime.close()
    for use in (lambda: turn.feed(speech(0.1), 16_000), turn.finish, turn.provisional):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_the_stream_example_prints_estimates_of_a_file(capsys):
    from hbaf_edge.examples import stream

    stream.main(stream.EXAMPLE, text=None, late="But it means I have to leave all of you.", fast=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 6
    assert lines[0].startswith(" 0.5 s")
    assert "audio+text" in lines[-2]
    with pytest.raises(InputError, match="cannot be read"):
        stream.main(stream.EXAMPLE.parent / "conversation.jsonl", fast=True)


def test_turn_can_be_revised_by_two_threads_at_once(runtime):
    chat = runtime.conversation()
    turn = runtime.begin(conversation=chat)
    turn.feed(speech(0.4), 16_000)
    turn.finish()
    revisions = []
    threads = [threading.Thread(target=lambda n=n: revisions.append(turn.revise(f"Transcript {n}."))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [p.turn for p in revisions] == [0] * 4
    assert chat.turn == 1
