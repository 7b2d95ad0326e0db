"""What calibration runs on: long and short conversations, either modality missing, the same for the same seed."""

import numpy as np
import pytest
import soundfile

from export.conversations import _heard, conversations, counts, digest
from training import corpora
from training.config import PairConfig, TrainConfig
from training.corpora.records import CorpusError, Utterance


def manifest(**train):
    config = TrainConfig(**{"pair": True, **train}, pairs=PairConfig(clips=("ravdess", "tess")))
    stored = {"corpus": config.corpus, "pair": config.pair, "use": config.use, "pairs": {"clips": ["ravdess", "tess"]}}
    return {"training": stored}


def test_turns_show_both_one_or_the_other_in_conversations_of_all_lengths(small):
    found = conversations(manifest(), "train", 80)
    said = counts(found)
    assert said["turns"] >= 80
    assert said["longest"] > 10
    assert min(len(d.turns) for d in found) <= 6
    assert said["both"] > said["words_alone"] > 0 < said["sound_alone"]
    assert all(u.text or u.audio for d in found for u in d.turns)


def test_clips_have_the_label_of_the_words_beside_them(small):
    labels = {u.audio: u.label for name in ("ravdess", "tess") for d in corpora.load(name).dialogues for u in d.turns}
    turns = [u for d in conversations(manifest(), "train", 60) for u in d.turns if u.audio]
    assert all(labels[u.audio] == u.label for u in turns)


def test_the_same_seed_gives_the_same_conversations_another_seed_others(small):
    a, b, c = (digest(conversations(manifest(), "dev", 30, seed=seed)) for seed in (0, 0, 1))
    assert a == b != c


def test_splits_do_not_mix(small):
    texts = {split: {d.split for d in conversations(manifest(), split, 20)} for split in ("train", "dev", "test")}
    assert texts == {split: {split} for split in texts}


def test_own_data_of_one_modality_are_taken_as_they_are(small, tiny):
    made = {**manifest(corpus="meld", pair=False, use="text"), "model": tiny.model.config.to_json()}
    said = counts(conversations(made, "dev", 20))
    assert said["words_alone"] == said["turns"]


def test_a_corpus_of_other_labels_is_refused(small, tiny):
    made = {**manifest(), "model": tiny.model.config.to_json()}
    with pytest.raises(CorpusError, match="is labelled"):
        conversations(made, "dev", 20, on="ravdess-8")


def test_what_nobody_can_hear_or_read_is_left_out(small):
    """A silent clip would end a run that has gone on for an hour."""
    soundfile.write(small / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(small / "short.wav", np.full(800, 0.1), 16_000)
    for name in ("silent.wav", "short.wav"):
        assert _heard(Utterance("", 0, audio=small / name)) is None
        assert _heard(Utterance("words", 0, audio=small / name)).audio is None
    assert _heard(Utterance("\u200b", 0)) is None


def test_a_broken_clip_is_named(small):
    soundfile.write(small / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    (small / "cut.wav").write_bytes(b"RIFF")
    for name, said in (("nan.wav", "NaN or infinite"), ("cut.wav", "cut.wav")):
        with pytest.raises(CorpusError, match=rf"{name}.*{said}.*training.check" if "nan" in name else said):
            _heard(Utterance("words", 0, audio=small / name))
