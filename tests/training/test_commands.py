"""The commands check, train (seeds and folds), probe, ablate, finetune, evaluate and from_bundle."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import speech
from tests.corpora import TEXT_RUN, write_manifest
from training import ablate, checkpoint, corpora, evaluate, finetune, from_bundle, loop, probe, training_module
from training.check import check, skip_list
from training.config import ModelConfig, TrainConfig
from training.errors import TrainingError
from training.tasks import read_skip_list
from training.train import Plan, pooled_scores, run_plan, table

TINY_MODEL = ModelConfig(width=16, heads=2, contrastive_dim=8, window=4)


@pytest.fixture
def features(tmp_path):
    """Vectors of two modalities. Text separates the labels 0 and 1, audio the labels 1 and 2."""
    rng = np.random.default_rng(1)
    count = 300
    label = rng.integers(0, 3, count)
    text, audio = (rng.standard_normal((count, 5)).astype(np.float32) for _ in range(2))
    text[:, 0] += 1.5 * (label == 0) - 1.5 * (label == 1)
    audio[:, 0] += 1.5 * (label == 1) - 1.5 * (label == 2)
    names = np.array(["anger", "joy", "sadness"])[label]
    ids = {"dialogue_id": np.arange(count) // 5, "utterance_id": np.arange(count) % 5}
    np.savez(tmp_path / "f.npz", text=text, audio=audio, emotion=names, **ids)
    return f"features:{tmp_path / 'f.npz'}"


@pytest.mark.slow
def test_folds_are_pooled_and_finished_runs_not_repeated(tmp_path, features, monkeypatch):
    config = TrainConfig(corpus=features, epochs=2, learning_rate=3e-3)
    plan = Plan((0, 1), "all")
    result = run_plan(config, tmp_path / "run", plan, TINY_MODEL)
    assert [r["utterances"] for r in result["runs"]] == [300, 300], "every utterance is in one dev fold"
    assert result["mean"]["weighted_f1"] == pytest.approx(np.mean([r["weighted_f1"] for r in result["runs"]]))
    assert result["sd"]["weighted_f1"] > 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["folds"] == 5
    monkeypatch.setattr(loop.Run, "_epoch", lambda self: pytest.fail("a finished run was trained again"))
    again = run_plan(config, tmp_path / "run", plan, TINY_MODEL)
    assert again["mean"] == result["mean"]
    assert "±" not in str(table({"x": result}).columns[0])


def test_each_run_of_a_plan_starts_from_the_checkpoint_of_its_seed(tmp_path, features):
    config = TrainConfig(corpus=features, epochs=1, learning_rate=3e-3, fold=0)
    run_plan(config, tmp_path / "first", Plan((0, 1)), TINY_MODEL)
    frozen = replace(config, learning_rate=0.0)  # the weights of each run stay those of its start
    run_plan(frozen, tmp_path / "then", Plan((0, 1), init=tmp_path / "first"))
    for seed in ("seed0-fold0", "seed1-fold0"):
        first, then = (checkpoint.load(tmp_path / plan / seed).hbaf.state_dict() for plan in ("first", "then"))
        assert all(torch.equal(first[name], then[name]) for name in first)
    with pytest.raises(TrainingError, match="has none named seed2-fold0; train its seeds and folds first"):
        run_plan(frozen, tmp_path / "more", Plan((0, 2), init=tmp_path / "first"))
    run_plan(frozen, tmp_path / "one", Plan((1,), init=tmp_path / "first"))  # a single seed
    first, then = (checkpoint.load(tmp_path / at).hbaf.state_dict() for at in ("first/seed1-fold0", "one"))
    assert all(torch.equal(first[name], then[name]) for name in first)


def test_probe_is_better_with_both_modalities(features):
    results = {}
    for use in ("audio+text", "text", "audio"):
        predictions = [probe.probe(TrainConfig(corpus=features, use=use, fold=k)) for k in range(5)]
        results[use] = pooled_scores(predictions, ("anger", "joy", "sadness"))
    assert results["text"]["utterances"] == 300, "every utterance is in one dev fold"
    assert results["audio+text"]["weighted_f1"] > max(results[u]["weighted_f1"] for u in ("text", "audio")) + 0.05
    assert results["text"]["weighted_f1"] > 0.5, "chance is 1/3"


def test_probe_works_with_encoders(small_corpora):
    predictions = probe.probe(replace(TEXT_RUN, also=()), training_module.ModelConfig())
    assert predictions["logits"].shape[0] == len(predictions["labels"]) > 0
    assert torch.isfinite(predictions["logits"]).all()


@pytest.mark.slow
def test_ablation_measures_the_loss_of_a_modality(tmp_path, features):
    config = TrainConfig(corpus=features, epochs=6, learning_rate=3e-3, turns=30)
    names = ("audio only", "without fusion module (concatenation)", "bidirectional (offline)")
    results = ablate.ablate(config, tmp_path / "run", Plan((0,), "all"), TINY_MODEL, names)
    assert list(results) == [ablate.WHOLE, *names]
    lost = results["audio only"]["against_whole"]
    assert lost["difference"] > 0.05
    assert lost["p"] < 0.05
    stored = {n: checkpoint.describe(Path(r["folders"][0]))[1] for n, r in results.items()}
    assert not stored[names[1]].fusion
    assert not stored[names[2]].causal
    assert stored[ablate.WHOLE].fusion
    rows = ablate.table_rows(results)
    assert [row[0] for row in rows] == list(results)
    assert rows[0][4] is None
    assert all(str(row[4]).startswith(("+", "-")) for row in rows[1:])
    with pytest.raises(TrainingError, match="unknown variant 'no brain'; expected one of whole model"):
        ablate.ablate(config, tmp_path / "run", Plan((0,), "all"), TINY_MODEL, ("no brain",))


def test_every_variant_changes_some_setting():
    configs = [ModelConfig(), TrainConfig(), TrainConfig().loss]
    for name, changes in ablate.VARIANTS.items():
        assert ([ablate.with_changes(c, changes) for c in configs] == configs) == (name == ablate.WHOLE)


def test_scores_of_a_bidirectional_model_are_labelled(tmp_path, features):
    config = TrainConfig(corpus=features, fold=0, epochs=1)
    loop.train(config, tmp_path / "run", replace(TINY_MODEL, causal=False))
    (name, *_) = evaluate.evaluate(tmp_path / "run")["scores"]
    assert name.endswith("bidirectional")


def test_check_finds_unusable_clips(tmp_path):
    path = write_manifest(tmp_path / "data", 10)
    folder = path.parent
    soundfile.write(folder / "3.wav", np.zeros(8_000), 16_000)
    soundfile.write(folder / "5.wav", speech(0.05), 16_000)
    (folder / "7.wav").write_bytes(b"not audio at all")
    (folder / "9.wav").write_bytes((folder / "1.wav").read_bytes())
    result = check(corpora.load(str(path)))
    assert {fault: len(clips) for fault, clips in result["faults"].items()} == {
        "silent": 1, "short": 1, "broken": 1, "double": 1}  # fmt: skip
    assert result["counts"]["train"]["utterances"] == 6
    assert result["counts"]["test"]["pleased"] == 1
    (tmp_path / "skip.txt").write_text(skip_list(result))
    skipped = read_skip_list(str(tmp_path / "skip.txt"))
    assert sorted(Path(p).name for p in skipped) == ["3.wav", "5.wav", "7.wav", "9.wav"]
    usable = corpora.load(str(path)).without(skipped)
    assert sum(t.audio is not None for d in usable.dialogues for t in d.turns) == 1
    assert sum(len(d.turns) for d in usable.dialogues) == 10, "the text is kept"
    corpus = corpora.load(str(path))
    (folder / "1.wav").unlink()
    assert "missing" in check(corpus)["faults"], "the clip was removed after the corpus was read"


def test_finetune_starts_from_the_default_bundle_with_own_labels(small_corpora, tiny, monkeypatch):
    monkeypatch.setattr(finetune, "DEFAULT", tiny.bundle)
    config = replace(finetune.RECIPE, corpus=str(write_manifest(small_corpora / "own")), epochs=6, learning_rate=3e-3)
    result = finetune.finetune(config, small_corpora / "run")
    assert result["before"] is None, "the default model has other labels"
    stored = checkpoint.load(small_corpora / "run")
    assert stored.hbaf.config.labels == ("pleased", "upset")
    assert stored.about["corpora"][-1] == "manifest"
    (name,) = [n for n in result["scores"] if n.endswith("dev, text")]
    assert result["scores"][name]["utterances"] == 8
    base = checkpoint.load(small_corpora / "run" / "base")
    assert torch.equal(base.text.state_dict()["embeddings.word_embeddings.weight"],
                       stored.text.state_dict()["embeddings.word_embeddings.weight"])  # fmt: skip


def test_licence_of_the_base_model_applies_after_finetuning(tiny, small_corpora, monkeypatch, tmp_path):
    import shutil

    from export.bundle import data_of, licence_of

    bundle = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["corpora"] = ["meld", "ravdess", "plain"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(finetune, "DEFAULT", bundle)
    config = replace(finetune.RECIPE, corpus=str(write_manifest(small_corpora / "own", 20)), epochs=1)
    finetune.finetune(config, small_corpora / "run")
    seen = checkpoint.describe(small_corpora / "run")[0]["corpora"]
    assert seen == ["meld", "ravdess", "plain", "manifest"]
    assert licence_of(seen)["id"] == "CC-BY-NC-SA-4.0"
    assert any("AMI" in d["name"] for d in data_of(seen))


def test_mismatched_corpus_settings_or_skip_list_raises(small_corpora, tmp_path, features):
    loop.train(replace(TEXT_RUN, epochs=1), small_corpora / "text")
    with pytest.raises(TrainingError, match="contains vectors, but the model has encoders"):
        loop.train(TrainConfig(corpus=features, fold=0), small_corpora / "x", init=small_corpora / "text")
    flags = replace(training_module.ModelConfig(), utterance_layers=1)
    with pytest.raises(TrainingError, match=r"is a model with utterance_layers 2; leave --utterance-layers out"):
        loop.train(replace(TEXT_RUN, epochs=1), small_corpora / "x", flags, small_corpora / "text")
    (tmp_path / "skip.txt").write_text("elsewhere/1.wav\tdouble\n")
    with pytest.raises(TrainingError, match="none of the 1 clips to skip belongs to meld"):
        loop.train(replace(TEXT_RUN, skip=str(tmp_path / "skip.txt")), small_corpora / "x")


def test_checkpoint_of_a_bundle_has_its_weights(tiny, small_corpora, monkeypatch):
    from hbaf_edge.bundle import load_bundle

    model, text, audio = from_bundle.restore(load_bundle(tiny.bundle))
    for restored, theirs in ((model, tiny.model), (text, tiny.text)):
        expected = theirs.state_dict()
        for name, value in restored.state_dict().items():
            if name in dict(theirs.named_parameters()) and not from_bundle.NOT_IN_BUNDLE.match(name):
                original = expected[name]
                if name.endswith("mix.logits"):  # the bundle has their softmax
                    value, original = value.softmax(0), original.softmax(0)
                assert torch.allclose(value, original, atol=2e-6), name
    assert torch.equal(audio.state_dict()["blocks.0.qkv.weight"], tiny.audio.state_dict()["blocks.0.qkv.weight"])


def test_checkpoint_of_another_version_raises(tmp_path):
    with pytest.raises(TrainingError, match="is not a checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"labels": ["a"], "wings": 2}, "about": {}}')
    with pytest.raises(TrainingError, match=r"wings.*another version"):
        checkpoint.load(tmp_path)


def test_other_labels_get_new_output_layers(tiny):
    relabelled = training_module.with_labels(tiny.model, ("glad", "cross"))
    old, new = tiny.model.state_dict(), relabelled.state_dict()
    assert new["head.3.weight"].shape == (2, 32)
    assert torch.equal(new["dialogue_scope.0.halves.0.w_g"], old["dialogue_scope.0.halves.0.w_g"])
    assert torch.equal(new["head.0.weight"], old["head.0.weight"])
    seven = training_module.with_labels(tiny.model, tuple("abcdefg"))
    assert not torch.equal(seven.state_dict()["head.3.weight"], old["head.3.weight"]), "as many labels, but other ones"
    assert training_module.with_labels(tiny.model, tiny.model.config.labels) is tiny.model


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"use": "video"}, "use is 'video'; expected one of audio"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"drop_text": 2.0}, "it must be a share"),
        ({"corpus": "melt"}, "unknown corpus 'melt'; expected one of meld"),
        ({"also": ("dailytalk@much",)}, "is not a number"),
        ({"skip": "nowhere.txt"}, "training.check writes one"),
        ({"fold": 7}, "cannot test on fold 7"),
        ({"also": ("dailytalk@2",)}, "it must be from 0 to 1"),
        ({"audio_seconds": 0.0}, "it must be at least 0.2"),
    ],
)
def test_invalid_setting_raises_before_training(small_corpora, wrong, message):
    with pytest.raises(TrainingError, match=message):
        loop.train(replace(TEXT_RUN, **wrong), small_corpora / "run")
    assert not (small_corpora / "run").exists()
