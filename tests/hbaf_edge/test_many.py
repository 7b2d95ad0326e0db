"""Batches, threads and asyncio: every turn gets the result of a separate call."""

import asyncio
import logging
import threading

import numpy as np
import pytest

from hbaf_edge import BackendError, HBAFRuntime, InputError
from tests.backends import failing_backend
from tests.conftest import speech


def conversation_of(runtime, turns):
    chat = runtime.conversation()
    for n in range(turns):
        audio = speech(0.2 + 0.1 * n, seed=n) if n % 2 else None
        runtime.predict(audio, sample_rate=16_000 if n % 2 else None, text=f"Turn {n}.", conversation=chat)
    return chat


def mixed_turns(chats):
    """Turns of all kinds: audio of equal and different lengths, texts of several lengths, one modality or both."""
    kinds = [
        {"audio": speech(0.4), "sample_rate": 16_000, "text": "Well."},
        {"audio": speech(0.4, seed=3), "sample_rate": 16_000},
        {"text": "And how do you feel about that, if I may ask?", "speaker": "anna"},
        {"audio": speech(1.1, seed=4), "sample_rate": 16_000, "text": "No.", "speaker": "bob"},
    ]
    return [{**kind, "conversation": chat} for kind, chat in zip(kinds, chats)]


def test_a_batch_equals_separate_calls(tiny_runtime):
    chats = [conversation_of(tiny_runtime, n) for n in (0, 3, 7, 1)]
    others = [chat.fork() for chat in chats]
    for _ in range(3):
        batched = tiny_runtime.predict_batch(mixed_turns(chats))
        separate = [tiny_runtime.predict(**turn) for turn in mixed_turns(others)]
        for a, b in zip(batched, separate, strict=True):
            np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)
            assert (a.turn, a.label, a.speaker, a.modalities) == (b.turn, b.label, b.speaker, b.modalities)
    assert [chat.turn for chat in chats] == [3, 6, 10, 4]


def test_a_bad_turn_is_named_and_no_turn_of_the_batch_is_committed(tiny_runtime):
    chats = [tiny_runtime.conversation() for _ in range(4)]
    turns = mixed_turns(chats)
    turns[2] = {"conversation": chats[2], "text": " "}
    with pytest.raises(InputError, match=r"turn 2 of these 4: there is no usable input.*nothing was committed"):
        tiny_runtime.predict_batch(turns)
    with pytest.raises(InputError, match="no 'words'; it takes audio, text, speaker, conversation, sample_rate"):
        tiny_runtime.predict_batch([{"words": "hello"}])
    with pytest.raises(InputError, match="turn 1 of these 2: another one of these turns is of the same conversation"):
        tiny_runtime.predict_batch([{"text": "a", "conversation": chats[0]}, {"text": "b", "conversation": chats[0]}])
    for wrong in (None, 5, {"text": "a"}, [5], [None], [{1: 2, "a": 3}]):
        with pytest.raises(InputError, match=r"of type|no 1"):
            tiny_runtime.predict_batch(wrong)
    with pytest.raises(InputError, match="turn 1 of these 2"):
        tiny_runtime.predict_batch({"text": text} for text in ("Hello.", ""))
    assert [chat.turn for chat in chats] == [0] * 4
    assert tiny_runtime.predict_batch([]) == []


def test_no_turn_is_committed_when_the_backend_fails(tiny):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    chats = [runtime.conversation() for _ in range(4)]
    with (
        failing_backend(runtime, ValueError("broken")),
        pytest.raises(BackendError, match=r"nothing was committed.*broken"),
    ):
        runtime.predict_batch(mixed_turns(chats))
    assert [chat.turn for chat in chats] == [0] * 4
    assert [p.turn for p in runtime.predict_batch(mixed_turns(chats))] == [0] * 4
    assert runtime.stats()["turns"] == 4


def test_many_threads_get_the_results_of_one_thread(tiny_runtime):
    def run(index, results):
        chat = tiny_runtime.conversation()
        for n in range(20):
            text = f"Conversation {index}, turn {n}."
            results[index, n] = tiny_runtime.predict(text=text, speaker="ab"[n % 2], conversation=chat).embedding

    serial, threaded = {}, {}
    for index in range(6):
        run(index, serial)
    threads = [threading.Thread(target=run, args=(index, threaded)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, embedding in serial.items():
        np.testing.assert_array_equal(embedding, threaded[key])


def test_threads_on_one_conversation_get_different_turn_numbers(tiny_runtime):
    chat, numbers = tiny_runtime.conversation(), []

    def run():
        for _ in range(10):
            numbers.append(tiny_runtime.predict(text="Hello.", conversation=chat).turn)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(40))
    assert chat.turn == 40


def test_asyncio_turns_equal_separate_calls(tiny_runtime):
    async def main():
        chats = [tiny_runtime.conversation() for _ in range(3)]
        return await asyncio.gather(*(tiny_runtime.apredict(text=f"Turn {n}.", conversation=c) for n, c in
                                      enumerate(chats)))  # fmt: skip

    for n, p in enumerate(asyncio.run(main())):
        np.testing.assert_array_equal(p.embedding, tiny_runtime.predict(text=f"Turn {n}.").embedding)


def test_provider_auto_logs_what_it_chose(tiny, caplog):
    import onnxruntime

    with caplog.at_level(logging.INFO, "hbaf_edge"):
        runtime = HBAFRuntime(tiny.bundle, provider="auto", threads=1)
    assert f"provider auto: {runtime.provider}" in caplog.text
    assert runtime.threads == 1
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert runtime.provider == "cpu"
        assert "not ort-cuda (provider 'ort-cuda' needs CUDAExecutionProvider" in caplog.text
