"""The bimodal attention gate in plain PyTorch: the reference for every fused kernel and every export.

For a modality m with other modality n, per head (docs/model.md, "Bimodal attention gate"):

    intra = softmax(q k_ownᵀ/√e + bias_own) v_own            own modality
    inter = softmax(q' k_otherᵀ/√e + bias_other) v_other     other modality
    inter = sigmoid(w_r · [q' ; inter] + b_r) · inter        dynamic attention: one relevance per query and head
    g     = sigmoid(W_g [intra ; inter] + b_g)               dynamic gate
    out   = g ⊙ inter + (1 − g) ⊙ intra
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Finite, so that a row without a visible key gives no NaN, and small enough for float16.
MASKED = -3.0e4


class Memory(NamedTuple):
    """The keys and values that a query attends to.

    Shapes: keys and values (B, H, M, e); visible (B, N, M) bool; bias (B, H, N, M) or None.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor
    bias: Tensor | None = None


class GateWeights(NamedTuple):
    """Shapes: w_r (H, 2e), b_r (H,), w_g (H, e, 2e), b_g (H, e)."""

    w_r: Tensor
    b_r: Tensor
    w_g: Tensor
    b_g: Tensor


def attend(query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """Masked attention of (B, H, N, e) queries, and whether each query has a visible key, (B, 1, N, 1) bool.

    A query without a visible key gets zero, whether the memory is masked or of length zero.
    """
    scores = query @ memory.keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    if memory.bias is not None:
        scores = scores + memory.bias
    visible = memory.visible[:, None]
    weights = torch.softmax(scores.masked_fill(~visible, MASKED), dim=-1)
    any_visible = visible.any(dim=-1, keepdim=True)
    result = weights @ memory.values
    return torch.where(any_visible, result, 0.0), any_visible


def bimodal_attention_gate(
    query: Tensor,
    cross_query: Tensor,
    own: Memory,
    other: Memory,
    weights: GateWeights,
    *,
    relevance: bool = True,
    gate: bool = True,
) -> Tensor:
    """Attend to the own and the other modality and mix both results per query: (B, H, N, e) -> (B, H, N, e).

    Args:
        query: q, (B, H, N, e), attends to the own modality.
        cross_query: q', (B, H, N, e), attends to the other modality.
        own, other: the two memories.
        weights: of relevance and gate.
        relevance: False sets r = 1 (ablation "no relevance").
        gate: False sets g = 1/2 (ablation "no gate").

    Source: docs/model.md, "Bimodal attention gate". No visible other key -> g = 0; no visible own key -> g = 1;
    neither -> 0.
    """
    intra, own_visible = attend(query, own)
    inter, other_visible = attend(cross_query, other)
    return mix(intra, inter, cross_query, own_visible, other_visible, weights, relevance=relevance, gate=gate)


def mix(
    intra: Tensor,
    inter: Tensor,
    cross_query: Tensor,
    own_visible: Tensor,
    other_visible: Tensor,
    weights: GateWeights,
    *,
    relevance: bool = True,
    gate: bool = True,
) -> Tensor:
    """Mix the attention results of both memories by relevance and gate.

    Args:
        intra, inter: results of the own and of the other memory, (B, H, N, e) each.
        cross_query: q', (B, H, N, e).
        own_visible, other_visible: whether a query has a visible key in that memory, (B, 1, N or 1, 1) bool.
        weights: of relevance and gate.
        relevance, gate: see `bimodal_attention_gate`.
    """
    if relevance:
        features = torch.cat([cross_query, inter], dim=-1)
        logits = (features * weights.w_r[:, None]).sum(-1, keepdim=True) + weights.b_r[:, None, None]
        inter = torch.sigmoid(logits) * inter
    if gate:
        both = torch.cat([intra, inter], dim=-1)
        g = torch.sigmoid(both @ weights.w_g.transpose(-1, -2) + weights.b_g[:, None])
    else:
        g = torch.full_like(intra, 0.5)
    g = torch.where(own_visible, torch.where(other_visible, g, 0.0), 1.0)
    return g * inter + (1 - g) * intra


def both_gates(
    queries: Sequence[tuple[Tensor, Tensor]],
    memories: Sequence[Memory],
    weights: Sequence[GateWeights],
    *,
    relevance: bool = True,
    gate: bool = True,
) -> list[Tensor]:
    """Compute `bimodal_attention_gate` of both modalities with half as many, larger products.

    The queries of both modalities that attend to the same memory are concatenated, so each memory is read once.

    Args:
        queries: of each modality q and q', (B, H, N, e) each. N may differ between modalities where `visible` and
            `bias` of a memory are the same for every query (their N is 1, or there is no bias).
        memories: of each modality.
        weights: of each modality.
        relevance, gate: see `bimodal_attention_gate`.
    """
    own, other = {}, {}
    for m, memory in enumerate(memories):
        query, cross = queries[m][0], queries[1 - m][1]
        count = query.shape[2]
        result, visible = attend(torch.cat([query, cross], 2), _repeat_for_both(memory))
        parts = (visible, visible) if visible.shape[2] == 1 else (visible[:, :, :count], visible[:, :, count:])
        own[m], other[1 - m] = (result[:, :, :count], parts[0]), (result[:, :, count:], parts[1])
    return [
        mix(own[m][0], other[m][0], queries[m][1], own[m][1], other[m][1], weights[m], relevance=relevance, gate=gate)
        for m in range(2)
    ]


def _repeat_for_both(memory: Memory) -> Memory:
    """The memory with its mask and bias repeated for the concatenated queries of both modalities."""
    visible, bias = memory.visible, memory.bias
    visible = visible if visible.shape[1] == 1 else torch.cat([visible, visible], 1)
    bias = bias if bias is None or bias.shape[2] == 1 else torch.cat([bias, bias], 2)
    return Memory(memory.keys, memory.values, visible, bias)
