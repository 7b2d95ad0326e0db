"""One new turn of each of several conversations against their rings: what the step kernel computes, in plain PyTorch.

Turn t owns slot t mod W of its conversation's ring, and sees the turns that are 1 to W − 1 behind it and itself, at
distance 0. The slot of the turn to come still belongs to the window of the last turn, which may be revised: keys and
values are stored when a turn is committed, not before (hbaf_edge/conversation.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.reference import GateWeights, Memory, both_gates


class Ring(NamedTuple):
    """A layer's memory of P conversations. Shapes: keys and values (P, W, 2, H, e); modality 0 is audio, 1 is text."""

    keys: Tensor
    values: Tensor


class Step(NamedTuple):
    """One new turn of each of B conversations.

    Shapes: asks (B, 2, 2, H, e), the queries q and q' of each modality; news (B, 2, 2, H, e), key and value of each
    modality; rows (B,) int32, the conversation's place in the ring; turn (B,) int32, how many turns came before; slots
    (B, W) uint8, of each slot 1 where audio is present, + 2 where text is, + 4 times the relation of its speaker to
    the new turn's; now (B,) uint8, the same of the new turn itself.
    """

    asks: Tensor
    news: Tensor
    rows: Tensor
    turn: Tensor
    slots: Tensor
    now: Tensor


class StepWeights(NamedTuple):
    """Both modalities' weights. Shapes: bias (2, H, W, 3) by key modality; w_r (2, H, 2e), b_r (2, H), w_g
    (2, H, e, 2e), b_g (2, H, e)."""

    bias: Tensor
    w_r: Tensor
    b_r: Tensor
    w_g: Tensor
    b_g: Tensor


def distances(turn: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(B,) -> how far behind the new turn each slot's turn is, (B, W), and whether it is inside of the window.

    >>> far, inside = distances(torch.tensor([2]), 4)
    >>> far.tolist(), inside.tolist()
    ([[2, 1, 4, 3]], [[True, True, False, False]])
    """
    far = (turn[:, None] - 1 - torch.arange(window, device=turn.device)) % window + 1
    return far, (far < window) & (far <= turn[:, None])


def gate_inputs(
    step: Step, ring: Ring, weights: StepWeights
) -> tuple[list[tuple[Tensor, Tensor]], list[Memory], list[GateWeights]]:
    """Queries, memories and weights of both modalities, as `both_gates` takes them: one query on a ring's slots."""
    window = ring.keys.shape[1]
    far, inside = distances(step.turn, window)
    relation = torch.cat([step.slots, step.now[:, None]], 1).long() >> 2
    distance = torch.cat([far.clamp(max=window - 1), torch.zeros_like(far[:, :1])], 1)
    marks = torch.cat([step.slots * inside, step.now[:, None]], 1)
    rows = step.rows.long()
    memories = []
    for m in range(2):
        keys, values = (
            torch.cat([held[rows, :, m], step.news[:, m, i][:, None]], 1).transpose(1, 2) for i, held in enumerate(ring)
        )
        bias = weights.bias[m][:, distance, relation].transpose(0, 1)[:, :, None]
        memories.append(Memory(keys, values, (marks >> m & 1).bool()[:, None], bias.to(keys.dtype)))
    gates = [GateWeights(*(part[m] for part in weights[1:])) for m in range(2)]
    return [(step.asks[:, m, 0][:, :, None], step.asks[:, m, 1][:, :, None]) for m in range(2)], memories, gates


def step_reference(step: Step, ring: Ring, weights: StepWeights, store: bool = False) -> Tensor:
    """Gated answers (B, 2, H, e) of one new turn in each conversation; with `store` its keys and values enter the ring.

    Source: training/MODEL.md, "Bimodal attention gate" and "Two scopes".
    """
    found = torch.stack([x[:, :, 0] for x in both_gates(*gate_inputs(step, ring, weights))], 1)
    if store:
        store_turn(step, ring)
    return found


def store_turn(step: Step, ring: Ring) -> None:
    """The new turn's keys and values enter the ring."""
    rows, place = step.rows.long(), (step.turn % ring.keys.shape[1]).long()
    ring.keys[rows, place] = step.news[:, :, 0]
    ring.values[rows, place] = step.news[:, :, 1]
