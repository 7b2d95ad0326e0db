"""Both tasks of the recipe on generated corpora: training, selection, checkpoints and resuming."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.corpora import PAIR_RUN, TEXT_RUN
from training import checkpoint, encoders, loop, state
from training.config import PairConfig
from training.errors import TrainingError
from training.evaluate import evaluate
from training.loop import train

AUDIO_RUN = replace(TEXT_RUN, corpus="ravdess", also=(), use="audio", text_tuning="frozen", audio_tuning="full")


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_both_tasks_train_select_and_store(small_corpora):
    text = train(TEXT_RUN, small_corpora / "text")
    assert text["score"] > 0.6, "texts determine the label"
    lines = log_lines(small_corpora / "text")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert max(line["score"] for line in lines) == text["score"]

    fusion = train(PAIR_RUN, small_corpora / "fusion", init=small_corpora / "text")
    assert fusion["text_weighted_f1"] > 0.6
    assert fusion["audio_uar"] > 0.4, "the pitch of clips determines the label"

    model, text_encoder, _, about = checkpoint.load(small_corpora / "fusion")
    assert about["dev"]["score"] == fusion["score"]
    assert about["corpora"] == ["meld", "dailytalk", "ravdess", "nemo", "emogator", "plain"]
    stored = checkpoint.load(small_corpora / "text").text.state_dict()
    for name, value in text_encoder.state_dict().items():
        assert torch.equal(value, stored[name]), "the pair task must not change the text encoder"
    assert not model.training

    result = evaluate(small_corpora / "fusion", stressed=True)
    assert set(result["temperatures"]) == {"audio", "text", "audio+text"}
    scores = result["scores"]
    assert scores["meld dev, text"]["weighted_f1"] > 0.6
    assert scores["meld dev, text, after 100 foreign turns"]["utterances"] == scores["meld dev, text"]["utterances"]
    assert set(scores["ravdess dev, audio"]["by_gender"]) == {"F"}
    low, high = scores["meld dev, text"]["interval_95"]["weighted_f1"]
    assert low <= scores["meld dev, text"]["weighted_f1"] <= high
    assert checkpoint.load(small_corpora / "fusion").about["temperatures"] == result["temperatures"]


class Killed(Exception):
    """Stands for a killed process."""


@pytest.mark.slow
def test_resumed_run_equals_an_unbroken_run(small_corpora, monkeypatch):
    """The run is killed in its third epoch. All losses and weights are equal, with averaged weights."""
    config = replace(TEXT_RUN, epochs=4, seed=5, ema=0.9)
    train(config, small_corpora / "unbroken")
    evaluations = []

    def evaluate_until_killed(self):
        evaluations.append(1)
        if len(evaluations) == 3:
            raise Killed
        return original(self)

    original = loop.CorpusTask.evaluate
    monkeypatch.setattr(loop.CorpusTask, "evaluate", evaluate_until_killed)
    with pytest.raises(Killed):
        train(config, small_corpora / "resumed")
    monkeypatch.setattr(loop.CorpusTask, "evaluate", original)
    train(config, small_corpora / "resumed")
    unbroken, resumed = (log_lines(small_corpora / name) for name in ("unbroken", "resumed"))
    assert [line["loss"] for line in unbroken] == [line["loss"] for line in resumed]
    a, b = (checkpoint.load(small_corpora / name).hbaf.state_dict() for name in ("unbroken", "resumed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_run_with_other_settings_is_not_resumed(small_corpora):
    train(replace(TEXT_RUN, epochs=1), small_corpora / "run")
    with pytest.raises(TrainingError, match=r"learning_rate 0.003 there, 0.002 now.*--restart"):
        train(replace(TEXT_RUN, epochs=1, learning_rate=2e-3), small_corpora / "run")
    with pytest.raises(TrainingError, match=r"init 'None' there, .*run' now"):
        train(replace(TEXT_RUN, epochs=1), small_corpora / "run", init=small_corpora / "run")
    with pytest.raises(TrainingError, match=r"model {'gate': True} there, {'gate': False} now"):
        train(replace(TEXT_RUN, epochs=1), small_corpora / "run", replace(encoders.model_config(), gate=False))
    train(replace(TEXT_RUN, epochs=1, learning_rate=2e-3), small_corpora / "run", restart=True)
    assert (small_corpora / "run" / state.STATE_FILE).exists()


def test_restart_removes_the_earlier_run(small_corpora):
    config = replace(AUDIO_RUN, epochs=1)
    train(config, small_corpora / "run")
    assert (small_corpora / "run" / "audio.safetensors").exists()
    train(replace(config, audio_tuning="frozen"), small_corpora / "run", restart=True)
    assert not (small_corpora / "run" / "audio.safetensors").exists(), "it belongs to the old run"
    assert len(log_lines(small_corpora / "run")) == 1


def test_early_stopping_waits_for_patience_epochs(small_corpora, monkeypatch):
    monkeypatch.setattr(loop.CorpusTask, "evaluate", lambda self: {"score": 0.5})
    train(replace(TEXT_RUN, epochs=20, patience=2), small_corpora / "run")
    assert len(log_lines(small_corpora / "run")) == 3


@pytest.mark.slow
def test_trained_audio_encoder_is_stored_and_loaded(small_corpora):
    train(replace(AUDIO_RUN, epochs=2), small_corpora / "audio")
    packaged = checkpoint.encoders.load_audio().state_dict()
    trained = checkpoint.load(small_corpora / "audio").audio.state_dict()
    assert not torch.equal(packaged["conv1.weight"], trained["conv1.weight"])
    train(replace(AUDIO_RUN, audio_tuning="frozen", epochs=1), small_corpora / "next", init=small_corpora / "audio")
    loaded = checkpoint.load(small_corpora / "next").audio.state_dict()
    assert torch.equal(loaded["conv1.weight"], trained["conv1.weight"])


def test_open_recipe_needs_no_restricted_corpus(small_corpora, capsys):
    for corpus in ("meld", "ravdess", "nemo"):
        shutil.rmtree(small_corpora / "data" / corpus)
    lines = (small_corpora / "data" / "dailytalk" / "dialogues.jsonl").read_text().splitlines()
    lines.append(lines[0].replace('"train"', '"val"'))
    (small_corpora / "data" / "dailytalk" / "dialogues.jsonl").write_text("\n".join(lines))
    rows = (small_corpora / "data" / "emogator" / "manifest.csv").read_text().splitlines()
    (small_corpora / "data" / "emogator" / "manifest.csv").write_text("\n".join([*rows, "0.flac,10,anger"]))
    pairs = PairConfig(clips=("emogator",), clip_turns=8)
    train(replace(PAIR_RUN, corpus="dailytalk", also=(), pairs=pairs, epochs=1), small_corpora / "open")
    assert checkpoint.load(small_corpora / "open").about["corpora"] == ["dailytalk", "emogator", "plain"]
    result = evaluate(small_corpora / "open")
    assert set(result["scores"]) == {"dailytalk dev, text", "emogator dev, audio"}
    with pytest.raises(TrainingError, match="no labelled test turns"):
        evaluate(small_corpora / "open", final=True)
    messages = " ".join(capsys.readouterr().err.split())
    assert "meld is not scored" in messages
    assert set(result["temperatures"]) == {"audio", "text", "audio+text"}
