"""A turn while it is spoken: equal to the recording's, provisional before, revised after, and nothing fed is lost."""

import threading

import numpy as np
import pytest

from hbaf_edge import BackendError, HBAFRuntime, InputError
from tests.backends import failing
from tests.conftest import speech

WORDS = "And how do you feel about that?"


@pytest.fixture
def chat(tiny_runtime):
    made = tiny_runtime.conversation()
    for speaker, text in (("anna", "Hello."), ("robot", "What happened?")):
        tiny_runtime.predict(text=text, speaker=speaker, conversation=made)
    return made


def spoken(runtime, chat, sound, rate=16_000, chunk=0.02):
    turn = runtime.begin(speaker="anna", conversation=chat)
    for part in np.split(sound, range(int(chunk * rate), len(sound), int(chunk * rate))):
        turn.feed(part, rate)
    return turn


def same(a, b, tolerance=0.0):
    np.testing.assert_allclose(a.embedding, b.embedding, atol=tolerance, rtol=0)
    np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=tolerance, rtol=0)
    assert (a.label, a.turn, a.speaker, a.modalities, a.warnings) == (
        b.label,
        b.turn,
        b.speaker,
        b.modalities,
        b.warnings,
    )


def rings(chat):
    return [*chat.memory.rings, chat.memory.present]


@pytest.mark.parametrize("seconds", [0.1, 1.3, 23.7])
def test_fed_at_16_khz_it_is_the_recording_bit_for_bit(tiny_runtime, chat, seconds):
    sound, other = speech(seconds), chat.fork()
    ours = spoken(tiny_runtime, chat, sound).finish(WORDS)
    theirs = tiny_runtime.predict(sound, sample_rate=16_000, text=WORDS, speaker="anna", conversation=other)
    same(ours, theirs)
    for a, b in zip(rings(chat), rings(other)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("rate", "kind"), [(48_000, np.int16), (44_100, np.float32), (8_000, np.float64)])
def test_fed_at_any_rate_it_is_the_recording(tiny_runtime, chat, rate, kind):
    sound = np.stack([speech(2.5, rate), 0.5 * speech(2.5, rate, seed=1)], 1)
    sound = (sound * 32767).astype(kind) if kind == np.int16 else sound.astype(kind)
    other = chat.fork()
    ours = spoken(tiny_runtime, chat, sound, rate).finish(WORDS)
    same(ours, tiny_runtime.predict(sound, sample_rate=rate, text=WORDS, speaker="anna", conversation=other), 1e-5)


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_a_tenth_of_a_second_is_enough_at_any_rate(tiny_runtime, chat, rate):
    sound, other = speech(0.1, rate), chat.fork()
    ours = spoken(tiny_runtime, chat, sound, rate).finish()
    same(ours, tiny_runtime.predict(sound, sample_rate=rate, speaker="anna", conversation=other), 1e-5)


def test_provisional_commits_nothing_and_sees_what_was_heard(tiny_runtime, chat):
    sound, before = speech(2.0), [x.copy() for x in rings(chat)]
    turn = spoken(tiny_runtime, chat, sound[:16_000])
    early = turn.provisional()
    same(early, tiny_runtime.predict(sound[:16_000], sample_rate=16_000, speaker="anna", conversation=chat.fork()))
    assert chat.turn == 2
    for a, b in zip(rings(chat), before):
        np.testing.assert_array_equal(a, b)
    turn.feed(sound[16_000:], 16_000)
    other = chat.fork()
    same(turn.finish(), tiny_runtime.predict(sound, sample_rate=16_000, speaker="anna", conversation=other))
    assert turn.seconds == 2.0


def test_late_words_are_as_words_at_hand(tiny_runtime, chat):
    sound, other = speech(1.5), chat.fork()
    turn = spoken(tiny_runtime, chat, sound)
    assert turn.finish().modalities == ("audio",)
    assert turn.revise("Something misheard.").modalities == ("audio", "text")
    revised = turn.revise(WORDS)
    same(revised, tiny_runtime.predict(sound, sample_rate=16_000, text=WORDS, speaker="anna", conversation=other))
    assert chat.turn == 3
    assert chat.turns[-1].label == revised.label
    for runtime_chat in (chat, other):
        tiny_runtime.observe(text="I see.", conversation=runtime_chat)
    for a, b in zip(rings(chat), rings(other)):
        np.testing.assert_array_equal(a, b)


def test_revised_after_a_full_window_it_is_still_the_same(tiny_runtime, chat):
    for n in range(7):
        tiny_runtime.predict(text=f"Turn {n}.", speaker="bob", conversation=chat)
    other, sound = chat.fork(), speech(0.7)
    turn = spoken(tiny_runtime, chat, sound)
    turn.finish()
    ours = turn.revise(WORDS)
    same(ours, tiny_runtime.predict(sound, sample_rate=16_000, text=WORDS, speaker="anna", conversation=other))


def test_what_later_turns_have_built_on_stays(tiny_runtime, chat):
    turn = spoken(tiny_runtime, chat, speech(0.5))
    with pytest.raises(InputError, match="not finished"):
        turn.revise(WORDS)
    turn.finish()
    tiny_runtime.observe(text="I see.", conversation=chat)
    with pytest.raises(InputError, match="gone on or was reset"):
        turn.revise(WORDS)
    chat.reset()
    for n in range(3):
        tiny_runtime.predict(text=f"Turn {n}.", conversation=chat)
    with pytest.raises(InputError, match="gone on or was reset"):
        turn.revise(WORDS)  # the number fits, the turn is another
    assert chat.turn == 3


def test_others_may_speak_meanwhile(tiny_runtime, chat):
    turn = spoken(tiny_runtime, chat, speech(0.5))
    tiny_runtime.observe(text="Go on.", conversation=chat)
    assert turn.finish().turn == 3
    assert [t.speaker for t in chat.turns] == ["anna", "robot", "robot", "anna"]


def test_bad_chunks_are_refused_and_lose_nothing(tiny_runtime, chat):
    sound, other = speech(1.0), chat.fork()
    turn = tiny_runtime.begin(speaker="anna", conversation=chat)
    turn.feed(sound[:8_000], 16_000)
    for bad, rate, said in (
        (np.full(160, np.nan, np.float32), 16_000, "NaN"),
        (np.full(160, 3000.0), 16_000, "-1..1"),
        (sound[:160], 48_000, "keep to one rate"),
        (sound[:160], 4_000, "8,000 to 192,000"),
        (b"\0" * 320, 16_000, "chunk of type bytes"),
        (sound[:160], None, "sample_rate is required"),
    ):
        with pytest.raises(InputError, match=said):
            turn.feed(bad, rate)
    turn.feed(np.zeros(0, np.float32), 16_000)
    turn.feed(sound[8_000:], 16_000)
    same(turn.finish(), tiny_runtime.predict(sound, sample_rate=16_000, speaker="anna", conversation=other))
    for use in (lambda: turn.feed(sound, 16_000), turn.finish, turn.provisional):
        with pytest.raises(InputError, match="is finished"):
            use()


def test_nothing_heard_needs_words_or_more_sound(tiny_runtime, chat):
    """What cannot be finished is not over: it can be spoken on, finished with words, or cancelled."""
    for rate in (16_000, 48_000):
        turn, more = spoken(tiny_runtime, chat, np.zeros(rate, np.float32), rate), speech(0.5, rate)
        for use in (turn.provisional, turn.finish, lambda turn=turn: turn.finish(text=b"hi")):
            with pytest.raises(InputError, match=r"audio is digital silence|type bytes"):
                use()
        turn.feed(more, rate)
        assert turn.finish().modalities == ("audio",)
    assert spoken(tiny_runtime, chat, np.zeros(0, np.float32)).finish(text="Hello?").modalities == ("text",)
    assert tiny_runtime.stats()["failed"] >= 4


def test_silence_before_a_word_is_no_silence(tiny_runtime, chat):
    """What the resampler has given out so far may be silent, what was fed is not."""
    sound, other = np.concatenate([np.zeros(12_000, np.float32), speech(0.02, 48_000)]), chat.fork()
    ours = spoken(tiny_runtime, chat, sound, 48_000).finish()
    same(ours, tiny_runtime.predict(sound, sample_rate=48_000, speaker="anna", conversation=other), 1e-5)


def test_a_provisional_estimate_counts_what_was_taken_in(tiny_runtime, monkeypatch):
    """A chunk that arrives while it computes is not in it, and does not make it look longer."""
    turn = tiny_runtime.begin()
    monkeypatch.setattr(turn, "_take_in", lambda: None)  # no worker beside this test
    turn.feed(speech(0.05), 16_000)
    absorb = turn._absorb

    def meanwhile(last=False):
        absorb(last)
        turn.feed(speech(30.0), 16_000)

    monkeypatch.setattr(turn, "_absorb", meanwhile)
    with pytest.raises(InputError, match=r"audio of 0\.050 s is shorter"):
        turn.provisional()
    monkeypatch.undo()
    assert turn.finish().warnings == ("audio is 30.1 s long: only its last 20 s were used",)


def test_a_finished_turn_holds_no_sound(tiny_runtime, chat):
    turn = spoken(tiny_runtime, chat, speech(0.5))
    turn.finish()
    assert turn._mel._held.nbytes == 0
    assert turn.revise(WORDS).modalities == ("audio", "text")
    assert turn.seconds == 0.5


def test_a_cancelled_turn_leaves_no_trace(tiny_runtime, chat):
    turn = spoken(tiny_runtime, chat, speech(0.5))
    turn.cancel()
    with pytest.raises(InputError, match="is cancelled"):
        turn.feed(speech(0.1), 16_000)
    with pytest.raises(InputError, match="is cancelled"):
        turn.finish()
    assert chat.turn == 2
    assert "cancelled" in repr(turn)


def test_feeding_waits_for_no_computation(tiny_runtime, chat):
    """With the turn's computing lock held by somebody else, a chunk is taken all the same and heard later."""
    sound, other = speech(1.0), chat.fork()
    turn = tiny_runtime.begin(speaker="anna", conversation=chat)
    with turn._busy:
        feeder = threading.Thread(target=lambda: turn.feed(sound, 16_000))
        feeder.start()
        feeder.join(timeout=20)
        assert not feeder.is_alive()
    same(turn.finish(), tiny_runtime.predict(sound, sample_rate=16_000, speaker="anna", conversation=other))


def test_a_backend_that_fails_at_the_end_leaves_the_turn_to_be_finished(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    chat, sound = runtime.conversation(), speech(0.6)
    other = chat.fork()
    turn = spoken(runtime, chat, sound, 48_000)
    with failing(runtime, ValueError("broken")), pytest.raises(BackendError, match="broken"):
        turn.finish()
    assert chat.turn == 0
    same(turn.finish(), runtime.predict(sound, sample_rate=48_000, speaker="anna", conversation=other), 1e-5)


def test_after_closing_it_says_so(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    turn = spoken(runtime, None, speech(0.3))
    runtime.close()
    for use in (lambda: turn.feed(speech(0.1), 16_000), turn.finish, turn.provisional):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_the_example_streams_a_file(capsys):
    from hbaf_edge.examples import stream

    stream.main(stream.EXAMPLE, text=None, late="But it means I have to leave all of you.", fast=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 6
    assert lines[0].startswith(" 0.5 s")
    assert "audio+text" in lines[-2]
    with pytest.raises(InputError, match="cannot be read"):
        stream.main(stream.EXAMPLE.parent / "conversation.jsonl", fast=True)
