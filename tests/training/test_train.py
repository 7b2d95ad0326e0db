"""Both stages of the recipe on a small made corpus: it learns, selects, stores, and goes on from what was stored."""

import json
import random

import numpy as np
import pytest
import soundfile
import torch

from training import checkpoint, encoders
from training.config import MELD_LABELS, ModelConfig, TrainConfig
from training.evaluate import evaluate
from training.train import train

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
                rows.append(f"{WORDS[label]} it is,{rng.choice('AB')},{label},{d},{u}")
        (root / "meld" / f"{split}_sent_emo.csv").write_text("\n".join(rows))
    (root / "dailytalk").mkdir()
    lines = [
        json.dumps({"dialogue_id": d, "split": "train", "utterances": [
            {"utt": 0, "speaker": 0, "text": "wow so it is", "emotion": "surprise"}]})
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


@pytest.fixture
def small(tmp_path, monkeypatch, tiny):
    import copy

    made_corpora(tmp_path / "data")
    monkeypatch.setenv("HBAF_DATA", str(tmp_path / "data"))
    tokenizer = encoders.folder("text")  # the real tokeniser, wherever it was cached, before the cache moves
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("training.stages.encoders.folder", lambda name: tokenizer)
    monkeypatch.setattr(encoders, "load_text", lambda: copy.deepcopy(tiny.text))
    monkeypatch.setattr(encoders, "load_audio", lambda: copy.deepcopy(tiny.audio))
    c = tiny.model.config
    monkeypatch.setattr("training.train.ModelConfig", lambda: ModelConfig.from_json(c.to_json()))
    return tmp_path


FAST = {"learning_rate": 3e-3, "encoder_rate": 1e-3, "max_turns": 8, "dailytalk_share": 0.5, "sequences": 2}


def test_both_stages_learn_select_and_store(small):
    text = train(TrainConfig(stage="text", epochs=6, **FAST), small / "text")
    assert text["score"] > 0.6, "words that give the label away were not learned"
    lines = [json.loads(line) for line in (small / "text" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert max(line["score"] for line in lines) == text["score"]

    fusion = train(TrainConfig(stage="fusion", epochs=4, **FAST), small / "fusion", init=small / "text")
    assert fusion["text_weighted_f1"] > 0.6
    assert fusion["audio_uar"] > 0.5, "pitches that give the label away were not learned"

    model, text_encoder, about = checkpoint.load(small / "fusion")
    assert about["dev"]["score"] == fusion["score"]
    stored = checkpoint.load(small / "text")[1].state_dict()
    for name, value in text_encoder.state_dict().items():
        assert torch.equal(value, stored[name]), "the fusion stage must not touch the text encoder"
    assert not model.training

    result = evaluate(small / "fusion")
    assert set(result["temperatures"]) == {"audio", "text", "audio+text"}
    assert result["scores"]["meld_test_text"]["weighted_f1"] > 0.6
    assert checkpoint.load(small / "fusion")[2]["temperatures"] == result["temperatures"]


def test_same_seed_same_losses(small):
    runs = []
    for name in ("a", "b"):
        train(TrainConfig(stage="text", epochs=1, seed=5, **FAST), small / name)
        runs.append([json.loads(line)["loss"] for line in (small / name / "log.jsonl").read_text().splitlines()])
    assert runs[0] == runs[1]


def test_open_recipe_reads_no_restricted_corpus(small):
    import shutil

    for corpus in ("meld", "ravdess", "tess"):
        shutil.rmtree(small / "data" / corpus)
    lines = (small / "data" / "dailytalk" / "dialogues.jsonl").read_text().splitlines()
    lines.append(lines[0].replace('"train"', '"val"'))
    (small / "data" / "dailytalk" / "dialogues.jsonl").write_text("\n".join(lines))
    rows = (small / "data" / "emogator" / "manifest.csv").read_text().splitlines()
    (small / "data" / "emogator" / "manifest.csv").write_text("\n".join([*rows, "0.flac,10,anger"]))
    train(TrainConfig(stage="fusion", epochs=1, open=True, **{**FAST, "dailytalk_share": 1.0}), small / "open")
    assert checkpoint.load(small / "open")[2]["train"]["open"] is True
