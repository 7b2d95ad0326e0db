"""Scores by formulas of our own, intervals against what they must be, and temperatures."""

import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_recall,
)

from training.metrics import fit_temperature, intervals, paired, scores

NAMES = ("a", "b", "c", "never")


def made(count=400, seed=0, sharp=2.0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=rng)
    logits = torch.randn(count, 4, generator=rng)
    logits[torch.arange(count), labels] += sharp
    return logits, labels


def test_scores_of_a_small_case_worked_by_hand():
    guess, labels = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1])
    found = scores(torch.nn.functional.one_hot(guess, 4).float(), labels, NAMES)
    # a: precision 1, recall 2/3, F1 4/5; b: precision 1/2, recall 1/2, F1 1/2; c is guessed once and never true.
    assert found["weighted_f1"] == pytest.approx((3 * 0.8 + 2 * 0.5) / 5)
    assert found["macro_f1"] == pytest.approx(0.65)
    assert found["uar"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == {"a": 1.0, "b": 0.5}
    assert set(found["recall"]) == {"a", "b"}


def test_scores_are_torchmetrics():
    """An independent implementation; macro means there are over the labels that occur, the first three."""
    logits, labels = made()
    found, guess = scores(logits, labels, NAMES), logits.argmax(-1)
    f1, recall = (f(guess, labels, 4, average=None)[:3].mean() for f in (multiclass_f1_score, multiclass_recall))
    assert found["macro_f1"] == pytest.approx(float(f1), abs=1e-6)
    assert found["uar"] == pytest.approx(float(recall), abs=1e-6)
    weighted = multiclass_f1_score(guess, labels, 4, average="weighted")
    assert found["weighted_f1"] == pytest.approx(float(weighted), abs=1e-6)
    ece = multiclass_calibration_error(torch.softmax(logits, -1), labels, 4, n_bins=15)
    assert found["ece"] == pytest.approx(float(ece), abs=1e-6)


def test_intervals_hold_the_score_and_narrow_with_data():
    wide, narrow = (intervals(*made(n), groups=[str(i) for i in range(n)]) for n in (100, 1600))
    for name in ("weighted_f1", "ece"):
        assert wide[name][1] - wide[name][0] > 2 * (narrow[name][1] - narrow[name][0])
    logits, labels = made(1600)
    low, high = narrow["weighted_f1"]
    assert low < scores(logits, labels, NAMES)["weighted_f1"] < high
    # A share p of n trials has deviation sqrt(p(1-p)/n): the bootstrap has to agree with that.
    low, high = narrow["accuracy"]
    p = scores(logits, labels, NAMES)["accuracy"]
    assert (high - low) / 2 == pytest.approx(1.96 * (p * (1 - p) / 1600) ** 0.5, rel=0.12)


def test_turns_of_one_dialogue_are_drawn_together():
    """Ten copies of each utterance say no more than one: intervals by dialogue do not narrow."""
    logits, labels = made(60)
    once = intervals(logits, labels, [str(i) for i in range(60)])
    tenfold = intervals(logits.repeat(10, 1), labels.repeat(10), [str(i) for i in range(60)] * 10)
    width = [high - low for low, high in (once["accuracy"], tenfold["accuracy"])]
    assert width[1] == pytest.approx(width[0], rel=0.1)


def test_paired_difference_knows_better_from_same():
    logits, labels = made(600, sharp=1.0)
    better = logits.clone()
    better[torch.arange(600), labels] += 0.5
    groups = [str(i // 5) for i in range(600)]
    found = paired(better, logits, labels, groups)
    assert found["low"] > 0
    assert found["p"] < 0.05
    same = paired(logits, logits, labels, groups)
    assert same["difference"] == 0
    assert same["p"] == 1


def test_temperature_undoes_a_wrong_scale():
    logits, labels = made(4000, sharp=2.0)
    right = fit_temperature(logits, labels)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * right, rel=0.03)
    before, after = (scores(x, labels, NAMES)["ece"] for x in (logits * 3, logits * 3 / (3 * right)))
    assert after < before / 2
