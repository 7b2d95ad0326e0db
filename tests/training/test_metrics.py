"""Scores by hand, and temperatures that undo a known overconfidence."""

import torch

from training.metrics import fit_temperature, scores


def test_scores_by_hand():
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[9.0, 0], [9, 0], [0, 9], [0, 9]])
    found = scores(logits, labels, ["a", "b"])
    # a: precision 1, recall 2/3, F1 0.8; b: precision 1/2, recall 1, F1 2/3.
    assert abs(found["weighted_f1"] - (3 * 0.8 + 2 / 3) / 4) < 1e-6
    assert abs(found["macro_f1"] - (0.8 + 2 / 3) / 2) < 1e-6
    assert abs(found["uar"] - (2 / 3 + 1) / 2) < 1e-6
    assert found["confusion"] == [[2, 1], [0, 1]]


def test_temperature_is_found_back():
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(20_000, 5, generator=generator) * 2
    labels = torch.multinomial(torch.softmax(honest, -1), 1, generator=generator).squeeze(1)
    assert abs(fit_temperature(honest * 2.5, labels) - 2.5) < 0.15
    assert scores(honest, labels, list("abcde"))["ece"] < 0.02 < scores(honest * 2.5, labels, list("abcde"))["ece"]
