"""Sensitivity and budget: blocks are ranked, the worst go back to float32, and an impossible budget raises."""

import json
from dataclasses import replace

import pytest

from export import quantize
from export.calibrate import calibrate
from export.compare import ModelOutputs, drift, labels_of, measures, predictions, score_turns
from export.qdq import Recipe
from export.quantize import Budget, BudgetError, search
from export.sensitivity import Cost, Evaluator, block_names, int8_blocks, rank_blocks
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from training.command import cli
from training.corpora.records import UNLABELLED


@pytest.fixture
def evaluator(tiny, dialogues):
    """Conversations labelled with the float32 predictions, so that every flip costs weighted F1."""
    bundle = load_bundle(tiny.bundle)
    labels = iter(bundle.labels.index(p.label) for p in predictions(HBAFRuntime(tiny.bundle), dialogues))
    labelled = [replace(d, turns=tuple(replace(u, label=next(labels)) for u in d.turns)) for d in dialogues]
    return Evaluator(bundle, labelled, threads=1)


def ordered_int8_blocks(evaluator, calibrated):
    """The blocks that the CPU profile computes in INT8, in model order."""
    blocks = int8_blocks(evaluator.bundle, calibrated, Recipe())
    assert not any("conv" in block for block in blocks)
    return [block for block in block_names(evaluator.bundle) if block in blocks]


def test_more_int8_costs_more_and_blocks_are_ranked_worst_first(evaluator, calibrated):
    assert evaluator.f1 == pytest.approx(1.0)
    blocks = tuple(ordered_int8_blocks(evaluator, calibrated))
    nothing = evaluator.cost(calibrated, Recipe(float_blocks=blocks), "none")
    everything = evaluator.cost(calibrated, Recipe(method="percentile", smoothquant=0.0), "all")
    assert nothing.kl_divergence < everything.kl_divergence
    assert nothing.rank <= everything.rank
    ranking = rank_blocks(evaluator.subset(12), calibrated, Recipe(float_blocks=blocks[3:]))
    assert {cost.block for cost in ranking} == set(blocks[:3])
    assert [cost.rank for cost in ranking] == sorted((cost.rank for cost in ranking), reverse=True)


def test_subset_holds_the_first_turns(evaluator):
    subset = evaluator.subset(13)
    assert [len(d.turns) for d in subset.dialogues] == [12, 1]
    assert len(subset.reference.probabilities) == len(subset.reference.embeddings) == 13
    assert len(evaluator.reference.probabilities) == 36


def test_search_moves_the_worst_blocks_to_float32_until_the_budget_allows(evaluator, calibrated, monkeypatch, capsys):
    """Only two blocks have a cost, so only these two go back to float32."""
    blocks = ordered_int8_blocks(evaluator, calibrated)
    f1_drops = {blocks[1]: 0.02, blocks[4]: 0.01}

    def cost(calibration, recipe, name):
        total = sum(drop for block, drop in f1_drops.items() if block not in recipe.float_blocks)
        return Cost(name, total, total, total, 1.0, 40.0)

    monkeypatch.setattr(evaluator, "cost", cost)
    monkeypatch.setattr(evaluator, "subset", lambda turns: evaluator)
    recipe, steps = search(evaluator, calibrated, Recipe(), Budget())
    assert recipe.float_blocks == tuple(sorted(f1_drops, key=lambda b: -f1_drops[b]))
    assert [step.f1_drop for step in steps] == pytest.approx([0.03, 0.01, 0.0])
    f1_drops |= dict.fromkeys(blocks, 0.02)
    with pytest.raises(BudgetError, match=r"even with \d+ blocks in float32.*The worst blocks:\n  \w+/"):
        search(evaluator, calibrated, Recipe(), Budget())


def test_budget_limits_f1_drop_flips_and_snr():
    assert Budget(min_snr=30).allows(Cost("a", 0.005, 0.02, 0, 1, 30.0))
    assert not Budget().allows(Cost("a", 0.006, 0.0, 0, 1, 30.0))
    assert not Budget().allows(Cost("a", 0.0, 0.03, 0, 1, 30.0))
    assert not Budget(min_snr=30).allows(Cost("a", 0.0, 0.0, 0, 1, 29.0))


def test_measures_count_differences(evaluator, dialogues):
    reference = evaluator.reference
    same = measures(reference, reference)
    assert (same["turns"], same["label_flips"], same["kl_divergence"], same["difference_max"]) == (36, 0, 0.0, 0.0)
    assert same["cosine_min"] == pytest.approx(1.0)
    swapped = reference.probabilities.copy()
    top_two = swapped[0].argsort()[-2:]
    swapped[0, top_two] = swapped[0, top_two[::-1]]
    changed = measures(ModelOutputs(swapped, reference.embeddings), reference)
    assert (changed["label_flips"], changed["flip_rate"]) == (1, 1 / 36)
    assert changed["kl_divergence"] > 0
    assert changed["difference_max"] == pytest.approx(abs(swapped - reference.probabilities).max())
    runtime = HBAFRuntime(evaluator.bundle.path)
    assert drift(predictions(runtime, dialogues), predictions(runtime, dialogues))["label_flips"] == 0


def test_scores_ignore_unlabelled_turns_and_labels_that_never_occur(evaluator):
    labels, names = labels_of(evaluator.dialogues), evaluator.bundle.labels
    assert score_turns(evaluator.reference, labels, names)["utterances"] == 36
    one_label = [label if label == labels[0] else UNLABELLED for label in labels]
    scored = score_turns(evaluator.reference, one_label, names)
    assert scored["utterances"] == labels.count(labels[0]) < 36 or len(set(labels)) == 1
    assert scored["f1"] == {names[labels[0]]: pytest.approx(1.0)}
    assert score_turns(evaluator.reference, [UNLABELLED] * 36, names) is None
    subset = evaluator.subset(12)
    subset.dialogues = [
        replace(d, turns=tuple(replace(u, label=UNLABELLED) for u in d.turns)) for d in subset.dialogues
    ]
    assert subset.weighted_f1(subset.reference) == 0.0


@pytest.mark.slow
def test_quantize_command_writes_bundle_and_ranking(
    tiny, dialogues, evaluator, quantise_small_matrices, tmp_path, monkeypatch, capsys
):
    calibrate(evaluator.bundle, dialogues, tmp_path / "c.json", threads=1)
    monkeypatch.setattr("export.sensitivity.conversations", lambda *a, **k: evaluator.dialogues)
    common = [str(tiny.bundle), "--calibration", str(tmp_path / "c.json"), "--out"]
    cli(quantize.main, [*common, str(tmp_path / "s.json"), "--rank"])
    assert "one block in INT8, 36 held-out turns" in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "s.json").read_text())
    assert len(result["blocks"]) == len(block_names(evaluator.bundle)) - 1  # "all", and all but two convolutions
    loose = ["--max-f1-drop", "0.9", "--max-flips", "0.9", "--float-blocks", "text/layer.0 feed"]
    cli(quantize.main, [*common, str(tmp_path / "int8"), *loose, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    manifest = load_bundle(tmp_path / "int8").manifest
    assert manifest["precision"] == "int8"
    assert manifest["quantisation"]["float_blocks"] == json.loads(line)["recipe"]["float_blocks"]
    assert manifest["quantisation"]["float_blocks"] == ["text/layer.0 feed"]
    assert HBAFRuntime(tmp_path / "int8").predict(text="it runs").label
    with pytest.raises(SystemExit, match="The worst blocks"):
        cli(quantize.main, [*common, str(tmp_path / "refused"), "--max-f1-drop", "-1"])
    assert not (tmp_path / "refused").exists()
    with pytest.raises(SystemExit, match=r"there is no block 'text/layer.9'; there are: audio/"):
        cli(quantize.main, [*common, str(tmp_path / "refused"), "--float-blocks", "text/layer.9"])
