"""A fusion layer of the incremental step, as kernels and as the modules that training trains, for kernels.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.gate import SWITCH
from kernels.layer import LayerWeights, layer, weights_of
from kernels.ring import Ring, Step, StepWeights, distances
from training.config import ModelConfig
from training.layers import FusionLayer, OrderBias, Slots

E = 64  # width of a head; d is that many times the heads


def made_step(batch: int, window: int, d: int, dtype: torch.dtype, device: str) -> tuple[Step, Ring, StepWeights]:
    """One turn of each of `batch` conversations with full rings."""
    heads = d // E
    r = partial(torch.randn, dtype=dtype, device=device)
    given = Step(
        r(batch, 2, 2, heads, E), r(batch, 2, 2, heads, E),
        torch.arange(batch, dtype=torch.int32, device=device),
        torch.full((batch,), 100, dtype=torch.int32, device=device),
        torch.full((batch, window), 3, dtype=torch.uint8, device=device),
        torch.full((batch,), 3, dtype=torch.uint8, device=device),
    )  # fmt: skip
    weights = StepWeights(
        torch.randn(2, heads, window, 3, device=device), r(2, heads, 2 * E), r(2, heads), r(2, heads, E, 2 * E),
        r(2, heads, E),
    )  # fmt: skip
    return given, Ring(r(batch, window, 2, heads, E), r(batch, window, 2, heads, E)), weights


class Layer(NamedTuple):
    """What both ways take."""

    states: Tensor
    given: Step
    ring: Ring
    weights: LayerWeights
    fusion: FusionLayer
    order: OrderBias


def made_layer(batch: int, window: int, d: int, dtype: torch.dtype, device: str) -> Layer:
    """One turn of each of `batch` conversations with full rings, and a random layer."""
    given, ring, _ = made_step(batch, window, d, dtype, device)
    config = ModelConfig(width=d, heads=d // E, window=window, dropout=0.0)
    fusion, order = FusionLayer(config).eval().to(device, dtype), OrderBias(config).to(device)
    states = torch.randn(batch, 2, d, dtype=dtype, device=device)
    return Layer(states, given, ring, weights_of(fusion, order, dtype), fusion, order)


def by_kernels(made: Layer) -> Tensor:
    """In three launches."""
    return layer(*made[:4], store=True)


@contextmanager
def reference_gate() -> Iterator[None]:
    """The gate without its kernel, which on a GPU the modules of training take by themselves."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "reference"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


@torch.no_grad()
@reference_gate()
def in_torch(made: Layer) -> Tensor:
    """Rings gathered and joined with the new turn's keys and values, then the layer itself."""
    states, given, ring, _, fusion, order = made
    rows, place = given.rows.long(), (given.turn % ring.keys.shape[1]).long()
    far, inside = distances(given.turn, ring.keys.shape[1])
    distance = torch.cat([far, torch.zeros_like(far[:, :1])], 1)[:, None]
    marks = torch.cat([given.slots * inside, given.now[:, None]], 1).long()
    news = [fusion.remember(states[:, None, m], m) for m in range(2)]
    slots = [
        Slots(*(torch.cat([held[rows, :, m].flatten(2), new], 1) for held, new in zip(ring, news[m]))) for m in range(2)
    ]
    visible = [(marks >> m & 1).bool()[:, None] for m in range(2)]
    audio, text = (bias.to(states.dtype) for bias in order(distance, (marks >> 2)[:, None]))
    both = fusion((states[:, None, 0], states[:, None, 1]), slots, visible, (audio, text))
    for m in range(2):
        for held, new in zip(ring, news[m]):
            held[rows, place, m] = new[:, 0].unflatten(-1, held.shape[-2:])
    return torch.stack([x[:, 0] for x in both], 1)
