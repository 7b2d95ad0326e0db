"""Layers of HBAF; training/model.py combines them and defines the names of shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.gate import both_gates
from kernels.reference import GateWeights, Memory, attend
from training.config import ModelConfig

AUDIO, TEXT = 0, 1


class KeyValues(NamedTuple):
    """Keys and values of both modalities: (B, M, 2, d) each."""

    keys: Tensor
    values: Tensor


class ConvContext(nn.Module):
    """Conformer's convolution module with LayerNorm instead of BatchNorm: (U, F, d) -> (U, F, d)."""

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
        gated = torch.where(mask[..., None], gated, 0.0)  # the convolution must not read padding
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
    """Attention bias by distance in turns and by speaker relation, for each modality of the keys.

    Order and speakers only enter here. The bias starts at −distance / 2^h for head h, so that near turns weigh more and
    each head has a range of its own. Without it heads would start with the mean over the whole window, and a small
    corpus does not suffice to learn the difference. Example: head 1 starts with 0, −0.5, −1, −1.5, …
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.window = config.window
        scale = 2.0 ** torch.arange(config.heads)
        start = -torch.arange(config.window) / scale[:, None]
        self.table = nn.Parameter(start[None, :, :, None].repeat(2, 1, 1, 3))

    def forward(self, distance: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and relations (B, N, M) -> biases for audio and text keys, (B, H, N, M) each."""
        index = distance.clamp(0, self.window - 1) * 3 + relation
        audio, text = self.table.flatten(2).unbind(0)
        return audio[:, index].transpose(0, 1), text[:, index].transpose(0, 1)


class FusionLayer(nn.Module):
    """x ← LN(x + W_o gate(x)), x ← LN(x + FFN(x)) for both modalities; each one reads the other's input state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.halves = nn.ModuleList(FusionHalf(config) for _ in range(2))

    def for_modality(self, modality: int) -> FusionHalf:
        """The parameters of one modality."""
        half = self.halves[modality]
        assert isinstance(half, FusionHalf)
        return half

    def keys_values(self, x: Tensor, modality: int) -> KeyValues:
        """Keys and values (B, M, d) of one modality's states (B, M, d)."""
        return KeyValues(*self.for_modality(modality).key_value(x).chunk(2, -1))

    def forward(
        self,
        state: tuple[Tensor, Tensor],
        keys_values: list[KeyValues],
        visible: list[Tensor],
        bias: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Update both modalities.

        Args:
            state: audio and text, (B, N, d) each.
            keys_values: of audio and text, (B, M, d) each.
            visible, bias: by modality of the keys, (B, 1 or N, M) and (B, H, N, M) or None.
        """
        audio, text = self.for_modality(AUDIO), self.for_modality(TEXT)
        heads = audio.heads
        memories = [
            Memory(split_heads(s.keys, heads), split_heads(s.values, heads), v, b)
            for s, v, b in zip(keys_values, visible, bias)
        ]
        gated = both_gates(
            [audio.project_queries(state[AUDIO]), text.project_queries(state[TEXT])],
            memories,
            [audio.weights, text.weights],
            relevance=audio.config.relevance,
            gate=audio.config.gate,
        )
        return audio(state[AUDIO], gated[AUDIO]), text(state[TEXT], gated[TEXT])


class FusionHalf(nn.Module):
    """One modality's part of a fusion layer: projections, relevance, gate, norms and FFN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, heads = config.width, config.heads
        e = d // heads
        self.heads, self.config = heads, config
        self.queries = nn.Linear(d, 2 * d)  # q for keys of the same modality, q' for the other one
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
        """Weights of relevance and gate."""
        return GateWeights(self.w_r, self.b_r, self.w_g, self.b_g)

    def project_queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries q and q', (B, H, N, e) each, of states (B, N, d)."""
        query, cross = (split_heads(part, self.heads) for part in self.queries(x).chunk(2, -1))
        return query, cross

    def forward(self, x: Tensor, gated: Tensor) -> Tensor:
        """New state (B, N, d) of a state (B, N, d) and the gate's output (B, H, N, e)."""
        update = self.dropout(self.out(join_heads(gated)))
        if not self.config.residual:
            return self.feed_norm(self.feed(self.norm(update)))
        x = self.norm(x + update)
        return self.feed_norm(x + self.dropout(self.feed(x)))


class StatisticsPooling(nn.Module):
    """Attention pooling of mean and deviation to one code: (U, T, d) -> (U, d)."""

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
    """Two-layer MLP to logits."""

    def __init__(self, d: int, labels: int, dropout: float) -> None:
        super().__init__(nn.Linear(d, d // 2), nn.GELU(), nn.Dropout(dropout), nn.Linear(d // 2, labels))


class Standardise(nn.Module):
    """Standardise each dimension of an encoder's states over the training data: (…, dim) -> (…, dim).

    The statistics are set once before training (training/feature_provider.py). Some dimensions of Whisper's and BERT's
    states are hundreds of times larger than others, and a projection of such inputs learns slowly.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation, (dim,) each."""
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
    """Mean (U, d) of (U, T, d) over the positions in the mask; zero for an empty mask."""
    weight = mask[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, d) -> (B, H, N, e)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, N, e) -> (B, N, d)"""
    return x.transpose(1, 2).flatten(2)
