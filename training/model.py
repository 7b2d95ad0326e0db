"""HBAF, top down, in the words of training/MODEL.md.

Shapes: B dialogues, N utterances of a dialogue, U utterances of a batch, F audio frames at 12.5 Hz, T text tokens,
d width, H heads, e = d/H, W window, M memory slots. Modality 0 is audio, 1 is text. Parts: training/layers.py.
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
    LayerMix,
    OrderBias,
    SelfAttention,
    Slots,
    Standardise,
    StatisticsPooling,
    join_heads,
    masked_mean,
    split_heads,
)

PART = 16  # utterances of like lengths that are computed together; more where they are short
PART_SLOTS = 512  # frames and tokens of a part, padded


@dataclass
class Batch:
    """U utterances and how they follow one another in B dialogues.

    Shapes: audio (U, 4F', states, dim), audio_mask (U, 4F') bool, text (U, T, states, dim), text_mask (U, T) bool,
    rows (B, N) int64 index into U or −1, relation (B, N, N) int64, labels (U,) int64, honest (U, 2) bool;
    a label of −1 is unknown: the turn is context only.
    An absent modality is a row whose mask is all False; one that misleads is not `honest`, and no uni-modal or
    contrastive loss is taken on it.
    """

    audio: Tensor
    audio_mask: Tensor
    text: Tensor
    text_mask: Tensor
    rows: Tensor
    relation: Tensor
    labels: Tensor
    honest: Tensor


class Output(NamedTuple):
    """logits (U, labels), embedding (U, 2d), audio_logits and text_logits (U, labels) and the unimodal codes (U, d)."""

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

    Source: training/MODEL.md. `forward` sees whole dialogues through a causal sliding window; export/graphs.py
    takes the same parts turn by turn, with earlier turns in rings.
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
        """A whole pass over the batch's dialogues, causal unless the config says otherwise."""
        parts = by_length(batch, self.config.stack)
        heard = [self.represent(*part[1:]) for part in parts]
        present = torch.stack([batch.audio_mask.any(1), batch.text_mask.any(1)], 1)
        back = torch.argsort(torch.cat([rows for rows, *_ in parts]))
        means = torch.cat([m for *_, m in heard])[back]
        window = Window.of(batch, present, self.config)
        past = window.gather(self.context(window.scatter(means), window))
        sounds = torch.cat([masked_mean(frames, mask) for frames, mask, *_ in heard])[back]
        unimodal = sounds, means[:, TEXT]  # before any word reaches audio
        codes = torch.cat(
            [
                self.fuse_utterance(frames + past[rows, None], frame_mask, tokens, token_mask)
                for (rows, *_, token_mask), (frames, frame_mask, tokens, _) in zip(parts, heard)
            ]
        )[back]
        fused = window.gather(self.fuse_dialogue(window.scatter(codes), window))
        embedding = fused.flatten(1)
        audio_logits, text_logits = (head(code) for head, code in zip(self.unimodal_heads, unimodal))
        return Output(self.head(embedding), embedding, audio_logits, text_logits, *unimodal)

    def represent(self, audio: Tensor, audio_mask: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """Uni-modal representation of each utterance by itself.

        Returns:
            frames (U, F, d), frame_mask (U, F), tokens (U, T, d) and the means (U, 2, d) that later turns recall.
        """
        return self.represent_mixed(self.audio.mix(audio), audio_mask, self.text.mix(text), text_mask)

    def represent_mixed(self, audio: Tensor, audio_mask: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """`represent` from encoder states whose layers are already summed: (U, 4F, dim) and (U, T, dim)."""
        projected, frames, frame_mask = self.audio(audio, audio_mask)
        tokens = self.text(text)
        means = torch.stack([masked_mean(projected, frame_mask), masked_mean(tokens, text_mask)], 1)
        return frames, frame_mask, tokens, means

    def fuse_utterance(self, frames: Tensor, frame_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Utterance scope: frames × tokens, both ways, then pooling to (U, 2, d); absent ones are learned vectors."""
        masks = frame_mask, token_mask
        state = frames, tokens
        for layer in self.utterance_scope if self.config.fusion else ():
            assert isinstance(layer, FusionLayer)
            visible = [m[:, None] for m in masks]
            slots = [layer.remember(x, modality) for modality, x in enumerate(state)]
            state = layer(state, slots, visible, (None, None))
        codes = [pool(x, m) for pool, x, m in zip(self.pool, state, masks)]
        present = [m.any(1, keepdim=True) for m in masks]
        return torch.stack([torch.where(p, c, a) for p, c, a in zip(present, codes, self.absent)], 1)

    def fuse_dialogue(self, codes: Tensor, window: Window) -> Tensor:
        """Dialogue scope over a whole dialogue: (B, N, 2, d) -> (B, N, 2, d)."""
        for layer, bias in zip(self.dialogue_scope, self.bias) if self.config.fusion else ():
            assert isinstance(layer, FusionLayer)
            state = codes[:, :, AUDIO], codes[:, :, TEXT]
            slots = [layer.remember(x, modality) for modality, x in enumerate(state)]
            visible = [window.visible & window.present[:, None, :, m] for m in (AUDIO, TEXT)]
            codes = torch.stack(layer(state, slots, visible, bias(window.distance, window.relation)), 2)
        return codes


def by_length(batch: Batch, stack: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Utterances of like lengths together, each part cut to its longest: rows and their audio, text and masks.

    Lengths in a batch differ tenfold, and what is done to each utterance by itself costs as much for padding as for
    sound. Nothing but lengths decides, so that a changed utterance of the same length is computed as before.
    """
    ends = [
        (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
        for mask in (batch.audio_mask, batch.text_mask)
    ]
    order = torch.argsort(ends[AUDIO] * (batch.text_mask.shape[1] + 1) + ends[TEXT], stable=True)
    part = max(PART, PART_SLOTS // max(1, int((ends[AUDIO] // stack + ends[TEXT]).max())))
    parts = []
    inputs = batch.audio, batch.audio_mask, batch.text, batch.text_mask
    for rows, *cut in zip(order.split(part), *(x[order].split(part) for x in inputs)):
        frames, tokens = (max(1, int(end[rows].max())) for end in ends)
        frames += -frames % stack
        parts.append((rows, cut[0][:, :frames], cut[1][:, :frames], cut[2][:, :tokens], cut[3][:, :tokens]))
    return parts


@dataclass
class Window:
    """Who sees whom: the causal sliding window over B dialogues of N turns.

    Shapes: visible (B, N, M) bool, distance and relation (B, N, M) int64, present (B, M, 2) bool.
    """

    visible: Tensor
    distance: Tensor
    relation: Tensor
    present: Tensor
    rows: Tensor

    @classmethod
    def of(cls, batch: Batch, present: Tensor, config: ModelConfig) -> Window:
        """The window of a batch; the bidirectional variant is for offline comparison only."""
        turns = torch.arange(batch.rows.shape[1], device=batch.rows.device)
        distance = turns[:, None] - turns[None]
        if not config.causal:
            distance = distance.abs()
        real = batch.rows >= 0
        visible = (distance >= 0) & (distance < config.window) & real[:, None, :]
        scattered = present[batch.rows.clamp(min=0)] & real[..., None]
        return cls(visible, distance.expand(visible.shape), batch.relation, scattered, batch.rows)

    def scatter(self, utterances: Tensor) -> Tensor:
        """(U, …) -> (B, N, …)"""
        return utterances[self.rows.clamp(min=0)]

    def gather(self, turns: Tensor) -> Tensor:
        """(B, N, …) -> (U, …), in the order of the rows."""
        real = self.rows >= 0
        flat = turns[real]
        return torch.zeros_like(flat).index_copy(0, self.rows[real], flat)


class TextProjection(nn.Module):
    """(U, T, dim) layers summed by `mix` -> (U, T, d): projection and LayerNorm."""

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
    """A = LN(W x + SelfAttention(ConvContext(x))) over frames stacked four to one."""

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
        """(U, frames at 50 Hz, dim) with layers summed by `mix` -> projected (U, F, d), A (U, F, d), frame_mask (U, F).

        Frames are padded with zeros to a multiple of four by the caller; a stack counts if any of its frames does.
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
    """Contextual content for the low-level audio: what earlier utterances' audio and words add to every frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.query = nn.Linear(d, d)
        self.key_value = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(2))
        self.bias = OrderBias(config)
        self.out = nn.Linear(d, d)

    def remember(self, means: Tensor) -> Slots:
        """(…, 2, d) means -> keys and values (…, 2, d) for later turns."""
        pairs = [project(means[..., m, :]).chunk(2, -1) for m, project in enumerate(self.key_value)]
        return Slots(*(torch.stack(parts, -2) for parts in zip(*pairs)))

    def forward(self, means: Tensor, window: Window) -> Tensor:
        """(B, N, 2, d) -> (B, N, d)"""
        earlier = window.visible & (window.distance > 0)
        return self.recall(means[:, :, AUDIO], self.remember(means), earlier, window)

    def recall(self, means: Tensor, slots: Slots, earlier: Tensor, window: Window) -> Tensor:
        """Queries (B, N, d) on slots (B, M, 2, d) -> (B, N, d), zero where no earlier turn is visible."""
        if not self.config.context_network:
            return torch.zeros_like(means)
        heads = self.config.heads
        visible = [earlier & window.present[:, None, :, m] for m in (AUDIO, TEXT)]
        keys, values = (split_heads(x.transpose(1, 2).flatten(1, 2), heads) for x in slots)
        bias = self.bias(window.distance, window.relation)
        memory = Memory(keys, values, torch.cat(visible, -1), torch.cat(bias, -1))
        result, seen = attend(split_heads(self.query(means), heads), memory)
        projected = self.out(join_heads(result))
        return torch.where(seen[:, 0], projected, 0.0)
