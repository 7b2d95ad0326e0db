"""`predict` end to end: exact against PyTorch, stable under what comes later, and all-or-nothing on errors."""

import math
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbaf_edge import BackendError, BundleError, HBAFRuntime, InputError
from tests.backends import failing
from tests.conftest import speech
from training.config import TrainConfig
from training.corpora.records import Dialogue, Utterance
from training.learner import Learner
from training.material import Material
from training.stages import predict as predict_whole

WORDS = ("Well, I never!", "What?", "I am so happy for you.", "Leave me alone.", "The train leaves at nine.", "No...")


def random_turns(rng, clips, count):
    turns = []
    for _ in range(count):
        has_text, has_audio = rng.choice([(True, True), (True, False), (False, True)])
        speaker = rng.choice(["anna", "bob", None])
        audio = rng.choice(clips) if has_audio else None
        turns.append(Utterance(rng.choice(WORDS) if has_text else "", 0, speaker, audio))
    return turns


def whole(tiny, runtime, turns):
    """The causal sliding-window pass of PyTorch over the whole dialogue: logits (N, labels) and embeddings."""
    learner = Learner(tiny.model, tiny.text, tiny.audio).eval()
    material = Material(learner, TrainConfig(), cached=False)
    found = predict_whole(learner, material, [Dialogue("d", "dev", tuple(turns))], "audio+text")
    return torch.softmax(found.logits, -1).numpy()


def turn_by_turn(runtime, turns):
    chat = runtime.conversation()
    return [runtime.predict(u.audio, text=u.text, speaker=u.speaker, conversation=chat) for u in turns]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 24))
def test_turn_by_turn_equals_the_whole_dialogue_in_pytorch(tiny, tiny_runtime, clips, seed, count):
    """Random lengths (the window is 5, so most run past it), speakers and missing modalities; ≤ 1e-4."""
    turns = random_turns(random.Random(seed), clips, count)
    expected = whole(tiny, tiny_runtime, turns)
    found = np.array([list(p.probabilities.values()) for p in turn_by_turn(tiny_runtime, turns)])
    assert np.abs(found - expected).max() <= 1e-4
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_context_and_speakers_matter(tiny_runtime, clips):
    """Equality above would be empty if the model did not listen to its context."""
    turns = random_turns(random.Random(3), clips, 8)
    last = turn_by_turn(tiny_runtime, turns)[-1].embedding
    alone = tiny_runtime.predict(turns[-1].audio, text=turns[-1].text, speaker=turns[-1].speaker).embedding
    nobody = [Utterance(u.text, u.label, None, u.audio) for u in turns]
    assert np.abs(last - alone).max() > 1e-3
    assert np.abs(last - turn_by_turn(tiny_runtime, nobody)[-1].embedding).max() > 1e-3


def test_beyond_its_reach_the_past_is_forgotten_exactly(tiny_runtime, clips):
    """Two dialogue layers and the context step reach 3(W − 1) turns back: 12 at a window of 5, not one further."""
    turns = random_turns(random.Random(4), clips, 20)
    other = [*random_turns(random.Random(5), clips, 7), *turns[7:]]
    a, b = turn_by_turn(tiny_runtime, turns), turn_by_turn(tiny_runtime, other)
    np.testing.assert_array_equal(a[-1].embedding, b[-1].embedding)
    assert np.abs(a[8].embedding - b[8].embedding).max() > 0


def test_later_turns_never_change_an_earlier_result(tiny_runtime, clips):
    turns = random_turns(random.Random(6), clips, 12)
    short, long = turn_by_turn(tiny_runtime, turns[:6]), turn_by_turn(tiny_runtime, turns)
    for a, b in zip(short, long):
        np.testing.assert_array_equal(a.embedding, b.embedding)


def test_prediction_is_complete(runtime):
    chat = runtime.conversation()
    p = runtime.predict(speech(1.0), sample_rate=16_000, text="Fine.", speaker="anna", conversation=chat)
    assert math.isclose(sum(p.probabilities.values()), 1, abs_tol=1e-9)
    assert tuple(p.probabilities) == runtime.labels
    assert p.label == max(p.probabilities, key=p.probabilities.get)
    assert p.confidence == p.probabilities[p.label]
    assert p.modalities == ("audio", "text")
    assert (p.turn, p.speaker, p.warnings) == (0, "anna", ())
    assert set(p.timing) == {"features", "audio", "text", "utterance", "dialogue", "total"}
    assert p.embedding.shape == (512,)
    assert p.embedding.dtype == np.float32
    assert len(chat) == 1


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I'm so happy, this is wonderful!", "joy"),
        ("Get out! I hate you, you liar!", "anger"),
        ("I miss him so much. I can't stop crying.", "sadness"),
        ("The meeting is at three.", "neutral"),
        ("Oh my God! What? No way!", "surprise"),
    ],
)
def test_default_model_reads_plain_words(runtime, text, label):
    assert runtime.predict(text=text).label == label


def test_each_modality_may_be_absent(runtime):
    assert runtime.predict(None, text="Fine.").modalities == ("text",)
    assert runtime.predict(speech(1.0), sample_rate=48_000, text=None).modalities == ("audio",)
    assert runtime.predict(speech(1.0), sample_rate=16_000, text="").modalities == ("audio",)


def test_without_conversation_calls_stand_alone(runtime):
    first = runtime.predict(text="I hate this.")
    runtime.predict(text="How lovely!")
    again = runtime.predict(text="I hate this.")
    np.testing.assert_array_equal(first.embedding, again.embedding)
    assert again.turn == 0


def test_observe_commits_context(runtime):
    chat = runtime.conversation()
    assert runtime.observe(text="Your dog has died.", conversation=chat) is None
    assert chat.turn == 1
    p = runtime.predict(text="What?", speaker="anna", conversation=chat)
    assert p.turn == 1
    assert np.abs(p.embedding - runtime.predict(text="What?", speaker="anna").embedding).max() > 1e-3


def test_min_confidence(tiny):
    strict = HBAFRuntime(tiny.bundle, min_confidence=1.0, threads=1)
    p = strict.predict(text="Fine.")
    assert p.label is None
    assert 0 < p.confidence < 1
    for bad in (-0.1, 1.5, "high"):
        with pytest.raises(InputError, match="min_confidence"):
            HBAFRuntime(tiny.bundle, min_confidence=bad)


def test_repr_is_the_card(runtime):
    shown = repr(runtime)
    for part in ("anger, disgust, fear", "NON-COMMERCIAL", "32 turns", "not of what a person feels", "cpu, 1 threads"):
        assert part in shown


BAD_TURNS = {
    "array without rate": {"audio": speech(1.0)},
    "rate 0": {"audio": speech(1.0), "sample_rate": 0},
    "rate 10 MHz": {"audio": speech(1.0), "sample_rate": 10_000_000},
    "NaN": {"audio": np.full(16_000, np.nan), "sample_rate": 16_000},
    "empty": {"audio": np.zeros(0), "sample_rate": 16_000},
    "0.05 s alone": {"audio": speech(0.05), "sample_rate": 16_000},
    "silence alone": {"audio": np.zeros(16_000), "sample_rate": 16_000},
    "3-D": {"audio": np.zeros((2, 2, 2)), "sample_rate": 16_000},
    "uint8": {"audio": np.zeros(16_000, np.uint8), "sample_rate": 16_000},
    "missing path": {"audio": "nowhere.wav"},
    "neither": {},
    "text of bytes": {"text": b"hello"},
    "speaker of int": {"text": "hello", "speaker": 7},
}


@pytest.mark.parametrize("name", BAD_TURNS)
def test_an_error_leaves_the_conversation_exactly_as_it_was(tiny_runtime, name):
    chat = tiny_runtime.conversation()
    tiny_runtime.predict(text="Hello.", speaker="anna", conversation=chat)
    before = [x.copy() for x in chat.view("anna").arrays]
    with pytest.raises(InputError):
        tiny_runtime.predict(**BAD_TURNS[name], conversation=chat)
    assert chat.turn == 1
    for a, b in zip(before, chat.view("anna").arrays):
        np.testing.assert_array_equal(a, b)
    assert tiny_runtime.predict(text="Still here.", conversation=chat).turn == 1


def test_a_backend_that_fails_mid_turn_leaves_the_conversation(tiny, clips):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    chat = runtime.conversation()
    runtime.predict(text="Hello.", conversation=chat)
    with failing(runtime, ValueError("broken")), pytest.raises(BackendError, match=r"nothing was committed.*broken"):
        runtime.predict(clips[0], text="Hello?", conversation=chat)
    assert chat.turn == 1
    assert runtime.predict(text="Hello?", conversation=chat).turn == 1


def test_conversations_belong_to_their_bundle(runtime, tiny_runtime):
    with pytest.raises(InputError, match="another bundle"):
        runtime.predict(text="hello", conversation=tiny_runtime.conversation())
    with pytest.raises(InputError, match=r"runtime\.conversation\(\)"):
        runtime.predict(text="hello", conversation={})


def test_providers_and_threads(tiny):
    with pytest.raises(BackendError, match="valid ones are 'auto', 'cpu', 'ort-cuda', 'ort-tensorrt'"):
        HBAFRuntime(tiny.bundle, provider="tpu")
    for bad in (0, -1, 1.5, True, 2**31):
        with pytest.raises(InputError, match="threads"):
            HBAFRuntime(tiny.bundle, threads=bad)
    with pytest.raises(BundleError):
        HBAFRuntime(tiny.bundle / "nowhere")


def test_a_provider_that_is_not_built_in_says_how_to_get_it(tiny):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendError, match="onnxruntime-gpu"):
        HBAFRuntime(tiny.bundle, provider="ort-cuda")


def test_one_runtime_serves_many_threads(tiny_runtime, clips):
    turns = random_turns(random.Random(8), clips, 10)
    expected = [p.probabilities for p in turn_by_turn(tiny_runtime, turns)]
    found = [None] * 6

    def talk(place):
        found[place] = [p.probabilities for p in turn_by_turn(tiny_runtime, turns)]

    threads = [threading.Thread(target=talk, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == expected for result in found)


def test_turns_of_one_conversation_run_one_after_another(tiny_runtime):
    chat = tiny_runtime.conversation()
    talk = [threading.Thread(target=tiny_runtime.predict, kwargs={"text": w, "conversation": chat}) for w in WORDS]
    for thread in talk:
        thread.start()
    for thread in talk:
        thread.join()
    assert chat.turn == len(WORDS)


def test_state_of_the_default_model_is_bounded(runtime):
    chat = runtime.conversation()
    before = chat.nbytes
    for _ in range(3):
        runtime.observe(text="Hello.", conversation=chat)
    assert chat.nbytes == before <= 420 * 1024
