"""Both stages of the recipe on a small made corpus: it learns, selects, stores, and goes on from what was stored."""

import json
import shutil

import torch

from tests.made import FAST
from training import checkpoint
from training.config import TrainConfig
from training.evaluate import evaluate
from training.train import train


def test_both_stages_learn_select_and_store(small):
    text = train(TrainConfig(stage="text", epochs=20, **FAST), small / "text")
    assert text["score"] > 0.6, "words that give the label away were not learned"
    lines = [json.loads(line) for line in (small / "text" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert max(line["score"] for line in lines) == text["score"]

    fusion = train(
        TrainConfig(stage="fusion", epochs=20, paired=0.0, **{**FAST, "learning_rate": 1e-3}),
        small / "fusion",
        init=small / "text",
    )
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
    for corpus in ("meld", "ravdess", "tess"):
        shutil.rmtree(small / "data" / corpus)
    lines = (small / "data" / "dailytalk" / "dialogues.jsonl").read_text().splitlines()
    lines.append(lines[0].replace('"train"', '"val"'))
    (small / "data" / "dailytalk" / "dialogues.jsonl").write_text("\n".join(lines))
    rows = (small / "data" / "emogator" / "manifest.csv").read_text().splitlines()
    (small / "data" / "emogator" / "manifest.csv").write_text("\n".join([*rows, "0.flac,10,anger"]))
    train(TrainConfig(stage="fusion", epochs=1, open=True, **{**FAST, "dailytalk_share": 1.0}), small / "open")
    assert checkpoint.load(small / "open")[2]["train"]["open"] is True
