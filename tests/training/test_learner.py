"""Encoders inside of the learner, frozen and tuned; batches that change nothing; caches."""

import copy

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import speech
from training import caches, encoders
from training.batches import Turn, Words, encode_texts
from training.config import LossWeights, TrainConfig
from training.corpora.records import Dialogue, Utterance
from training.learner import ORDER_SPEED, Learner, groups_of
from training.material import Material


@pytest.fixture
def clips(tmp_path):
    """Three clips of different lengths."""
    paths = []
    for n, seconds in enumerate((0.4, 0.7, 0.55)):
        paths.append(tmp_path / f"{n}.wav")
        soundfile.write(paths[-1], speech(seconds, seed=n), 16_000)
    return paths


def learner_of(tiny, text="frozen", audio="frozen"):
    parts = (copy.deepcopy(x) for x in (tiny.model, tiny.text, tiny.audio))
    hbaf, words, sound = parts
    words.requires_grad_(text == "full")
    sound.requires_grad_(audio == "full")
    return Learner(hbaf, words, sound, LossWeights()).eval()


def test_clips_heard_together_are_heard_as_alone(tiny, clips):
    """Whisper has no length mask; ours makes padding inaudible."""
    learner = learner_of(tiny)
    together = dict(learner._encode_audio(clips))
    for i, clip in enumerate(clips):
        (_, alone), = learner._encode_audio([clip])  # fmt: skip
        assert together[i].shape == alone.shape
        assert float((together[i] - alone).abs().max()) <= 2e-5


def test_texts_read_together_are_read_as_alone(tiny):
    learner, words = learner_of(tiny), Words("text")
    told = [words(t) for t in ("Hi.", "A longer sentence than that.", "Ok then.")]
    together = dict(encode_texts(learner.text, told))
    for i, tokens in enumerate(told):
        (_, alone), = encode_texts(learner.text, [tokens])  # fmt: skip
        assert float((together[i].detach() - alone.detach()).abs().max()) <= 1e-5


def test_cached_states_are_what_the_encoder_gives(tiny, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoders, "folder", lambda name, path=encoders.folder("text"): path)
    learner = learner_of(tiny)
    dialogue = Dialogue("d", "dev", tuple(Utterance(f"Words {n}.", 0, None, c) for n, c in enumerate(clips)))
    cached = Material(learner, TrainConfig()).prepare([dialogue])
    raw = Material(learner, TrainConfig(), cached=False)
    a, b = (learner.output([m.shown(dialogue, "audio+text")]).logits for m in (cached, raw))
    assert not any(isinstance(t.audio, type(clips[0])) for t in cached.shown(dialogue, "audio+text"))
    assert float((a - b).detach().abs().max()) <= 2e-3  # float16 on the disk


def test_a_frozen_encoder_gets_no_gradient(tiny, clips):
    history = [Turn(1, None, Words("text")("Hello there."), clips[0])]
    for how in ("frozen", "full"):
        learner = learner_of(tiny, how, how).train()
        learner([history]).backward()
        learned = [n for n, p in learner.text.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        heard = [n for n, p in learner.audio.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        if how == "frozen":
            assert not learned + heard
            assert not learner.text.training, "a frozen encoder must not drop out"
        else:
            assert "conv1.weight" in heard
            assert "embeddings.word_embeddings.weight" in learned


def test_encoders_and_order_learn_at_rates_of_their_own(tiny):
    learner = learner_of(tiny, "full")
    groups = groups_of(learner, TrainConfig(encoder_rate=1.0, learning_rate=9.0))
    assert {g["lr"] for g in groups} == {9.0, 9.0 * ORDER_SPEED, 1.0}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.01}
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in learner.parameters())


def test_in_training_clips_are_cropped_and_changed(tiny, clips):
    learner = learner_of(tiny, audio="full")
    learner.audio_seconds = 0.3
    learner.train()
    assert len(learner._heard(clips[1])) == 4_800
    torch.manual_seed(0)
    first = learner._heard(clips[1])
    torch.manual_seed(0)
    assert torch.equal(first, learner._heard(clips[1])), "the same seed hears the same"


def test_long_words_are_cut_as_the_runtime_cuts_them():
    from hbaf_edge.features import Tokeniser

    long = "so very long " * 60
    told = Words("text")(long)
    assert Words("text")("") is None
    ids, _ = Tokeniser((encoders.folder("text") / "tokenizer.json").read_bytes())(long.strip())
    assert told.ids.tolist() == ids.tolist()


def test_a_cache_goes_on_where_it_was_killed(tmp_path):
    def entry(key):
        return key, np.full((3, 2, 4), float(key), np.float16)

    def dies(keys):
        yield from (entry(k) for k in keys[:2])
        raise RuntimeError("killed")

    cache = caches.StateCache(tmp_path / "c", (2, 4))
    with pytest.raises(RuntimeError):
        cache.add(["1", "2", "3"], dies, "made")
    asked = []

    def encode(keys):
        asked.extend(keys)
        return (entry(k) for k in keys)

    again = caches.StateCache(tmp_path / "c", (2, 4))
    again.add(["1", "2", "3"], encode, "made")
    again.add(["1", "2", "3"], encode, "made")
    assert asked == ["3"]
    assert [float(again[k].max()) for k in ("1", "2", "3")] == [1.0, 2.0, 3.0]
    assert again["3"].shape == (3, 2, 4)


def test_a_half_written_entry_is_not_there(tmp_path, monkeypatch):
    cache = caches.StateCache(tmp_path / "c", (1, 2))
    monkeypatch.setattr("pathlib.Path.replace", lambda *paths: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        cache.add(["1"], lambda keys: [("1", np.ones((2, 1, 2), np.float16))], "made")
    assert "1" not in cache


def test_variants_of_a_clip_are_its_own_and_stay(tiny, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    cache = caches.AudioCache(tiny.audio, (3, 16)).fill(clips, copies=2)
    first = [cache.states(clips[0], copy).copy() for copy in range(3)]
    assert len({f.tobytes() for f in first}) == 3
    again = caches.AudioCache(tiny.audio, (3, 16)).fill(clips, copies=2)
    assert (again.states(clips[0], 2) == first[2]).all()
