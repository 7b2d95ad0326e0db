"""Small generated corpora in the formats of docs/data.md, and training settings small enough for them."""

import copy
import json
import random

import numpy as np
import pytest
import soundfile

from training import encoders
from training.config import MELD_LABELS, ModelConfig, PairConfig, TrainConfig

LABEL_WORDS = dict(zip(MELD_LABELS, ("hate", "yuck", "scared", "happy", "table", "crying", "wow")))


def write_corpora(root):
    """Write the corpora of the default recipe. Each label has its own word in texts and its own pitch in clips."""
    rng = random.Random(0)
    (root / "meld").mkdir(parents=True)
    for split, dialogues in (("train", 24), ("dev", 6), ("test", 6)):
        rows = ["Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID"]
        for d in range(dialogues):
            for u in range(rng.randint(2, 6)):
                label = rng.choice(MELD_LABELS)
                rows.append(f"{LABEL_WORDS[label]} it is indeed,{rng.choice('AB')},{label},{d},{u}")
        (root / "meld" / f"{split}_sent_emo.csv").write_text("\n".join(rows))
    (root / "dailytalk").mkdir()
    lines = [
        json.dumps({"dialogue_id": d, "split": "train", "utterances": [
            {"utt": 0, "speaker": 0, "text": "wow so it is", "emotion": ("surprise", "none")[d % 2]}]})
        for d in range(6)
    ]  # fmt: skip
    (root / "dailytalk" / "dialogues.jsonl").write_text("\n".join(lines))
    for corpus, head in (("ravdess", "id,file,speaker,gender,emotion,transcript"),
                         ("nemo", "id,file,speaker,gender,emotion,transcript"),
                         ("emogator", "file,speaker,meld_emotion")):  # fmt: skip
        write_clips(root / corpus, head)


def write_clips(folder, head):
    """Write four clips of each label, by four speakers, with a manifest.csv."""
    folder.mkdir()
    rows = [head]
    for n in range(28):
        label, file = MELD_LABELS[n % 7], f"{n}.flac"
        t = np.arange(4_800) / 16_000
        noise = np.random.default_rng(n).standard_normal(4_800)
        soundfile.write(folder / file, 0.3 * np.sin(2 * np.pi * (200 + 300 * (n % 7)) * t) + 0.01 * noise, 16_000)
        speaker = ["A01", "A15", "A17", "A02"][n // 7]
        is_emogator = folder.name == "emogator"
        rows.append(f"{file},{n},{label}" if is_emogator else f"{n},{file},{speaker},F,{label},Say it.")
    (folder / "manifest.csv").write_text("\n".join(rows))


def write_manifest(folder, count=40):
    """Write a manifest with the labels pleased and upset, which the text tells apart. Half of the turns have a clip."""
    from tests.conftest import speech  # conftest imports this module

    folder.mkdir(parents=True, exist_ok=True)
    labels = ("pleased", "upset")
    lines = []
    for n in range(count):
        label = n % 2
        clip = f"{n}.wav"
        soundfile.write(folder / clip, speech(0.3, seed=n), 16_000)
        split = ("train", "train", "train", "dev", "test")[n // 2 % 5]
        word = (LABEL_WORDS["joy"], LABEL_WORDS["anger"])[label]
        line = {"text": f"{word} it is", "label": labels[label], "dialogue": f"d{n // 2}", "speaker": "ab"[n % 2],
                "split": split}  # fmt: skip
        lines.append(json.dumps(line | ({"audio": clip} if n % 2 else {})))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder / "mine.jsonl"


def sensitive_to_pitch(audio):
    """Scale a random audio encoder, whose position codes are at first ten times as large as its inputs."""
    audio = copy.deepcopy(audio)
    audio.positions.mul_(0.05)
    for convolution in (audio.conv1, audio.conv2):
        convolution.weight.data.mul_(3)
    return audio


@pytest.fixture
def small_corpora(tmp_path, monkeypatch, tiny):
    """A folder for runs. Training in the test uses the generated corpora in its subfolder data and tiny encoders."""
    write_corpora(tmp_path / "data")
    monkeypatch.setenv("HBAF_DATA", str(tmp_path / "data"))
    tokenizer = encoders.folder("text")  # the real tokeniser, found before the cache folder changes
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoders, "folder", lambda name: tokenizer)
    monkeypatch.setattr(encoders, "load_text", lambda name="text": copy.deepcopy(tiny.text))
    monkeypatch.setattr(encoders, "load_audio", lambda name="audio": sensitive_to_pitch(tiny.audio))
    config = tiny.model.config.to_json()
    monkeypatch.setattr("training.training_module.ModelConfig", lambda: ModelConfig.from_json(config))
    monkeypatch.setattr(encoders, "model_config", lambda audio="audio", text="text": ModelConfig.from_json(config))
    return tmp_path


# With these settings both tasks learn the generated corpora in seconds.
FAST = {
    "learning_rate": 3e-3,
    "encoder_rate": 1e-3,
    "max_turns": 8,
    "turns": 16,
    "also": ("dailytalk@0.5",),
}
TEXT_RUN = TrainConfig(corpus="meld", use="text", text_tuning="full", epochs=20, **FAST)
PAIR_RUN = TrainConfig(
    pair=True, epochs=14, pairs=PairConfig(paired=0.0, clip_turns=8), **{**FAST, "learning_rate": 1e-3}
)
