"""Whisper's audio encoder in PyTorch, for utterances of any length up to 30 s, without padding.

It returns the states of every layer, since other layers carry emotion than carry words (docs/model.md, "Encoders").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hbaf_edge.mel import log_mel


@dataclass(frozen=True)
class WhisperSize:
    """Sizes of an encoder. `positions` is the number of frames at 50 Hz."""

    dim: int = 384
    heads: int = 6
    layers: int = 4
    mel_bins: int = 80
    positions: int = 1500


def sinusoids(positions: int, dim: int) -> Tensor:
    """Fixed position codes (positions, dim): sines, then cosines."""
    rates = torch.exp(-math.log(10_000) / (dim // 2 - 1) * torch.arange(dim // 2))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_norm = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, keys, values = parts
        key_mask = None if mask is None else mask[:, None, None]
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=key_mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.feed(self.feed_norm(x))


class WhisperEncoder(nn.Module):
    """(B, 80, frames) log-mel -> (B, ceil(frames / 2), layers + 1, dim) states at 50 Hz.

    The states are the output of the convolutional stem and of each block; the last one passes the final LayerNorm.
    Utterances of a batch must have equal lengths, or come with `mask` (B, frames). With a mask the states of each
    utterance are the same as without padding.

    Source: Radford et al. 2022; compared with the original runtime (tests/training/test_encoders.py).
    """

    def __init__(self, size: WhisperSize = WhisperSize()) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv1d(size.mel_bins, size.dim, 3, padding=1)
        self.conv2 = nn.Conv1d(size.dim, size.dim, 3, stride=2, padding=1)
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(size.positions, size.dim))
        self.blocks = nn.ModuleList(Block(size.dim, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.dim)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack(self.layers(mel, mask), 2)

    def layers(self, mel: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The states as a list of (B, frames, dim)."""
        x = functional.gelu(self.conv1(mel))
        state_mask = None
        if mask is not None:
            # The convolutions pad the end of a clip with zeros, so the padding of a shorter clip must be zero, too.
            x = x * mask[:, None]
            state_mask = mask[:, ::2]
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        states = [x]
        for block in self.blocks:
            x = block(x, state_mask)
            states.append(x)
        return [*states[:-1], self.norm(x)]

    def prepare(self, samples: Tensor) -> Tensor:
        """(samples,) at 16 kHz -> (80, frames) log-mel, computed as in the runtime."""
        return torch.from_numpy(log_mel(samples.numpy()))

    def frames(self, prepared: int) -> int:
        """Number of states for this number of log-mel frames."""
        return -(-prepared // 2)


def normalise_states(states: Tensor) -> Tensor:
    """Normalise each layer's states to mean 0 and variance 1 over their width, so that layers can be summed."""
    return functional.layer_norm(states, states.shape[-1:])
