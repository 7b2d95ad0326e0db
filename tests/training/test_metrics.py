"""Scores compared with torchmetrics and with values computed by hand, intervals, and temperatures."""

import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_recall,
)

from training.metrics import bootstrap_intervals, fit_temperature, paired_bootstrap, scores

NAMES = ("a", "b", "c", "never")


def random_logits(count=400, seed=0, margin=2.0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=rng)
    logits = torch.randn(count, 4, generator=rng)
    logits[torch.arange(count), labels] += margin
    return logits, labels


def test_scores_equal_values_computed_by_hand():
    predicted, labels = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1])
    result = scores(torch.nn.functional.one_hot(predicted, 4).float(), labels, NAMES)
    # a: precision 1, recall 2/3, F1 4/5; b: precision 1/2, recall 1/2, F1 1/2; c is predicted once and never true.
    assert result["weighted_f1"] == pytest.approx((3 * 0.8 + 2 * 0.5) / 5)
    assert result["macro_f1"] == pytest.approx(0.65)
    assert result["uar"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["precision"] == {"a": 1.0, "b": 0.5}
    assert set(result["recall"]) == {"a", "b"}


def test_scores_equal_torchmetrics():
    """Macro means are over the three labels that occur."""
    logits, labels = random_logits()
    result, predicted = scores(logits, labels, NAMES), logits.argmax(-1)
    f1, recall = (f(predicted, labels, 4, average=None)[:3].mean() for f in (multiclass_f1_score, multiclass_recall))
    assert result["macro_f1"] == pytest.approx(float(f1), abs=1e-6)
    assert result["uar"] == pytest.approx(float(recall), abs=1e-6)
    weighted = multiclass_f1_score(predicted, labels, 4, average="weighted")
    assert result["weighted_f1"] == pytest.approx(float(weighted), abs=1e-6)
    ece = multiclass_calibration_error(torch.softmax(logits, -1), labels, 4, n_bins=15)
    assert result["ece"] == pytest.approx(float(ece), abs=1e-6)


def test_intervals_contain_the_score_and_narrow_with_more_data():
    wide, narrow = (bootstrap_intervals(*random_logits(n), groups=[str(i) for i in range(n)]) for n in (100, 1600))
    for name in ("weighted_f1", "ece"):
        assert wide[name][1] - wide[name][0] > 2 * (narrow[name][1] - narrow[name][0])
    logits, labels = random_logits(1600)
    low, high = narrow["weighted_f1"]
    assert low < scores(logits, labels, NAMES)["weighted_f1"] < high
    # The standard deviation of a share p of n is sqrt(p(1-p)/n); the bootstrap has to agree.
    low, high = narrow["accuracy"]
    p = scores(logits, labels, NAMES)["accuracy"]
    assert (high - low) / 2 == pytest.approx(1.96 * (p * (1 - p) / 1600) ** 0.5, rel=0.12)


def test_turns_of_a_dialogue_are_resampled_together():
    """Ten copies of each utterance in one dialogue contain no more information, so intervals stay as wide."""
    logits, labels = random_logits(60)
    once = bootstrap_intervals(logits, labels, [str(i) for i in range(60)])
    tenfold = bootstrap_intervals(logits.repeat(10, 1), labels.repeat(10), [str(i) for i in range(60)] * 10)
    width = [high - low for low, high in (once["accuracy"], tenfold["accuracy"])]
    assert width[1] == pytest.approx(width[0], rel=0.1)


def test_paired_bootstrap_finds_a_difference_only_if_there_is_one():
    logits, labels = random_logits(600, margin=1.0)
    better = logits.clone()
    better[torch.arange(600), labels] += 0.5
    groups = [str(i // 5) for i in range(600)]
    result = paired_bootstrap(better, logits, labels, groups)
    assert result["low"] > 0
    assert result["p"] < 0.05
    same = paired_bootstrap(logits, logits, labels, groups)
    assert same["difference"] == 0
    assert same["p"] == 1


def test_temperature_corrects_scaled_logits():
    logits, labels = random_logits(4000, margin=2.0)
    temperature = fit_temperature(logits, labels)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * temperature, rel=0.03)
    before, after = (scores(x, labels, NAMES)["ece"] for x in (logits * 3, logits * 3 / (3 * temperature)))
    assert after < before / 2
