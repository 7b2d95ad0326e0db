"""Conversations for calibration: long and short ones, with audio, text or both, and the same for the same seed."""

import numpy as np
import pytest
import soundfile

from export.conversations import conversations, counts, drop_unusable
from training import corpora
from training.config import PairConfig, TrainConfig
from training.corpora.records import CorpusError, Utterance, digest


def manifest(**train):
    config = TrainConfig(**{"pair": True, **train}, pairs=PairConfig(clips=("ravdess", "nemo")))
    stored = {"corpus": config.corpus, "pair": config.pair, "use": config.use, "pairs": {"clips": ["ravdess", "nemo"]}}
    return {"training": stored}


def test_conversations_have_all_lengths_and_combinations_of_modalities(small_corpora):
    dialogues = conversations(manifest(), "train", 80)
    numbers = counts(dialogues)
    assert numbers["turns"] >= 80
    assert numbers["longest"] > 10
    assert min(len(d.turns) for d in dialogues) <= 6
    assert numbers["both"] > numbers["words_alone"] > 0 < numbers["sound_alone"]
    assert all(u.text or u.audio for d in dialogues for u in d.turns)


def test_clips_have_the_label_of_their_text(small_corpora):
    labels = {u.audio: u.label for name in ("ravdess", "nemo") for d in corpora.load(name).dialogues for u in d.turns}
    turns = [u for d in conversations(manifest(), "train", 60) for u in d.turns if u.audio]
    assert all(labels[u.audio] == u.label for u in turns)


def test_conversations_depend_only_on_the_seed(small_corpora):
    a, b, c = (digest(conversations(manifest(), "dev", 30, seed=seed)) for seed in (0, 0, 1))
    assert a == b != c


def test_conversations_come_from_the_requested_split(small_corpora):
    splits = {split: {d.split for d in conversations(manifest(), split, 20)} for split in ("train", "dev")}
    assert splits == {split: {split} for split in splits}
    with pytest.raises(CorpusError, match="read once, at the end"):
        conversations(manifest(), "test", 20)


def test_corpus_of_one_modality_stays_unpaired(small_corpora, tiny):
    text_only = {**manifest(corpus="meld", pair=False, use="text"), "model": tiny.model.config.to_json()}
    numbers = counts(conversations(text_only, "dev", 20))
    assert numbers["words_alone"] == numbers["turns"]


def test_conversations_raise_when_the_corpus_has_other_labels(small_corpora, tiny):
    with pytest.raises(CorpusError, match="ravdess-8 has the labels"):
        conversations({**manifest(), "model": tiny.model.config.to_json()}, "dev", 20, on="ravdess-8")


def test_silent_audio_and_empty_text_are_dropped(small_corpora):
    """A silent clip would otherwise end a calibration after an hour."""
    soundfile.write(small_corpora / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(small_corpora / "short.wav", np.full(800, 0.1), 16_000)
    for name in ("silent.wav", "short.wav"):
        assert drop_unusable(Utterance("", 0, audio=small_corpora / name)) is None
        assert drop_unusable(Utterance("words", 0, audio=small_corpora / name)).audio is None
    assert drop_unusable(Utterance("\u200b", 0)) is None


@pytest.mark.parametrize(
    ("name", "message"), [("nan.wav", r"nan.wav.*NaN or infinite.*training.check"), ("cut.wav", "cut.wav")]
)
def test_broken_clip_raises_with_its_name(small_corpora, name, message):
    soundfile.write(small_corpora / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    (small_corpora / "cut.wav").write_bytes(b"RIFF")
    with pytest.raises(CorpusError, match=message):
        drop_unusable(Utterance("words", 0, audio=small_corpora / name))
