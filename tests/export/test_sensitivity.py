"""Sensitivity and budget: blocks are ranked, the worst go back to float32, and what cannot be kept fails loudly."""

import json
from dataclasses import replace

import pytest

from export import quantize, sensitivity
from export.calibrate import calibrate
from export.compare import Outcome, drift, judged, labels_of, measures, predictions
from export.qdq import Recipe
from export.quantize import Budget, BudgetError, search
from export.sensitivity import Cost, Held, blocks_of, computed_blocks
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from training.command import cli
from training.corpora.records import UNLABELLED


@pytest.fixture
def held(tiny, talks):
    """Labelled as float32 sees them, so that every flip costs weighted F1."""
    bundle = load_bundle(tiny.bundle)
    found = predictions(HBAFRuntime(tiny.bundle), talks)
    labels = iter(bundle.labels.index(p.label) for p in found)
    named = [replace(d, turns=tuple(replace(u, label=next(labels)) for u in d.turns)) for d in talks]
    return Held(bundle, named, threads=1)


def ranked_blocks(held, calibrated):
    """What the CPU computes in INT8: convolutions it does not."""
    computed = computed_blocks(held.bundle, calibrated, Recipe())
    assert not any("conv" in block for block in computed)
    return [block for block in blocks_of(held.bundle) if block in computed]


def test_float32_costs_nothing_and_worse_is_ranked_higher(held, calibrated):
    assert held.f1 == pytest.approx(1.0)
    blocks = tuple(ranked_blocks(held, calibrated))
    nothing = held.cost(calibrated, Recipe(float_blocks=blocks), "none")
    everything = held.cost(calibrated, Recipe(method="percentile", migration=0.0), "all")
    assert nothing.kl_divergence < everything.kl_divergence
    assert nothing.rank <= everything.rank
    ranked = sensitivity.sensitivity(held.part(12), calibrated, Recipe(float_blocks=blocks[3:]))
    assert {c.block for c in ranked} == set(blocks[:3])
    assert [c.rank for c in ranked] == sorted((c.rank for c in ranked), reverse=True)


def test_a_part_is_the_first_turns(held):
    part = held.part(13)
    assert [len(d.turns) for d in part.dialogues] == [12, 1]
    assert len(part.reference.probabilities) == len(part.reference.embeddings) == 13
    assert len(held.reference.probabilities) == 36


def test_the_worst_blocks_go_back_to_float_until_the_budget_holds(held, calibrated, monkeypatch, capsys):
    """With a cost that only two blocks have, those two and no other are kept in float32."""
    blocks = ranked_blocks(held, calibrated)
    bad = {blocks[1]: 0.02, blocks[4]: 0.01}

    def cost(calibration, recipe, name):
        lost = sum(v for block, v in bad.items() if block not in recipe.float_blocks)
        return Cost(name, lost, lost, lost, 1.0, 40.0)

    monkeypatch.setattr(held, "cost", cost)
    monkeypatch.setattr(held, "part", lambda turns: held)
    recipe, steps = search(held, calibrated, Recipe(), Budget())
    assert recipe.float_blocks == tuple(sorted(bad, key=lambda b: -bad[b]))
    assert [s.f1_drop for s in steps] == pytest.approx([0.03, 0.01, 0.0])
    bad |= dict.fromkeys(blocks, 0.02)
    with pytest.raises(BudgetError, match=r"even with \d+ blocks in float32.*The worst blocks:\n  \w+/"):
        search(held, calibrated, Recipe(), Budget())


def test_the_budget_is_of_all_three():
    assert Budget(min_snr=30).keeps(Cost("a", 0.005, 0.02, 0, 1, 30.0))
    assert not Budget().keeps(Cost("a", 0.006, 0.0, 0, 1, 30.0))
    assert not Budget().keeps(Cost("a", 0.0, 0.03, 0, 1, 30.0))
    assert not Budget(min_snr=30).keeps(Cost("a", 0.0, 0.0, 0, 1, 29.0))


def test_measures_count_what_differs(held, talks):
    p = held.reference
    same = measures(p, p)
    assert (same["turns"], same["label_flips"], same["kl_divergence"], same["difference_max"]) == (36, 0, 0.0, 0.0)
    assert same["cosine_min"] == pytest.approx(1.0)
    swapped = p.probabilities.copy()
    first = swapped[0].argsort()[-2:]
    swapped[0, first] = swapped[0, first[::-1]]
    found = measures(Outcome(swapped, p.embeddings), p)
    assert (found["label_flips"], found["flip_rate"]) == (1, 1 / 36)
    assert found["kl_divergence"] > 0
    assert found["difference_max"] == pytest.approx(abs(swapped - p.probabilities).max())
    runtime = HBAFRuntime(held.bundle.path)
    assert drift(predictions(runtime, talks), predictions(runtime, talks))["label_flips"] == 0


def test_labels_that_never_occur_and_turns_without_one_are_scored_around(held):
    """F1 of the labels that occur; nothing where no turn has one."""
    labels, names = labels_of(held.dialogues), held.bundle.labels
    assert judged(held.reference, labels, names)["utterances"] == 36
    one = [label if label == labels[0] else UNLABELLED for label in labels]
    found = judged(held.reference, one, names)
    assert found["utterances"] == labels.count(labels[0]) < 36 or len(set(labels)) == 1
    assert found["f1"] == {names[labels[0]]: pytest.approx(1.0)}
    assert judged(held.reference, [UNLABELLED] * 36, names) is None
    part = held.part(12)
    part.dialogues = [replace(d, turns=tuple(replace(u, label=UNLABELLED) for u in d.turns)) for d in part.dialogues]
    assert part.weighted_f1(part.reference) == 0.0


@pytest.mark.slow
def test_the_commands_write_what_they_say(tiny, talks, held, small_counts, tmp_path, monkeypatch, capsys):
    calibrate(held.bundle, talks, tmp_path / "c.json", threads=1)
    monkeypatch.setattr("export.sensitivity.conversations", lambda *a, **k: held.dialogues)
    common = [str(tiny.bundle), "--calibration", str(tmp_path / "c.json"), "--out"]
    cli(quantize.main, [*common, str(tmp_path / "s.json"), "--rank"])
    result = json.loads((tmp_path / "s.json").read_text())
    assert len(result["blocks"]) == len(blocks_of(held.bundle)) - 1  # all, and all but two convolutions
    loose = ["--max-f1-drop", "0.9", "--max-flips", "0.9", "--float-blocks", "text/layer.0 feed"]
    cli(quantize.main, [*common, str(tmp_path / "int8"), *loose])
    made = load_bundle(tmp_path / "int8").manifest
    assert made["precision"] == "int8"
    assert made["quantisation"]["float_blocks"] == ["text/layer.0 feed"]
    assert HBAFRuntime(tmp_path / "int8").predict(text="it runs").label
    with pytest.raises(SystemExit, match="The worst blocks"):
        cli(quantize.main, [*common, str(tmp_path / "no"), "--max-f1-drop", "-1"])
    assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit, match=r"there is no block 'text/layer.9'; there are: audio/"):
        cli(quantize.main, [*common, str(tmp_path / "no"), "--float-blocks", "text/layer.9"])
