"""Both stages of the recipe on a small made corpus: it learns, selects, stores, and goes on from what was stored."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.made import PAIRS, TALK
from training import checkpoint, encoders, loop, state
from training.config import PairConfig
from training.errors import TrainingError
from training.evaluate import evaluate
from training.loop import train


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_both_stages_learn_select_and_store(small):
    text = train(TALK, small / "text")
    assert text["score"] > 0.6, "words that give the label away were not learned"
    lines = lines_of(small / "text")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert max(line["score"] for line in lines) == text["score"]

    fusion = train(PAIRS, small / "fusion", init=small / "text")
    assert fusion["text_weighted_f1"] > 0.6
    assert fusion["audio_uar"] > 0.4, "pitches that give the label away were not learned"

    model, text_encoder, _, about = checkpoint.load(small / "fusion")
    assert about["dev"]["score"] == fusion["score"]
    assert about["corpora"] == ["meld", "dailytalk", "ravdess", "tess", "emogator", "plain"]
    stored = checkpoint.load(small / "text").text.state_dict()
    for name, value in text_encoder.state_dict().items():
        assert torch.equal(value, stored[name]), "the fusion stage must not touch the text encoder"
    assert not model.training

    result = evaluate(small / "fusion", stressed=True)
    assert set(result["temperatures"]) == {"audio", "text", "audio+text"}
    assert result["scores"]["meld_test_text"]["weighted_f1"] > 0.6
    assert (
        result["scores"]["meld_test_text, after 100 foreign turns"]["utterances"]
        == (result["scores"]["meld_test_text"]["utterances"])
    )
    assert set(result["scores"]["ravdess_17_20_audio"]["by_gender"]) == {"F"}
    low, high = result["scores"]["meld_test_text"]["interval_95"]["weighted_f1"]
    assert low <= result["scores"]["meld_test_text"]["weighted_f1"] <= high
    assert checkpoint.load(small / "fusion").about["temperatures"] == result["temperatures"]


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(small, monkeypatch):
    """Killed within its third epoch: every loss and every weight is that of the unbroken run, averages included."""
    config = replace(TALK, epochs=4, seed=5, ema=0.9)
    train(config, small / "whole")
    judged = []

    def judge_then_die(self):
        judged.append(1)
        if len(judged) == 3:
            raise Killed
        return original(self)

    original = loop.CorpusStage.judge
    monkeypatch.setattr(loop.CorpusStage, "judge", judge_then_die)
    with pytest.raises(Killed):
        train(config, small / "broken")
    monkeypatch.setattr(loop.CorpusStage, "judge", original)
    train(config, small / "broken")
    whole, broken = (lines_of(small / name) for name in ("whole", "broken"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in broken]
    a, b = (checkpoint.load(small / name).hbaf.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_of_another_config_is_not_gone_on_with(small):
    train(replace(TALK, epochs=1), small / "run")
    with pytest.raises(TrainingError, match=r"learning_rate 0.003 there, 0.002 now.*--restart"):
        train(replace(TALK, epochs=1, learning_rate=2e-3), small / "run")
    with pytest.raises(TrainingError, match=r"init 'None' there, .*run' now"):
        train(replace(TALK, epochs=1), small / "run", init=small / "run")
    with pytest.raises(TrainingError, match=r"model {'gate': True} there, {'gate': False} now"):
        train(replace(TALK, epochs=1), small / "run", replace(encoders.model_config(), gate=False))
    train(replace(TALK, epochs=1, learning_rate=2e-3), small / "run", restart=True)
    assert (small / "run" / state.FILE).exists()


def test_a_restart_forgets_what_was_there(small):
    config = replace(TALK, corpus="ravdess", also=(), use="audio", text_tuning="frozen", audio_tuning="full", epochs=1)
    train(config, small / "run")
    assert (small / "run" / "audio.safetensors").exists()
    train(replace(config, audio_tuning="frozen"), small / "run", restart=True)
    assert not (small / "run" / "audio.safetensors").exists(), "the next run would be scored with another's encoder"
    assert len(lines_of(small / "run")) == 1


def test_early_stopping_waits_as_long_as_it_was_told(small, monkeypatch):
    monkeypatch.setattr(loop.CorpusStage, "judge", lambda self: {"score": 0.5})
    train(replace(TALK, epochs=20, patience=2), small / "run")
    assert len(lines_of(small / "run")) == 3


@pytest.mark.slow
def test_tuned_audio_is_stored_and_used(small):
    config = replace(TALK, corpus="ravdess", also=(), use="audio", text_tuning="frozen", audio_tuning="full", epochs=2)
    train(config, small / "audio")
    packaged, found = checkpoint.encoders.load_audio().state_dict(), checkpoint.load(small / "audio").audio.state_dict()
    assert not torch.equal(packaged["conv1.weight"], found["conv1.weight"])
    train(replace(config, audio_tuning="frozen", epochs=1), small / "next", init=small / "audio")
    assert torch.equal(checkpoint.load(small / "next").audio.state_dict()["conv1.weight"], found["conv1.weight"])


def test_open_recipe_reads_no_restricted_corpus(small, capsys):
    for corpus in ("meld", "ravdess", "tess"):
        shutil.rmtree(small / "data" / corpus)
    lines = (small / "data" / "dailytalk" / "dialogues.jsonl").read_text().splitlines()
    lines.append(lines[0].replace('"train"', '"val"'))
    (small / "data" / "dailytalk" / "dialogues.jsonl").write_text("\n".join(lines))
    rows = (small / "data" / "emogator" / "manifest.csv").read_text().splitlines()
    (small / "data" / "emogator" / "manifest.csv").write_text("\n".join([*rows, "0.flac,10,anger"]))
    pairs = PairConfig(clips=("emogator",), clip_turns=8)
    train(replace(PAIRS, corpus="dailytalk", also=(), pairs=pairs, epochs=1), small / "open")
    assert checkpoint.load(small / "open").about["corpora"] == ["dailytalk", "emogator", "plain"]
    found = evaluate(small / "open")
    assert found["scores"] == {}, "what is not there cannot be scored"
    said = " ".join(capsys.readouterr().err.split())
    assert "meld_test_text is not scored" in said
    assert set(found["temperatures"]) == {"audio", "text", "audio+text"}
