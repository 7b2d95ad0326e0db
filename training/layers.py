"""The parts HBAF is made of; training/model.py puts them together. Shapes are named as there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.gate import both_gates
from kernels.reference import GateWeights, Memory, attend
from training.config import ModelConfig

AUDIO, TEXT = 0, 1


class Slots(NamedTuple):
    """Keys and values of both modalities: (B, M, 2, d) each."""

    keys: Tensor
    values: Tensor


class ConvContext(nn.Module):
    """Conformer's convolution module with LayerNorm in place of BatchNorm: (U, F, d) -> (U, F, d)."""

    def __init__(self, d: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(d)
        self.gate = nn.Linear(d, 2 * d)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d)
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        gated = functional.glu(self.gate(self.norm_in(x)), dim=-1)
        gated = torch.where(mask[..., None], gated, 0.0)  # padding must not leak into its neighbours
        convolved = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(self.out(functional.silu(self.norm(convolved))))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the frames of one utterance: (U, F, d) -> (U, F, d)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, keys, values = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        result, _ = attend(query, Memory(keys, values, mask[:, None]))
        return self.out(join_heads(result))


class OrderBias(nn.Module):
    """Where order and speakers enter: a bias by distance in turns and by speaker relation, per key modality.

    It starts from the guess that near turns matter more, each head with a reach of its own (1, 2, 4, … turns), since a
    mean over a whole window says little and a small corpus does not teach otherwise.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.window = config.window
        reach = 2.0 ** torch.arange(config.heads)
        fall = -torch.arange(config.window) / reach[:, None]
        self.table = nn.Parameter(fall[None, :, :, None].repeat(2, 1, 1, 3))

    def forward(self, distance: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, M) each -> two of (B, H, N, M)"""
        index = distance.clamp(0, self.window - 1) * 3 + relation
        audio, text = self.table.flatten(2).unbind(0)
        return audio[:, index].transpose(0, 1), text[:, index].transpose(0, 1)


class FusionLayer(nn.Module):
    """x ← LN(x + W_o gate(x)), x ← LN(x + FFN(x)), both modalities at once, each reading the other's old state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.halves = nn.ModuleList(FusionHalf(config) for _ in range(2))

    def share(self, modality: int) -> FusionHalf:
        """One modality's parameters."""
        half = self.halves[modality]
        assert isinstance(half, FusionHalf)
        return half

    def remember(self, x: Tensor, modality: int) -> Slots:
        """(B, M, d) states of one modality -> its keys and values, (B, M, d) each."""
        return Slots(*self.share(modality).key_value(x).chunk(2, -1))

    def forward(
        self,
        state: tuple[Tensor, Tensor],
        slots: list[Slots],
        visible: list[Tensor],
        bias: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, N, d) of both modalities on slots (B, M, d) of both -> the new states.

        `visible` (B, 1 or N, M) and `bias` (B, H, N, M) belong to the key's modality.
        """
        audio, text = self.share(AUDIO), self.share(TEXT)
        heads = audio.heads
        memories = [
            Memory(split_heads(s.keys, heads), split_heads(s.values, heads), v, b)
            for s, v, b in zip(slots, visible, bias)
        ]
        gated = both_gates(
            [audio.ask(state[AUDIO]), text.ask(state[TEXT])],
            memories,
            [audio.weights, text.weights],
            relevance=audio.config.relevance,
            gate=audio.config.gate,
        )
        return audio(state[AUDIO], gated[AUDIO]), text(state[TEXT], gated[TEXT])


class FusionHalf(nn.Module):
    """One modality's share of a fusion layer: its projections, relevance, gate, norms and FFN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, heads = config.width, config.heads
        e = d // heads
        self.heads, self.config = heads, config
        self.queries = nn.Linear(d, 2 * d)  # q asks the own modality, q' the other
        self.key_value = nn.Linear(d, 2 * d)
        self.w_r = nn.Parameter(torch.randn(heads, 2 * e) * (2 * e) ** -0.5)
        self.b_r = nn.Parameter(torch.zeros(heads))
        self.w_g = nn.Parameter(torch.randn(heads, e, 2 * e) * (2 * e) ** -0.5)
        self.b_g = nn.Parameter(torch.zeros(heads, e))
        self.out = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.feed = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * d, d))
        self.feed_norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def weights(self) -> GateWeights:
        """Of relevance and gate."""
        return GateWeights(self.w_r, self.b_r, self.w_g, self.b_g)

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, d) -> q and q', (B, H, N, e) each."""
        query, cross = (split_heads(part, self.heads) for part in self.queries(x).chunk(2, -1))
        return query, cross

    def forward(self, x: Tensor, gated: Tensor) -> Tensor:
        """State (B, N, d) and what the gate let through (B, H, N, e) -> the new state."""
        update = self.dropout(self.out(join_heads(gated)))
        if not self.config.residual:
            return self.feed_norm(self.feed(self.norm(update)))
        x = self.norm(x + update)
        return self.feed_norm(x + self.dropout(self.feed(x)))


class StatisticsPooling(nn.Module):
    """Attention pooling to one code: weighted mean and deviation, (U, T, d) -> (U, d)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(d, d // 4), nn.Tanh(), nn.Linear(d // 4, 1, bias=False))
        self.out = nn.Linear(2 * d, d)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(x).squeeze(-1).masked_fill(~mask, -3.0e4)
        weights = torch.softmax(scores, -1)[..., None]
        mean = (weights * x).sum(1)
        variance = (weights * (x - mean[:, None]) ** 2).sum(1)
        return self.norm(self.out(torch.cat([mean, torch.sqrt(variance + 1e-5)], -1)))


class Head(nn.Sequential):
    """MLP to logits."""

    def __init__(self, d: int, labels: int, dropout: float) -> None:
        super().__init__(nn.Linear(d, d // 2), nn.GELU(), nn.Dropout(dropout), nn.Linear(d // 2, labels))


class Standardise(nn.Module):
    """Each dimension of an encoder's states to mean 0 and deviation 1 over the training data: (…, dim) -> (…, dim).

    Set once before training (training/material.py) and fixed from then on: some dimensions of Whisper's and of BERT's
    states are hundreds of times larger than others, and a projection learns slowly from such a mixture.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Fix mean and deviation, (dim,) each."""
        self.mean.copy_(mean)
        self.scale.copy_(1 / deviation.clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


class LayerMix(nn.Module):
    """Learned softmax-weighted sum over an encoder's layers: (U, T, states, dim) -> (U, T, dim)."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(states))

    def forward(self, states: Tensor) -> Tensor:
        return torch.einsum("utsd,s->utd", states, torch.softmax(self.logits, 0))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """(U, T, d) -> (U, d) over what the mask keeps; zero where it keeps nothing."""
    weight = mask[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, d) -> (B, H, N, e)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, N, e) -> (B, N, d)"""
    return x.transpose(1, 2).flatten(2)
