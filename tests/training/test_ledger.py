"""Test data are read by --final alone, once for each model, and every reading is in the ledger."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.corpora import TEXT_RUN, write_manifest
from tests.training.test_commands import TINY_MODEL
from training import ablate, evaluate, ledger, loop, probe, voices
from training.config import TrainConfig
from training.corpora.records import Corpus, CorpusError
from training.errors import TrainingError
from training.train import Plan, run_plan


@pytest.fixture
def no_test_data(monkeypatch):
    """Reading test dialogues fails the test."""
    monkeypatch.setattr(Corpus, "final_test", lambda self: pytest.fail(f"test data of {self.name} were read"))


@pytest.fixture
def vectors(tmp_path):
    """A corpus of vectors in five folds."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 100)
    x = (rng.standard_normal((100, 4)) + label[:, None]).astype(np.float32)
    ids = {"dialogue_id": np.arange(100) // 4, "utterance_id": np.arange(100) % 4}
    np.savez(tmp_path / "v.npz", text=x, audio=x, emotion=np.array(["anger", "joy"])[label], **ids)
    return TrainConfig(corpus=f"features:{tmp_path / 'v.npz'}", epochs=1, learning_rate=3e-3)


def test_training_choosing_and_scoring_never_read_test(no_test_data, vectors, tmp_path, small_corpora):
    result = run_plan(vectors, tmp_path / "run", Plan((0,), "all"), TINY_MODEL)
    assert result["scored_on"] == "dev"
    ablate.ablate(replace(vectors, fold=0), tmp_path / "ablate", Plan((0,)), TINY_MODEL, ("no gate",))
    probe.probe(replace(vectors, fold=0))
    loop.train(replace(TEXT_RUN, epochs=1), small_corpora / "text")
    scores = evaluate.evaluate(small_corpora / "text", stressed=True)["scores"]
    assert set(scores) == {"meld dev, text", "meld dev, text, after 100 foreign turns", "meld dev, text, noise beside"}
    assert not ledger.entries()


def test_test_dialogues_are_not_a_split():
    with pytest.raises(CorpusError, match="read once, at the end"):
        Corpus("mine", ("joy",), ()).split("test")


def test_only_commands_with_final_read_test_dialogues():
    files = [path for folder in ("training", "export", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    reading = {path.name for path in files if re.search(r"\.final_test\(", path.read_text())}
    assert reading == {"evaluate.py", "voices.py"}
    for name in reading:
        text = (ROOT / "training" / name).read_text()
        assert "ledger.score_once" in text
        assert "if final" in text


def test_a_model_is_scored_on_the_same_test_data_once(tmp_path, small_corpora, capsys, monkeypatch):
    corpus = f"manifest:{write_manifest(tmp_path / 'own')}"
    loop.train(replace(TEXT_RUN, corpus=corpus, also=(), epochs=1), tmp_path / "run")
    first = evaluate.evaluate(tmp_path / "run", final=True)["scores"]
    (entry,) = ledger.entries()
    assert entry["scores"] == first
    assert entry["model"] == "run"
    assert set(entry["data"]) == {"mine test, text"}
    assert str(tmp_path) not in json.dumps(entry), "no paths of this machine"
    monkeypatch.setattr(evaluate, "score_predictions", lambda *_: pytest.fail("test was scored again"))
    assert evaluate.evaluate(tmp_path / "run", final=True)["scores"] == first
    assert len(ledger.entries()) == 1
    assert "already scored on these test data" in capsys.readouterr().err


def test_other_test_data_make_another_entry(tmp_path, small_corpora):
    path = write_manifest(tmp_path / "own")
    loop.train(replace(TEXT_RUN, corpus=f"manifest:{path}", also=(), epochs=1), tmp_path / "run")
    evaluate.evaluate(tmp_path / "run", final=True)
    path.write_text(path.read_text().replace(" it is", " it was"))
    evaluate.evaluate(tmp_path / "run", final=True)
    assert len(ledger.entries()) == 2


def test_folds_are_pooled_in_one_entry(vectors, tmp_path):
    run_plan(vectors, tmp_path / "run", Plan((0, 1), "all"), TINY_MODEL)
    result = evaluate.final_of_runs(tmp_path / "run")
    assert [r["utterances"] for r in result["runs"]] == [100, 100], "every utterance is in one test fold"
    (entry,) = ledger.entries()
    assert len(entry["data"]) == 5


def test_damaged_ledger_raises(tmp_path):
    ledger.ledger_path().write_text("{}\n")
    with pytest.raises(TrainingError, match="is not an entry"):
        ledger.entries()


def test_histories_are_of_the_same_speaker_and_unlabelled(small_corpora):
    clips = voices.corpora.load("nemo").split("train") + voices.corpora.load("ravdess").split("train")
    for kind in ("life-like", "one mood"):
        dialogues = voices.with_history(clips, kind)
        speakers = [{t.speaker for t in d.turns} for d in dialogues]
        assert dialogues
        assert all(len(s) == 1 for s in speakers)
        assert all(len(d.turns) == 17 and all(t.label == -1 for t in d.turns[:-1]) for d in dialogues)
    assert not voices.with_history([replace(c, turns=(replace(c.turns[0], speaker=None),)) for c in clips], "life-like")


def test_unseen_uar_counts_only_labels_that_occur():
    import torch

    logits = torch.tensor([[0.0, 9.0, 1.0], [0.0, 9.0, -1.0]])
    padded = torch.cat([logits, torch.full((2, 4), 20.0)], 1)
    assert voices.unseen_uar(padded, torch.tensor([2, 0])) == 1.0


def test_linear_model_hears_labels_of_another_corpus(small_corpora):
    """The pitch of the generated clips is their label, in all corpora."""
    encoder = voices.encoders.load_audio()
    states = voices.PooledStates(encoder, voices.encoders.model_config())
    linear = voices.fit_linear(states, ("nemo",), "first turn")
    clips = voices.corpora.load("ravdess").split("dev")
    uar = voices.unseen_uar(linear(states.matrix(clips)), voices.torch.tensor([c.turns[0].label for c in clips]))
    assert uar > 0.6
