"""`predict` end to end: equal to PyTorch, independent of later turns, and all-or-nothing on errors."""

import math
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbaf_edge import BackendError, BundleError, HBAFRuntime, InputError
from tests.backends import failing_backend
from tests.conftest import speech
from training.config import TrainConfig
from training.corpora.records import Dialogue, Utterance
from training.feature_provider import FeatureProvider
from training.tasks import predict as predict_dialogues
from training.training_module import TrainingModule

TEXTS = ("Well, I never!", "What?", "I am so happy for you.", "Leave me alone.", "The train leaves at nine.", "No...")


def random_turns(rng, clips, count):
    turns = []
    for _ in range(count):
        has_text, has_audio = rng.choice([(True, True), (True, False), (False, True)])
        speaker = rng.choice(["anna", "bob", None])
        audio = rng.choice(clips) if has_audio else None
        turns.append(Utterance(rng.choice(TEXTS) if has_text else "", 0, speaker, audio))
    return turns


def pytorch_probabilities(tiny, turns):
    """Probabilities (N, labels) of one causal sliding-window pass over the dialogue in PyTorch."""
    module = TrainingModule(tiny.model, tiny.text, tiny.audio).eval()
    features = FeatureProvider(module, TrainConfig(), cached=False)
    predictions = predict_dialogues(module, features, [Dialogue("d", "dev", tuple(turns))], "audio+text")
    return torch.softmax(predictions.logits, -1).numpy()


def turn_by_turn(runtime, turns):
    chat = runtime.conversation()
    return [runtime.predict(u.audio, text=u.text, speaker=u.speaker, conversation=chat) for u in turns]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 24))
def test_turn_by_turn_equals_one_pass_over_the_dialogue_in_pytorch(tiny, tiny_runtime, clips, seed, count):
    """For random lengths (most exceed the window of 5), speakers and missing modalities, within 1e-4."""
    turns = random_turns(random.Random(seed), clips, count)
    expected = pytorch_probabilities(tiny, turns)
    probabilities = np.array([list(p.probabilities.values()) for p in turn_by_turn(tiny_runtime, turns)])
    assert np.abs(probabilities - expected).max() <= 1e-4
    assert (probabilities.argmax(1) == expected.argmax(1)).all()


def test_context_and_speakers_change_the_result(tiny_runtime, clips):
    """Without this the equality above would prove nothing about the context."""
    turns = random_turns(random.Random(3), clips, 8)
    last = turn_by_turn(tiny_runtime, turns)[-1].embedding
    no_context = tiny_runtime.predict(turns[-1].audio, text=turns[-1].text, speaker=turns[-1].speaker).embedding
    unknown_speakers = [Utterance(u.text, u.label, None, u.audio) for u in turns]
    assert np.abs(last - no_context).max() > 1e-3
    assert np.abs(last - turn_by_turn(tiny_runtime, unknown_speakers)[-1].embedding).max() > 1e-3


def test_turns_beyond_the_receptive_field_have_no_influence(tiny_runtime, clips):
    """Two dialogue layers and the context step reach exactly 3(W − 1) turns back: 12 with a window of 5."""
    turns = random_turns(random.Random(4), clips, 20)
    other = [*random_turns(random.Random(5), clips, 7), *turns[7:]]
    a, b = turn_by_turn(tiny_runtime, turns), turn_by_turn(tiny_runtime, other)
    np.testing.assert_array_equal(a[-1].embedding, b[-1].embedding)
    assert np.abs(a[8].embedding - b[8].embedding).max() > 0


def test_later_turns_do_not_change_earlier_results(tiny_runtime, clips):
    turns = random_turns(random.Random(6), clips, 12)
    short, long = turn_by_turn(tiny_runtime, turns[:6]), turn_by_turn(tiny_runtime, turns)
    for a, b in zip(short, long):
        np.testing.assert_array_equal(a.embedding, b.embedding)


def test_all_fields_of_a_prediction_are_set(runtime):
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
def test_the_default_model_recognises_plain_sentences(runtime, text, label):
    assert runtime.predict(text=text).label == label


def test_either_modality_may_be_missing(runtime):
    assert runtime.predict(None, text="Fine.").modalities == ("text",)
    assert runtime.predict(speech(1.0), sample_rate=48_000, text=None).modalities == ("audio",)
    assert runtime.predict(speech(1.0), sample_rate=16_000, text="").modalities == ("audio",)


def test_calls_without_a_conversation_are_independent(runtime):
    first = runtime.predict(text="I hate this.")
    runtime.predict(text="How lovely!")
    again = runtime.predict(text="I hate this.")
    np.testing.assert_array_equal(first.embedding, again.embedding)
    assert again.turn == 0


def test_observe_commits_a_turn_as_context(runtime):
    chat = runtime.conversation()
    assert runtime.observe(text="Your dog has died.", conversation=chat) is None
    assert chat.turn == 1
    p = runtime.predict(text="What?", speaker="anna", conversation=chat)
    assert p.turn == 1
    assert np.abs(p.embedding - runtime.predict(text="What?", speaker="anna").embedding).max() > 1e-3


def test_the_label_is_none_below_min_confidence(tiny):
    strict = HBAFRuntime(tiny.bundle, min_confidence=1.0, threads=1)
    p = strict.predict(text="Fine.")
    assert p.label is None
    assert 0 < p.confidence < 1
    for bad in (-0.1, 1.5, "high"):
        with pytest.raises(InputError, match="min_confidence"):
            HBAFRuntime(tiny.bundle, min_confidence=bad)


def test_repr_is_the_model_card(runtime):
    card = repr(runtime)
    for part in ("anger, disgust, fear", "NON-COMMERCIAL", "32 turns", "not of what a person feels", "cpu, 1 threads"):
        assert part in card


BAD_TURNS = {
    "array without rate": {"audio": speech(1.0)},
    "rate 0": {"audio": speech(1.0), "sample_rate": 0},
    "rate 10 MHz": {"audio": speech(1.0), "sample_rate": 10_000_000},
    "NaN": {"audio": np.full(16_000, np.nan), "sample_rate": 16_000},
    "empty": {"audio": np.zeros(0), "sample_rate": 16_000},
    "0.05 s without text": {"audio": speech(0.05), "sample_rate": 16_000},
    "silence without text": {"audio": np.zeros(16_000), "sample_rate": 16_000},
    "3-D": {"audio": np.zeros((2, 2, 2)), "sample_rate": 16_000},
    "uint8": {"audio": np.zeros(16_000, np.uint8), "sample_rate": 16_000},
    "missing path": {"audio": "nowhere.wav"},
    "no audio and no text": {},
    "text of bytes": {"text": b"hello"},
    "speaker of int": {"text": "hello", "speaker": 7},
}


@pytest.mark.parametrize("name", BAD_TURNS)
def test_bad_input_leaves_the_conversation_unchanged(tiny_runtime, name):
    chat = tiny_runtime.conversation()
    tiny_runtime.predict(text="Hello.", speaker="anna", conversation=chat)
    before = [x.copy() for x in chat.view("anna").arrays]
    with pytest.raises(InputError):
        tiny_runtime.predict(**BAD_TURNS[name], conversation=chat)
    assert chat.turn == 1
    for a, b in zip(before, chat.view("anna").arrays):
        np.testing.assert_array_equal(a, b)
    assert tiny_runtime.predict(text="Still here.", conversation=chat).turn == 1


def test_a_failing_backend_leaves_the_conversation_unchanged(tiny, clips):
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    chat = runtime.conversation()
    runtime.predict(text="Hello.", conversation=chat)
    with (
        failing_backend(runtime, ValueError("broken")),
        pytest.raises(BackendError, match=r"nothing was committed.*broken"),
    ):
        runtime.predict(clips[0], text="Hello?", conversation=chat)
    assert chat.turn == 1
    assert runtime.predict(text="Hello?", conversation=chat).turn == 1


def test_a_conversation_of_another_bundle_is_refused(runtime, tiny_runtime):
    with pytest.raises(InputError, match="another bundle"):
        runtime.predict(text="hello", conversation=tiny_runtime.conversation())
    with pytest.raises(InputError, match=r"runtime\.conversation\(\)"):
        runtime.predict(text="hello", conversation={})


def test_invalid_provider_threads_and_bundle_are_refused(tiny):
    with pytest.raises(BackendError, match="valid ones are 'auto', 'cpu', 'ort-cuda', 'ort-tensorrt'"):
        HBAFRuntime(tiny.bundle, provider="tpu")
    for bad in (0, -1, 1.5, True, 2**31):
        with pytest.raises(InputError, match="threads"):
            HBAFRuntime(tiny.bundle, threads=bad)
    with pytest.raises(BundleError):
        HBAFRuntime(tiny.bundle / "nowhere")


def test_the_error_names_the_package_when_a_provider_is_missing(tiny):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendError, match="onnxruntime-gpu"):
        HBAFRuntime(tiny.bundle, provider="ort-cuda")


def test_threads_with_their_own_conversations_get_equal_results(tiny_runtime, clips):
    turns = random_turns(random.Random(8), clips, 10)
    expected = [p.probabilities for p in turn_by_turn(tiny_runtime, turns)]
    results = [None] * 6

    def run(index):
        results[index] = [p.probabilities for p in turn_by_turn(tiny_runtime, turns)]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == expected for result in results)


def test_turns_of_one_conversation_from_several_threads_are_all_committed(tiny_runtime):
    chat = tiny_runtime.conversation()
    threads = [threading.Thread(target=tiny_runtime.predict, kwargs={"text": t, "conversation": chat}) for t in TEXTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chat.turn == len(TEXTS)


def test_the_size_of_a_conversation_is_constant(runtime):
    chat = runtime.conversation()
    before = chat.nbytes
    for _ in range(3):
        runtime.observe(text="Hello.", conversation=chat)
    assert chat.nbytes == before <= 420 * 1024
