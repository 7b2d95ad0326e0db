"""Test data are read by --final alone, once for each model, and every reading is in the ledger."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.corpora import TEXT_RUN, write_manifest
from tests.training.test_commands import TINY_MODEL
from training import ablate, evaluate, ledger, loop, probe
from training.command import cli
from training.config import TrainConfig
from training.corpora.records import Corpus, CorpusError, Dialogue, Utterance
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
    reading = {path.name for path in files if re.search(r"\.final_test\(|split [!=]= \"test\"", path.read_text())}
    # records.py defines it; voices.py is called by export/voices.py through the ledger.
    assert reading == {"records.py", "evaluate.py", "voices.py"}
    callers = {path.name for path in files if "unseen_sets(" in path.read_text() or "final_sets(" in path.read_text()}
    assert callers == {"evaluate.py", "score.py", "voices.py"}


def test_dialogues_of_the_own_test_split_are_never_dev_in_a_fold():
    turns = (Utterance("Hello.", 0),)
    splits = ("train", "train", "train", "test", "train")
    corpus = Corpus("mine", ("calm",), tuple(Dialogue(str(n), s, turns, fold=n) for n, s in enumerate(splits)))
    for fold in range(5):
        dev = corpus.for_fold(fold).split("dev")
        assert dev
        assert all(corpus.dialogues[int(d.name)].split != "test" for d in dev)


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
    assert "the ledger's scores are used: mine test, text" in capsys.readouterr().err
    assert ledger.scores_of(entry["sha256"]) == first


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
    assert list(entry["data"]) == ["features-v test, audio+text, 5 folds, 2 seeds"]
    assert evaluate.final_of_runs(tmp_path / "run") == result
    assert len(ledger.entries()) == 1


def test_only_test_sets_that_are_new_are_scored():
    calls = []

    def score(names):
        calls.append(names)
        return {name: {"uar": float(len(calls))} for name in names}

    assert ledger.score_once("m", "k", {"a": "1"}, score) == {"a": {"uar": 1.0}}
    assert ledger.score_once("m", "k", {"a": "1", "b": "2"}, score) == {"a": {"uar": 1.0}, "b": {"uar": 2.0}}
    assert ledger.score_once("m", "k", {"b": "2"}, score) == {"b": {"uar": 2.0}}
    ledger.score_once("m", "k", {"a": "changed data"}, score)
    ledger.score_once("m", "another model", {"a": "1"}, score)
    assert calls == [["a"], ["b"], ["a"], ["a"]]
    assert ledger.scores_of("k")["a"] == {"uar": 1.0}, "the first reading counts"


def test_damaged_ledger_raises_with_the_line():
    ledger.score_once("m", "k", {"a": "1"}, lambda names: {"a": {}})
    with ledger.ledger_path().open("a") as file:
        file.write("{}\n")
    with pytest.raises(TrainingError, match=r"ledger.jsonl:2 is not an entry"):
        ledger.entries()


def test_options_for_choosing_are_refused_with_final(tmp_path):
    with pytest.raises(SystemExit, match="--stress is for choosing"):
        cli(evaluate.main, [str(tmp_path), "--final", "--stress"])
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="--on, --use and --skip are for a single checkpoint"):
        cli(evaluate.main, [str(tmp_path), "--final", "--use", "text"])
