"""Small made corpora of the shapes of DATA.md, and the recipe's pieces shrunk to fit them."""

import copy
import json
import random

import numpy as np
import pytest
import soundfile

from training import encoders
from training.config import MELD_LABELS, ModelConfig, PairConfig, TrainConfig

WORDS = dict(zip(MELD_LABELS, ("hate", "yuck", "scared", "happy", "table", "crying", "wow")))


def made_corpora(root):
    """Trees of the shapes of DATA.md; a label's word and a label's pitch give it away."""
    rng = random.Random(0)
    (root / "meld").mkdir(parents=True)
    for split, dialogues in (("train", 24), ("dev", 6), ("test", 6)):
        rows = ["Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID"]
        for d in range(dialogues):
            for u in range(rng.randint(2, 6)):
                label = rng.choice(MELD_LABELS)
                rows.append(f"{WORDS[label]} it is indeed,{rng.choice('AB')},{label},{d},{u}")
        (root / "meld" / f"{split}_sent_emo.csv").write_text("\n".join(rows))
    (root / "dailytalk").mkdir()
    lines = [
        json.dumps({"dialogue_id": d, "split": "train", "utterances": [
            {"utt": 0, "speaker": 0, "text": "wow so it is", "emotion": ("surprise", "none")[d % 2]}]})
        for d in range(6)
    ]  # fmt: skip
    (root / "dailytalk" / "dialogues.jsonl").write_text("\n".join(lines))
    for corpus, head in (("ravdess", "id,file,speaker,gender,emotion,transcript"),
                         ("tess", "id,file,speaker,gender,emotion,transcript"),
                         ("emogator", "file,speaker,meld_emotion")):  # fmt: skip
        (root / corpus).mkdir()
        rows = [head]
        for n in range(28):
            label, file = MELD_LABELS[n % 7], f"{n}.flac"
            t = np.arange(4_800) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * (n % 7)) * t) + 0.01 * np.random.default_rng(
                n
            ).standard_normal(4_800)
            soundfile.write(root / corpus / file, tone, 16_000)
            speaker = ["A01", "A15", "A17", "A02"][n // 7]
            rows.append(f"{file},{n},{label}" if corpus == "emogator" else f"{n},{file},{speaker},F,{label},Say it.")
        (root / corpus / "manifest.csv").write_text("\n".join(rows))


def hearing(audio):
    """A random encoder that passes pitch on: at birth its position codes are ten times as loud as what it hears."""
    audio = copy.deepcopy(audio)
    audio.positions.mul_(0.05)
    for convolution in (audio.conv1, audio.conv2):
        convolution.weight.data.mul_(3)
    return audio


@pytest.fixture
def small(tmp_path, monkeypatch, tiny):
    made_corpora(tmp_path / "data")
    monkeypatch.setenv("HBAF_DATA", str(tmp_path / "data"))
    tokenizer = encoders.folder("text")  # the real tokeniser, wherever it was cached, before the cache moves
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoders, "folder", lambda name: tokenizer)
    monkeypatch.setattr(encoders, "load_text", lambda name="text": copy.deepcopy(tiny.text))
    monkeypatch.setattr(encoders, "load_audio", lambda name="audio": hearing(tiny.audio))
    c = tiny.model.config
    monkeypatch.setattr("training.learner.ModelConfig", lambda: ModelConfig.from_json(c.to_json()))  # its sizes, too
    monkeypatch.setattr(encoders, "model_config", lambda audio="audio", text="text": ModelConfig.from_json(c.to_json()))
    return tmp_path


# Rates and sizes with which both stages learn the made corpora in seconds.
FAST = {
    "learning_rate": 3e-3,
    "encoder_rate": 1e-3,
    "max_turns": 8,
    "turns": 16,
    "also": ("dailytalk@0.5",),
}
TALK = TrainConfig(corpus="meld", use="text", text_tuning="full", epochs=20, **FAST)
PAIRS = TrainConfig(pair=True, epochs=14, pairs=PairConfig(paired=0.0, clip_turns=8), **{**FAST, "learning_rate": 1e-3})
