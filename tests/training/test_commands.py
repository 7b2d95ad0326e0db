"""The commands a laboratory and a robot maker use: check, train over seeds and folds, ablate, finetune, evaluate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import speech
from tests.made import TALK, WORDS
from training import ablate, checkpoint, corpora, evaluate, finetune, from_bundle, learner, loop, probe
from training.check import check, skip_list
from training.config import ModelConfig, TrainConfig
from training.errors import TrainingError
from training.stages import read_skip_list
from training.train import Plan, carry_out, pooled, table

TINY = ModelConfig(width=16, heads=2, contrastive_dim=8, window=4)


@pytest.fixture
def features(tmp_path):
    """Two modalities that each know a little: what is said is in the first axis, how in the second."""
    rng = np.random.default_rng(1)
    count = 300
    label = rng.integers(0, 3, count)
    text, audio = (rng.standard_normal((count, 5)).astype(np.float32) for _ in range(2))
    text[:, 0] += 1.5 * (label == 0) - 1.5 * (label == 1)
    audio[:, 0] += 1.5 * (label == 1) - 1.5 * (label == 2)
    names = np.array(["anger", "joy", "sadness"])[label]
    where = {"dialogue_id": np.arange(count) // 5, "utterance_id": np.arange(count) % 5}
    np.savez(tmp_path / "f.npz", text=text, audio=audio, emotion=names, **where)
    return f"features:{tmp_path / 'f.npz'}"


@pytest.mark.slow
def test_seeds_and_folds_are_pooled_and_not_repeated(tmp_path, features, monkeypatch):
    config = TrainConfig(corpus=features, epochs=2, learning_rate=3e-3)
    plan = Plan((0, 1), "all")
    found = carry_out(config, tmp_path / "run", plan, TINY)
    assert [r["utterances"] for r in found["runs"]] == [300, 300], "every utterance is tested once"
    assert found["mean"]["weighted_f1"] == pytest.approx(np.mean([r["weighted_f1"] for r in found["runs"]]))
    assert found["sd"]["weighted_f1"] > 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["folds"] == 5
    monkeypatch.setattr(loop.Run, "_epoch", lambda self: pytest.fail("a finished run was trained again"))
    again = carry_out(config, tmp_path / "run", plan, TINY)
    assert again["mean"] == found["mean"]
    assert "±" not in str(table({"x": found}).columns[0])


def test_runs_of_a_plan_go_on_from_their_own_seeds(tmp_path, features):
    config = TrainConfig(corpus=features, epochs=1, learning_rate=3e-3, fold=0)
    carry_out(config, tmp_path / "first", Plan((0, 1)), TINY)
    still = replace(config, learning_rate=0.0)  # nothing is learned, so each run shows what it started from
    carry_out(still, tmp_path / "then", Plan((0, 1), init=tmp_path / "first"))
    for seed in ("seed0-fold0", "seed1-fold0"):
        first, then = (checkpoint.load(tmp_path / plan / seed).hbaf.state_dict() for plan in ("first", "then"))
        assert all(torch.equal(first[name], then[name]) for name in first)
    with pytest.raises(TrainingError, match="holds none named seed2-fold0; run its seeds and folds first"):
        carry_out(still, tmp_path / "more", Plan((0, 2), init=tmp_path / "first"))
    carry_out(still, tmp_path / "one", Plan((1,), init=tmp_path / "first"))  # a seed by itself
    first, then = (checkpoint.load(tmp_path / at).hbaf.state_dict() for at in ("first/seed1-fold0", "one"))
    assert all(torch.equal(first[name], then[name]) for name in first)


def test_the_floor_uses_both_modalities_and_only_the_training_turns(features):
    found = {}
    for use in ("audio+text", "text", "audio"):
        said = [probe.probe(TrainConfig(corpus=features, use=use, fold=k)) for k in range(5)]
        found[use] = pooled(said, ("anger", "joy", "sadness"))
    assert found["text"]["utterances"] == 300, "every utterance is tested once"
    assert found["audio+text"]["weighted_f1"] > max(found[u]["weighted_f1"] for u in ("text", "audio")) + 0.05
    assert found["text"]["weighted_f1"] > 0.5, "a third is chance"


def test_the_floor_reads_encoders(small):
    said = probe.probe(replace(TALK, also=()), learner.ModelConfig())
    assert said["logits"].shape[0] == len(said["labels"]) > 0
    assert torch.isfinite(said["logits"]).all()


@pytest.mark.slow
def test_ablation_shows_what_a_modality_is_worth(tmp_path, features):
    config = TrainConfig(corpus=features, epochs=6, learning_rate=3e-3, turns=30)
    names = ("audio only", "without fusion module (concatenation)", "bidirectional (offline)")
    found = ablate.ablate(config, tmp_path / "run", Plan((0,), "all"), TINY, names)
    assert list(found) == [ablate.WHOLE, *names]
    lost = found["audio only"]["against_whole"]
    assert lost["difference"] > 0.05
    assert lost["p"] < 0.05
    stored = {n: checkpoint.describe(Path(r["folders"][0]))[1] for n, r in found.items()}
    assert not stored[names[1]].fusion
    assert not stored[names[2]].causal
    assert stored[ablate.WHOLE].fusion
    assert ablate.table(found).row_count == 4
    with pytest.raises(TrainingError, match="unknown variant 'no brain'; there are whole model"):
        ablate.ablate(config, tmp_path / "run", Plan((0,), "all"), TINY, ("no brain",))


def test_every_variant_is_a_model_of_its_own():
    """The paper's three and ours; each differs from the whole in something, and the whole in nothing."""
    configs = [ModelConfig(), TrainConfig(), TrainConfig().loss]
    for name, left_out in ablate.VARIANTS.items():
        assert ([ablate.changed(c, left_out) for c in configs] == configs) == (name == ablate.WHOLE)


def test_the_bidirectional_variant_is_called_that(tmp_path, features):
    config = TrainConfig(corpus=features, fold=0, epochs=1)
    loop.train(config, tmp_path / "run", replace(TINY, causal=False))
    (name, *_) = evaluate.evaluate(tmp_path / "run")["scores"]
    assert name.endswith("bidirectional")


def mine(folder, count=40):
    """A manifest with labels of its own that the words give away, and a clip to every other turn."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = ("pleased", "upset")
    lines = []
    for n in range(count):
        label = n % 2
        clip = f"{n}.wav"
        soundfile.write(folder / clip, speech(0.3, seed=n), 16_000)
        split = ("train", "train", "train", "dev", "test")[n // 2 % 5]
        word = (WORDS["joy"], WORDS["anger"])[label]
        line = {"text": f"{word} it is", "label": labels[label], "dialogue": f"d{n // 2}", "speaker": "ab"[n % 2],
                "split": split}  # fmt: skip
        lines.append(json.dumps(line | ({"audio": clip} if n % 2 else {})))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder / "mine.jsonl"


def test_check_finds_what_training_cannot_use(tmp_path):
    path = mine(tmp_path / "data", 10)
    folder = path.parent
    soundfile.write(folder / "3.wav", np.zeros(8_000), 16_000)
    soundfile.write(folder / "5.wav", speech(0.05), 16_000)
    (folder / "7.wav").write_bytes(b"not audio at all")
    (folder / "9.wav").write_bytes((folder / "1.wav").read_bytes())
    found = check(corpora.load(str(path)))
    assert {fault: len(clips) for fault, clips in found["faults"].items()} == {
        "silent": 1, "short": 1, "broken": 1, "double": 1}  # fmt: skip
    assert found["counts"]["train"]["utterances"] == 6
    assert found["counts"]["test"]["pleased"] == 1
    (tmp_path / "skip.txt").write_text(skip_list(found))
    skipped = read_skip_list(str(tmp_path / "skip.txt"))
    assert sorted(Path(p).name for p in skipped) == ["3.wav", "5.wav", "7.wav", "9.wav"]
    left = corpora.load(str(path)).without(skipped)
    assert sum(t.audio is not None for d in left.dialogues for t in d.turns) == 1
    assert sum(len(d.turns) for d in left.dialogues) == 10, "their words stay"
    corpus = corpora.load(str(path))
    (folder / "1.wav").unlink()
    assert "missing" in check(corpus)["faults"], "gone since the corpus was read"


def test_finetune_goes_on_from_the_default_bundle_with_own_labels(small, tiny, monkeypatch):
    monkeypatch.setattr(finetune, "DEFAULT", tiny.bundle)
    config = replace(finetune.RECIPE, corpus=str(mine(small / "own")), epochs=6, learning_rate=3e-3)
    result = finetune.finetune(config, small / "run")
    assert result["before"] is None, "the default model cannot be scored on labels it does not know"
    stored = checkpoint.load(small / "run")
    assert stored.hbaf.config.labels == ("pleased", "upset")
    assert stored.about["corpora"][-1] == "manifest"
    (name,) = [n for n in result["scores"] if n.endswith("test, text")]
    assert result["scores"][name]["utterances"] == 8
    base = checkpoint.load(small / "run" / "base")
    assert torch.equal(base.text.state_dict()["embeddings.word_embeddings.weight"],
                       stored.text.state_dict()["embeddings.word_embeddings.weight"])  # fmt: skip


def test_what_the_default_model_learned_from_binds_what_is_made_of_it(tiny, small, monkeypatch, tmp_path):
    """RAVDESS two steps back is RAVDESS still."""
    import shutil

    from export.bundle import data_of, licence_of

    bundle = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["corpora"] = ["meld", "ravdess", "plain"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(finetune, "DEFAULT", bundle)
    config = replace(finetune.RECIPE, corpus=str(mine(small / "own", 20)), epochs=1)
    finetune.finetune(config, small / "run")
    seen = checkpoint.describe(small / "run")[0]["corpora"]
    assert seen == ["meld", "ravdess", "plain", "manifest"]
    assert licence_of(seen)["id"] == "CC-BY-NC-SA-4.0"
    assert any("AMI" in d["name"] for d in data_of(seen))


def test_dev_scores_are_not_called_test(tmp_path):
    path = mine(tmp_path, 20)
    assert corpora.load(str(path)).scored_split == "test"
    path.write_text(path.read_text().replace('"test"', '"train"'))
    assert corpora.load(str(path)).scored_split == "dev"


def test_what_does_not_fit_is_said_before_training(small, tmp_path, features):
    loop.train(replace(TALK, epochs=1), small / "text")
    with pytest.raises(TrainingError, match="brings vectors, the model has encoders"):
        loop.train(TrainConfig(corpus=features, fold=0), small / "x", init=small / "text")
    flags = replace(learner.ModelConfig(), utterance_layers=1)
    with pytest.raises(TrainingError, match=r"is a model with utterance_layers 2; leave --utterance-layers out"):
        loop.train(replace(TALK, epochs=1), small / "x", flags, small / "text")
    (tmp_path / "skip.txt").write_text("elsewhere/1.wav\tdouble\n")
    with pytest.raises(TrainingError, match="none of the 1 clips to skip is one of meld's"):
        loop.train(replace(TALK, skip=str(tmp_path / "skip.txt")), small / "x")


def test_a_bundle_gives_its_weights_back(tiny, small, monkeypatch):
    from hbaf_edge.bundle import load_bundle

    model, text, audio = from_bundle.restore(load_bundle(tiny.bundle))
    for mine_, theirs in ((model, tiny.model), (text, tiny.text)):
        expected = theirs.state_dict()
        for name, value in mine_.state_dict().items():
            if name in dict(theirs.named_parameters()) and not from_bundle.NOT_SHIPPED.match(name):
                was = expected[name]
                if name.endswith("mix.logits"):  # what a softmax makes of them is what a bundle holds
                    value, was = value.softmax(0), was.softmax(0)
                assert torch.allclose(value, was, atol=2e-6), name
    assert torch.equal(audio.state_dict()["blocks.0.qkv.weight"], tiny.audio.state_dict()["blocks.0.qkv.weight"])


def test_a_checkpoint_of_another_version_is_said(tmp_path):
    with pytest.raises(TrainingError, match="is not a checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"labels": ["a"], "wings": 2}, "about": {}}')
    with pytest.raises(TrainingError, match=r"wings.*another version"):
        checkpoint.load(tmp_path)


def test_other_labels_get_fresh_last_layers_and_keep_the_rest(tiny):
    found = learner.relabelled(tiny.model, ("glad", "cross"))
    old, new = tiny.model.state_dict(), found.state_dict()
    assert new["head.3.weight"].shape == (2, 32)
    assert torch.equal(new["dialogue_scope.0.halves.0.w_g"], old["dialogue_scope.0.halves.0.w_g"])
    assert torch.equal(new["head.0.weight"], old["head.0.weight"])
    seven = learner.relabelled(tiny.model, tuple("abcdefg"))
    assert not torch.equal(seven.state_dict()["head.3.weight"], old["head.3.weight"]), "as many, but others"
    assert learner.relabelled(tiny.model, tiny.model.config.labels) is tiny.model


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"use": "video"}, "use is 'video'; expected one of audio"),
        ({"epochs": 0}, "epochs is 0; 1 is the least"),
        ({"drop_text": 2.0}, "it is a share"),
        ({"corpus": "melt"}, "unknown corpus 'melt'; there are meld"),
        ({"also": ("dailytalk@much",)}, "is not a number"),
        ({"skip": "nowhere.txt"}, "training.check writes one"),
        ({"fold": 7}, "fold 7 cannot test"),
        ({"also": ("dailytalk@2",)}, "it goes from 0 to 1"),
        ({"audio_seconds": 0.0}, "0.2 is the least"),
    ],
)
def test_wrong_choices_are_said_before_training(small, wrong, said):
    with pytest.raises(TrainingError, match=said):
        loop.train(replace(TALK, **wrong), small / "run")
    assert not (small / "run").exists()
