"""The four graphs of a bundle as modules. They use the layers of the trained model.

The audio and text graphs encode one utterance. The utterance and dialogue graphs also read the keys and values of
earlier turns from the conversation's ring buffers, so a turn costs the same after any number of earlier turns.

Names and shapes are those of the bundle (docs/model.md, "Graphs"): B conversations, W ring slots, d width,
L dialogue layers, F stacked frames, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from hbaf_edge.errors import InputError
from training.encoders import audio_states, text_states
from training.layers import AUDIO, TEXT, FusionLayer, KeyValues
from training.model import HBAF, Window


class AudioGraph(nn.Module):
    """mel (B, 80, frames) -> frames (B, ceil(frames / 2), dim), the weighted sum of the encoder's layers."""

    def __init__(self, encoder: nn.Module, model: HBAF) -> None:
        super().__init__()
        self.encoder, self.mix = encoder, model.audio.mix

    def forward(self, mel: Tensor) -> Tensor:
        return self.mix(audio_states(self.encoder, mel))


class TextGraph(nn.Module):
    """tokens, token_mask (B, T) int64 -> states (B, T, dim), the weighted sum of the encoder's layers."""

    def __init__(self, encoder: Any, model: HBAF) -> None:
        super().__init__()
        self.encoder, self.mix = encoder, model.text.mix

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        return self.mix(text_states(self.encoder, tokens, token_mask))


class UtteranceGraph(nn.Module):
    """Unimodal representations with context from earlier turns, and the utterance scope.

    frames (B, 4F, dim), frame_mask (B, 4F) bool, tokens (B, T, dim), token_mask (B, T) bool, context_keys and
    context_values (B, W, 2, d), visible (B, W, 2) bool, distance and relation (B, W) int64
    -> codes, context_key, context_value (B, 2, d)
    """

    def __init__(self, model: HBAF) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        frames: Tensor,
        frame_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        context_keys: Tensor,
        context_values: Tensor,
        visible: Tensor,
        distance: Tensor,
        relation: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        frame_states, stacked_mask, token_states, means = model.represent_mixed(frames, frame_mask, tokens, token_mask)
        new = model.context.keys_values(means)
        window = _ring_window(visible, distance, relation)
        past = model.context.attend_to_past(
            means[:, None, AUDIO], KeyValues(context_keys, context_values), window.visible, window
        )
        codes = model.fuse_utterance(frame_states + past, stacked_mask, token_states, token_mask)
        return codes, new.keys, new.values


class DialogueGraph(nn.Module):
    """Dialogue scope and head for one new turn.

    codes (B, 2, d), present (B, 2) bool, keys and values (B, L, W, 2, d), visible (B, W, 2) bool, distance and
    relation (B, W) int64, own_relation (B, 1) int64
    -> logits (B, labels), embedding (B, 2d), new_keys and new_values (B, L, 2, d)
    """

    def __init__(self, model: HBAF) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        codes: Tensor,
        present: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor,
        distance: Tensor,
        relation: Tensor,
        own_relation: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model = self.model
        # The new turn comes after the W ring slots, at distance 0. Example with W = 3 and two earlier turns, in slots
        # 0 and 1: distance [2, 1, *] becomes [2, 1, *, 0], and visible [T, T, F] becomes [T, T, F, present].
        distance = torch.cat([distance, torch.zeros_like(own_relation)], 1)[:, None]
        relation = torch.cat([relation, own_relation], 1)[:, None]
        visible = torch.cat([visible, present[:, None]], 1)
        new_keys, new_values = [], []
        state = codes[:, None, AUDIO], codes[:, None, TEXT]
        for index, (layer, bias) in enumerate(zip(model.dialogue_scope, model.bias)):
            assert isinstance(layer, FusionLayer)
            new = [layer.keys_values(x, m) for m, x in enumerate(state)]
            keys_values = [
                KeyValues(
                    torch.cat([keys[:, index, :, m], new[m].keys], 1),
                    torch.cat([values[:, index, :, m], new[m].values], 1),
                )
                for m in (AUDIO, TEXT)
            ]
            state = layer(state, keys_values, [visible[:, None, :, m] for m in (AUDIO, TEXT)], bias(distance, relation))
            new_keys.append(torch.cat([n.keys for n in new], 1))
            new_values.append(torch.cat([n.values for n in new], 1))
        embedding = torch.cat([x[:, 0] for x in state], 1)
        return model.head(embedding), embedding, torch.stack(new_keys, 1), torch.stack(new_values, 1)


def _ring_window(visible: Tensor, distance: Tensor, relation: Tensor) -> Window:
    """The ring buffer as a window with one query; `visible` already excludes empty slots and absent modalities."""
    has_turn = visible.any(-1)[:, None]
    return Window(has_turn, distance[:, None], relation[:, None], visible, rows=distance)  # rows is not read here


@dataclass(frozen=True)
class Graph:
    """A module to export, with example inputs by name, output names, and dynamic axes other than the batch."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: Sequence[str]
    dynamic_axes: dict[str, dict[int, Any]]


def graphs(model: HBAF, audio: nn.Module, text: nn.Module) -> dict[str, Graph]:
    """The four graphs with example inputs. Batch, frame and token axes are dynamic; the window is fixed.

    Raises:
        InputError: the model is an ablation without an incremental form.
    """
    c = model.config
    if not (c.fusion and c.causal):
        raise InputError("a model without fusion or with future context is an ablation; it has no incremental form")
    ring = {
        "visible": torch.ones(2, c.window, 2, dtype=torch.bool),
        "distance": torch.arange(c.window, 0, -1).expand(2, -1).contiguous(),
        "relation": torch.zeros(2, c.window, dtype=torch.int64),
    }
    utterance = {
        "frames": torch.randn(2, 3 * c.stack, c.audio_dim),
        "frame_mask": torch.ones(2, 3 * c.stack, dtype=torch.bool),
        "tokens": torch.randn(2, 7, c.text_dim),
        "token_mask": torch.ones(2, 7, dtype=torch.bool),
        "context_keys": torch.randn(2, c.window, 2, c.width),
        "context_values": torch.randn(2, c.window, 2, c.width),
        **ring,
    }
    dialogue = {
        "codes": torch.randn(2, 2, c.width),
        "present": torch.ones(2, 2, dtype=torch.bool),
        "keys": torch.randn(2, c.dialogue_layers, c.window, 2, c.width),
        "values": torch.randn(2, c.dialogue_layers, c.window, 2, c.width),
        **ring,
        "own_relation": torch.zeros(2, 1, dtype=torch.int64),
    }
    mel = {"mel": torch.randn(2, 80, 60)}
    tokens = {"tokens": torch.randint(5, 100, (2, 7)), "token_mask": torch.ones(2, 7, dtype=torch.int64)}
    count, stacks = Dim("tokens_count", min=1, max=512), Dim("stacks", min=1, max=512)
    longer = {name: {1: count} for name in tokens}
    frames = {name: {1: c.stack * stacks} for name in ("frames", "frame_mask")}
    codes = ["codes", "context_key", "context_value"]
    return {
        "audio": Graph(AudioGraph(audio, model), mel, ["frames"], {"mel": {2: Dim("mel_frames", min=1, max=3000)}}),
        "text": Graph(TextGraph(text, model), tokens, ["states"], longer),
        "utterance": Graph(UtteranceGraph(model), utterance, codes, {**frames, **longer}),
        "dialogue": Graph(DialogueGraph(model), dialogue, ["logits", "embedding", "new_keys", "new_values"], {}),
    }
