"""The gate of one new turn in each of several conversations, in plain PyTorch: the reference for the step kernel.

Turn t owns slot t mod W of its conversation's ring. It attends to the W − 1 turns before it and to itself, at distance
0. The last turn may still be revised, and its window includes the slot of the next turn. So keys and values are stored
when a turn is committed, not before (hbaf_edge/conversation.py).

Example with W = 4: turn 5 owns slot 1. It attends to turns 2, 3 and 4 in slots 2, 3 and 0, and to itself. Until it is
committed, slot 1 holds turn 1, which turn 4 needs if it is revised.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.reference import GateWeights, Memory, both_gates


class Ring(NamedTuple):
    """Keys and values of a layer of P conversations, (P, W, 2, H, e) each; modality 0 is audio, 1 is text."""

    keys: Tensor
    values: Tensor


class Step(NamedTuple):
    """One new turn of each of B conversations.

    Attributes:
        asks: (B, 2, 2, H, e), queries q and q' of each modality.
        news: (B, 2, 2, H, e), key and value of each modality.
        rows: (B,) int32, row of the conversation in `Ring`.
        turn: (B,) int32, number of the new turn, counted from 0.
        slots: (B, W) uint8, mark of each slot: 1 if audio is present, + 2 if text is present, + 4 times the relation
            of its speaker to the new turn's speaker. Text by another speaker (relation 1) has mark 6.
        now: (B,) uint8, mark of the new turn.
    """

    asks: Tensor
    news: Tensor
    rows: Tensor
    turn: Tensor
    slots: Tensor
    now: Tensor


class StepWeights(NamedTuple):
    """Weights of both modalities.

    Shapes: bias (2, H, W, 3) by key modality, distance and relation; w_r (2, H, 2e), b_r (2, H), w_g (2, H, e, 2e),
    b_g (2, H, e).
    """

    bias: Tensor
    w_r: Tensor
    b_r: Tensor
    w_g: Tensor
    b_g: Tensor


def distances(turn: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Distance of each slot's turn from the new turn, (B, W), and whether it is in the window; `turn` is (B,).

    >>> far, inside = distances(torch.tensor([2]), 4)
    >>> far.tolist(), inside.tolist()
    ([[2, 1, 4, 3]], [[True, True, False, False]])
    """
    far = (turn[:, None] - 1 - torch.arange(window, device=turn.device)) % window + 1
    return far, (far < window) & (far <= turn[:, None])


def gate_inputs(
    step: Step, ring: Ring, weights: StepWeights
) -> tuple[list[tuple[Tensor, Tensor]], list[Memory], list[GateWeights]]:
    """Arguments of `both_gates`: queries, memories and weights of both modalities, with one query per ring."""
    window = ring.keys.shape[1]
    far, inside = distances(step.turn, window)
    relation = torch.cat([step.slots, step.now[:, None]], 1).long() >> 2
    distance = torch.cat([far.clamp(max=window - 1), torch.zeros_like(far[:, :1])], 1)
    marks = torch.cat([step.slots * inside, step.now[:, None]], 1)
    rows = step.rows.long()
    memories = []
    for m in range(2):
        keys, values = (
            torch.cat([stored[rows, :, m], step.news[:, m, i][:, None]], 1).transpose(1, 2)
            for i, stored in enumerate(ring)
        )
        bias = weights.bias[m][:, distance, relation].transpose(0, 1)[:, :, None]
        memories.append(Memory(keys, values, (marks >> m & 1).bool()[:, None], bias.to(keys.dtype)))
    gates = [GateWeights(*(part[m] for part in weights[1:])) for m in range(2)]
    return [(step.asks[:, m, 0][:, :, None], step.asks[:, m, 1][:, :, None]) for m in range(2)], memories, gates


def step_reference(step: Step, ring: Ring, weights: StepWeights, store: bool = False) -> Tensor:
    """Compute the gate of one new turn of each conversation, (B, 2, H, e); with `store` also call `store_turn`.

    Source: docs/model.md, "Bimodal attention gate" and "Two scopes".
    """
    result = torch.stack([x[:, :, 0] for x in both_gates(*gate_inputs(step, ring, weights))], 1)
    if store:
        store_turn(step, ring)
    return result


def store_turn(step: Step, ring: Ring) -> None:
    """Write the new turn's keys and values into the ring."""
    rows, slot = step.rows.long(), (step.turn % ring.keys.shape[1]).long()
    ring.keys[rows, slot] = step.news[:, :, 0]
    ring.values[rows, slot] = step.news[:, :, 1]
