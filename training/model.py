"""The HBAF model, top down, as described in docs/model.md.

Shapes: B dialogues, N utterances of a dialogue, U utterances of a batch, F audio frames at 12.5 Hz, T text tokens,
d width, H heads, e = d/H, W window, M key/value slots. Modality 0 is audio, 1 is text. Layers: training/layers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.reference import Memory, attend
from training.config import ModelConfig
from training.layers import (
    AUDIO,
    TEXT,
    ConvContext,
    FusionLayer,
    Head,
    KeyValues,
    LayerMix,
    OrderBias,
    SelfAttention,
    Standardise,
    StatisticsPooling,
    join_heads,
    masked_mean,
    split_heads,
)

PART_UTTERANCES = 16  # utterances of similar length computed together; more if they are short
PART_POSITIONS = 512  # padded frames and tokens of all utterances of a part


@dataclass
class Batch:
    """U utterances and their order in B dialogues.

    Shapes: audio (U, 4F', states, dim), audio_mask (U, 4F') bool, text (U, T, states, dim), text_mask (U, T) bool,
    rows (B, N) int64 index into U or −1, relation (B, N, N) int64, labels (U,) int64, is_matched (U, 2) bool;
    a turn with the label −1 is only context. The mask of an absent modality is all False. No unimodal or contrastive
    loss is computed on a modality that is not `is_matched`.
    """

    audio: Tensor
    audio_mask: Tensor
    text: Tensor
    text_mask: Tensor
    rows: Tensor
    relation: Tensor
    labels: Tensor
    is_matched: Tensor


class Output(NamedTuple):
    """logits, audio_logits, text_logits (U, labels), embedding (U, 2d), unimodal audio_code and text_code (U, d)."""

    logits: Tensor
    embedding: Tensor
    audio_logits: Tensor
    text_logits: Tensor
    audio_code: Tensor
    text_code: Tensor


class HBAF(nn.Module):
    """Heterogeneous bimodal attention fusion over whole dialogues.

    Args:
        config: sizes and ablations.

    Source: docs/model.md. `forward` processes whole dialogues with a causal sliding window. export/graphs.py uses
    the same layers turn by turn, with the keys and values of earlier turns in ring buffers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, labels = config.width, len(config.labels)
        self.audio = AudioContextNetwork(config)
        self.text = TextProjection(config)
        self.context = DialogueContext(config)
        self.utterance_scope = nn.ModuleList(FusionLayer(config) for _ in range(config.utterance_layers))
        self.pool = nn.ModuleList(StatisticsPooling(d) for _ in range(2))
        self.absent = nn.Parameter(torch.randn(2, d) * 0.02)
        self.dialogue_scope = nn.ModuleList(FusionLayer(config) for _ in range(config.dialogue_layers))
        self.bias = nn.ModuleList(OrderBias(config) for _ in range(config.dialogue_layers))
        self.head = Head(2 * d, labels, config.dropout)
        self.unimodal_heads = nn.ModuleList(Head(d, labels, config.dropout) for _ in range(2))
        self.contrast = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, config.contrastive_dim)) for _ in range(2)
        )

    def forward(self, batch: Batch) -> Output:
        """Process whole dialogues, causally unless the config says otherwise."""
        parts = by_length(batch, self.config.stack)
        represented = [self.represent(*part[1:]) for part in parts]
        present = torch.stack([batch.audio_mask.any(1), batch.text_mask.any(1)], 1)
        original_order = torch.argsort(torch.cat([rows for rows, *_ in parts]))
        means = torch.cat([m for *_, m in represented])[original_order]
        window = Window.of(batch, present, self.config)
        past = window.gather(self.context(window.scatter(means), window))
        audio_codes = torch.cat([masked_mean(frames, mask) for frames, mask, *_ in represented])[original_order]
        unimodal = audio_codes, means[:, TEXT]  # before either modality reads the other
        codes = torch.cat(
            [
                self.fuse_utterance(frames + past[rows, None], frame_mask, tokens, token_mask)
                for (rows, *_, token_mask), (frames, frame_mask, tokens, _) in zip(parts, represented)
            ]
        )[original_order]
        fused = window.gather(self.fuse_dialogue(window.scatter(codes), window))
        embedding = fused.flatten(1)
        audio_logits, text_logits = (head(code) for head, code in zip(self.unimodal_heads, unimodal))
        return Output(self.head(embedding), embedding, audio_logits, text_logits, *unimodal)

    def represent(self, audio: Tensor, audio_mask: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """Unimodal representation of each utterance.

        Returns:
            frames (U, F, d), frame_mask (U, F), tokens (U, T, d) and means (U, 2, d), the context of later turns.
        """
        return self.represent_mixed(self.audio.mix(audio), audio_mask, self.text.mix(text), text_mask)

    def represent_mixed(self, audio: Tensor, audio_mask: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """`represent` for encoder states whose layers are already summed: (U, 4F, dim) and (U, T, dim)."""
        projected, frames, frame_mask = self.audio(audio, audio_mask)
        tokens = self.text(text)
        means = torch.stack([masked_mean(projected, frame_mask), masked_mean(tokens, text_mask)], 1)
        return frames, frame_mask, tokens, means

    def fuse_utterance(self, frames: Tensor, frame_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Utterance scope: fuse frames and tokens, pool to codes (U, 2, d); an absent modality has a learned code."""
        masks = frame_mask, token_mask
        state = frames, tokens
        for layer in self.utterance_scope if self.config.fusion else ():
            assert isinstance(layer, FusionLayer)
            visible = [m[:, None] for m in masks]
            keys_values = [layer.keys_values(x, modality) for modality, x in enumerate(state)]
            state = layer(state, keys_values, visible, (None, None))
        codes = [pool(x, m) for pool, x, m in zip(self.pool, state, masks)]
        present = [m.any(1, keepdim=True) for m in masks]
        return torch.stack([torch.where(p, c, a) for p, c, a in zip(present, codes, self.absent)], 1)

    def fuse_dialogue(self, codes: Tensor, window: Window) -> Tensor:
        """Dialogue scope over whole dialogues: (B, N, 2, d) -> (B, N, 2, d)."""
        for layer, bias in zip(self.dialogue_scope, self.bias) if self.config.fusion else ():
            assert isinstance(layer, FusionLayer)
            state = codes[:, :, AUDIO], codes[:, :, TEXT]
            keys_values = [layer.keys_values(x, modality) for modality, x in enumerate(state)]
            visible = [window.visible & window.present[:, None, :, m] for m in (AUDIO, TEXT)]
            codes = torch.stack(layer(state, keys_values, visible, bias(window.distance, window.relation)), 2)
        return codes


def by_length(batch: Batch, stack: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Split a batch into parts of utterances of similar length: rows, audio, audio mask, text, text mask of each.

    Lengths in a batch differ by a factor of ten, and padding costs as much as data. The split depends on lengths only,
    so changing an utterance but not its length changes nothing for the others.
    """
    ends = [
        (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
        for mask in (batch.audio_mask, batch.text_mask)
    ]
    order = torch.argsort(ends[AUDIO] * (batch.text_mask.shape[1] + 1) + ends[TEXT], stable=True)
    size = max(PART_UTTERANCES, PART_POSITIONS // max(1, int((ends[AUDIO] // stack + ends[TEXT]).max())))
    parts = []
    inputs = batch.audio, batch.audio_mask, batch.text, batch.text_mask
    for rows, *cut in zip(order.split(size), *(x[order].split(size) for x in inputs)):
        frames, tokens = (max(1, int(end[rows].max())) for end in ends)
        frames += -frames % stack
        parts.append((rows, cut[0][:, :frames], cut[1][:, :frames], cut[2][:, :tokens], cut[3][:, :tokens]))
    return parts


@dataclass
class Window:
    """The causal sliding window: which of N turns see which earlier turns, in B dialogues.

    Shapes: visible (B, N, M) bool, distance and relation (B, N, M) int64, present (B, M, 2) bool.
    """

    visible: Tensor
    distance: Tensor
    relation: Tensor
    present: Tensor
    rows: Tensor

    @classmethod
    def of(cls, batch: Batch, present: Tensor, config: ModelConfig) -> Window:
        """The window of a batch. The bidirectional variant is only for comparison."""
        turns = torch.arange(batch.rows.shape[1], device=batch.rows.device)
        distance = turns[:, None] - turns[None]
        if not config.causal:
            distance = distance.abs()
        is_turn = batch.rows >= 0
        visible = (distance >= 0) & (distance < config.window) & is_turn[:, None, :]
        scattered = present[batch.rows.clamp(min=0)] & is_turn[..., None]
        return cls(visible, distance.expand(visible.shape), batch.relation, scattered, batch.rows)

    def scatter(self, utterances: Tensor) -> Tensor:
        """Arrange utterances (U, …) by dialogue and turn, (B, N, …)."""
        return utterances[self.rows.clamp(min=0)]

    def gather(self, turns: Tensor) -> Tensor:
        """The inverse of `scatter`: (B, N, …) -> (U, …)."""
        is_turn = self.rows >= 0
        flat = turns[is_turn]
        return torch.zeros_like(flat).index_copy(0, self.rows[is_turn], flat)


class TextProjection(nn.Module):
    """Projection and LayerNorm of states summed by `mix`: (U, T, dim) -> (U, T, d)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mix = LayerMix(config.text_states)
        self.standardise = Standardise(config.text_dim)
        self.project = nn.Linear(config.text_dim, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, mixed: Tensor) -> Tensor:
        return self.dropout(self.norm(self.project(self.standardise(mixed))))


class AudioContextNetwork(nn.Module):
    """A = LN(W x + SelfAttention(ConvContext(x))) over stacks of four frames."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.mix = LayerMix(config.audio_states)
        self.standardise = Standardise(config.audio_dim)
        self.project = nn.Linear(config.stack * config.audio_dim, d)
        self.project_norm = nn.LayerNorm(d)
        self.skip = nn.Linear(d, d)
        self.convolve = ConvContext(d, config.kernel, config.dropout)
        self.attention = SelfAttention(d, config.heads)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, mixed: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Process states (U, frames at 50 Hz, dim) summed by `mix`; the number of frames is a multiple of the stack.

        Returns:
            projected (U, F, d), A (U, F, d) and frame_mask (U, F), true where any frame of the stack is.
        """
        stack = self.config.stack
        mixed = torch.where(mask[..., None], self.standardise(mixed), 0.0)
        frame_mask = mask.unflatten(1, (-1, stack)).any(-1)
        stacked = mixed.unflatten(1, (-1, stack)).flatten(2)
        projected = self.dropout(self.project_norm(self.project(self.dropout(stacked))))
        if not self.config.context_network:
            return projected, projected, frame_mask
        local = self.attention(self.convolve(projected, frame_mask), frame_mask)
        return projected, self.norm(self.skip(projected) + self.dropout(local)), frame_mask


class DialogueContext(nn.Module):
    """Context for the audio frames: attention over the means of earlier utterances' audio and text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.query = nn.Linear(d, d)
        self.key_value = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(2))
        self.bias = OrderBias(config)
        self.out = nn.Linear(d, d)

    def keys_values(self, means: Tensor) -> KeyValues:
        """Keys and values (…, 2, d) for later turns of means (…, 2, d)."""
        pairs = [project(means[..., m, :]).chunk(2, -1) for m, project in enumerate(self.key_value)]
        return KeyValues(*(torch.stack(parts, -2) for parts in zip(*pairs)))

    def forward(self, means: Tensor, window: Window) -> Tensor:
        """Context (B, N, d) of means (B, N, 2, d)."""
        earlier = window.visible & (window.distance > 0)
        return self.attend_to_past(means[:, :, AUDIO], self.keys_values(means), earlier, window)

    def attend_to_past(self, means: Tensor, keys_values: KeyValues, earlier: Tensor, window: Window) -> Tensor:
        """Attend from means (B, N, d) to keys and values (B, M, 2, d) -> (B, N, d); zero without earlier turns."""
        if not self.config.context_network:
            return torch.zeros_like(means)
        heads = self.config.heads
        visible = [earlier & window.present[:, None, :, m] for m in (AUDIO, TEXT)]
        keys, values = (split_heads(x.transpose(1, 2).flatten(1, 2), heads) for x in keys_values)
        bias = self.bias(window.distance, window.relation)
        memory = Memory(keys, values, torch.cat(visible, -1), torch.cat(bias, -1))
        result, has_past = attend(split_heads(self.query(means), heads), memory)
        projected = self.out(join_heads(result))
        return torch.where(has_past[:, 0], projected, 0.0)
