"""Losses compared with values computed by hand."""

import math

import torch

from training.config import LossWeights
from training.losses import absolute_contrast, classification, label_weights, relative_contrast


def test_absolute_contrast_of_two_orthogonal_pairs():
    codes = torch.eye(2)
    # Similarity 1 for the match and 0 for the only negative, temperature 1: −log(e / (e + 1)).
    expected = -math.log(math.e / (math.e + 1))
    assert math.isclose(float(absolute_contrast(codes, codes, torch.tensor([0, 1]), 1.0)), expected, rel_tol=1e-6)


def test_absolute_contrast_excludes_negatives_of_the_same_label():
    codes = torch.eye(3)
    # Labels 0, 0, 1: the first two have one negative each, the third two.
    expected = (2 * -math.log(math.e / (math.e + 1)) - math.log(math.e / (math.e + 2))) / 3
    assert math.isclose(float(absolute_contrast(codes, codes, torch.tensor([0, 0, 1]), 1.0)), expected, rel_tol=1e-6)


def test_relative_contrast_is_zero_for_equal_similarities():
    audio = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1]]), dim=-1)
    rotation = torch.tensor([[0.0, 1], [-1, 0]])
    assert abs(float(relative_contrast(audio, audio @ rotation, 0.1))) < 1e-6
    text = torch.eye(3)[:, :3]
    # Text: all off-diagonal similarities 0, so each row is (1/2, 1/2). Audio rows: softmax of (0, s), (0, s), (s, s).
    s = math.sqrt(0.5)
    p = math.exp(s) / (1 + math.exp(s))
    forward = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    backward = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    expected = (2 * (forward + backward) / 2) / 3
    assert math.isclose(float(relative_contrast(audio, text, 1.0)), expected, rel_tol=1e-5)


def test_classification_with_smoothing_and_label_weights():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    first = math.log(1 + math.exp(-2))  # −log softmax
    second = math.log(2)
    unweighted = classification(logits, labels, LossWeights())
    assert math.isclose(float(unweighted), (first + second) / 2, rel_tol=1e-6)
    balanced = classification(logits, labels, LossWeights(), torch.tensor([0.5, 3.0]))
    assert math.isclose(float(balanced), (0.5 * first + 3 * second) / 2, rel_tol=1e-6)
    # Smoothing 0.2 over two classes: the target is 0.9 and 0.1.
    smoothed = classification(logits[:1], labels[:1], LossWeights(smoothing=0.2))
    assert math.isclose(float(smoothed), 0.9 * first + 0.1 * (first + 2), rel_tol=1e-6)


def test_unlabelled_turns_have_no_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = classification(logits, torch.tensor([2, -1, -1]), LossWeights())
    loss.backward()
    assert logits.grad[1:].abs().sum() == 0
    assert float(classification(logits, torch.tensor([-1, -1, -1]), LossWeights())) == 0


def test_label_weights_follow_the_power_and_have_mean_one():
    assert label_weights(torch.tensor([8, 2]), 0.0) is None
    weights = label_weights(torch.tensor([8, 2]), 0.5)
    assert math.isclose(float(weights[1] / weights[0]), 2.0, rel_tol=1e-6)
    assert math.isclose(float((weights * torch.tensor([8, 2])).sum() / 10), 1.0, rel_tol=1e-6)
