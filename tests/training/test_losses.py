"""Losses against values worked out by hand."""

import math

import torch

from training.losses import absolute_contrast, relative_contrast


def test_absolute_contrast_of_two_orthogonal_pairs():
    codes = torch.eye(2)
    # Matched similarity 1, the one negative 0, temperature 1: −log(e / (e + 1)).
    expected = -math.log(math.e / (math.e + 1))
    assert math.isclose(float(absolute_contrast(codes, codes, torch.tensor([0, 1]), 1.0)), expected, rel_tol=1e-6)


def test_absolute_contrast_leaves_out_negatives_of_the_same_label():
    codes = torch.eye(3)
    # Labels 0, 0, 1: the first two have one negative each, the third two.
    expected = (2 * -math.log(math.e / (math.e + 1)) - math.log(math.e / (math.e + 2))) / 3
    assert math.isclose(float(absolute_contrast(codes, codes, torch.tensor([0, 0, 1]), 1.0)), expected, rel_tol=1e-6)


def test_relative_contrast_is_zero_for_equal_geometry_and_by_hand_otherwise():
    audio = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1]]), dim=-1)
    rotation = torch.tensor([[0.0, 1], [-1, 0]])
    assert abs(float(relative_contrast(audio, audio @ rotation, 0.1))) < 1e-6
    text = torch.eye(3)[:, :3]
    # Text: all off-diagonal similarities 0, so each row is (1/2, 1/2). Audio rows: softmax of (0, s), (0, s), (s, s).
    s = math.sqrt(0.5)
    p = math.exp(s) / (1 + math.exp(s))
    there = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    back = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    expected = (2 * (there + back) / 2) / 3
    assert math.isclose(float(relative_contrast(audio, text, 1.0)), expected, rel_tol=1e-5)
