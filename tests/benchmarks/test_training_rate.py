"""The benchmark of training measures real steps: it counts what a step computes and what it takes."""

from dataclasses import replace

import torch

from benchmarks.training_rate import KINDS, matrix_rate, measure, synthetic
from training.config import TrainConfig


def test_each_way_of_training_is_measured(small):
    corpus = synthetic(small, 4)
    device = torch.device("cpu")
    base = TrainConfig(epochs=1, turns=4, max_turns=4)
    ways = {name: measure(replace(base, **kind), corpus, device, 2, small) for name, kind in KINDS.items()}
    work = [way["gflop"] for way in ways.values()]
    assert work == sorted(work), "the more that learns, the more is computed"
    assert all(way["rate"].p50 > 0 and way["rate"].n == 2 for way in ways.values())


def test_the_matrix_rate_is_that_of_a_machine():
    assert 1e9 < matrix_rate(torch.device("cpu"), torch.float32) < 1e14
