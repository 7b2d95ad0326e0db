"""The four graphs of a bundle as modules, made of the very parts that training trains.

audio and text run once per utterance; utterance and dialogue also take what the conversation's rings hold, so that a
turn costs the same however many came before it. Names and shapes here are those of the bundle (training/MODEL.md,
"Graphs"); B conversations, W slots, d width, L dialogue layers.
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
from training.layers import AUDIO, TEXT, FusionLayer, Slots
from training.model import HBAF, Window


class AudioGraph(nn.Module):
    """mel (B, 80, frames) -> frames (B, ceil(frames / 2), dim): the encoder's layers, summed as learned."""

    def __init__(self, encoder: nn.Module, model: HBAF) -> None:
        super().__init__()
        self.encoder, self.mix = encoder, model.audio.mix

    def forward(self, mel: Tensor) -> Tensor:
        return self.mix(audio_states(self.encoder, mel))


class TextGraph(nn.Module):
    """tokens, token_mask (B, T) int64 -> states (B, T, dim)."""

    def __init__(self, encoder: Any, model: HBAF) -> None:
        super().__init__()
        self.encoder, self.mix = encoder, model.text.mix

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        return self.mix(text_states(self.encoder, tokens, token_mask))


class UtteranceGraph(nn.Module):
    """Uni-modal representation with contextual content, and the utterance scope.

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
        remembered = model.context.remember(means)
        window = _window(visible, distance, relation)
        past = model.context.recall(means[:, None, AUDIO], Slots(context_keys, context_values), window.visible, window)
        codes = model.fuse_utterance(frame_states + past, stacked_mask, token_states, token_mask)
        return codes, remembered.keys, remembered.values


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
        # The turn itself stands behind the ring's slots, at distance 0.
        distance = torch.cat([distance, torch.zeros_like(own_relation)], 1)[:, None]
        relation = torch.cat([relation, own_relation], 1)[:, None]
        seen = torch.cat([visible, present[:, None]], 1)
        new_keys, new_values = [], []
        state = codes[:, None, AUDIO], codes[:, None, TEXT]
        for index, (layer, bias) in enumerate(zip(model.dialogue_scope, model.bias)):
            assert isinstance(layer, FusionLayer)
            new = [layer.remember(x, m) for m, x in enumerate(state)]
            slots = [
                Slots(
                    torch.cat([keys[:, index, :, m], new[m].keys], 1),
                    torch.cat([values[:, index, :, m], new[m].values], 1),
                )
                for m in (AUDIO, TEXT)
            ]
            state = layer(state, slots, [seen[:, None, :, m] for m in (AUDIO, TEXT)], bias(distance, relation))
            new_keys.append(torch.cat([n.keys for n in new], 1))
            new_values.append(torch.cat([n.values for n in new], 1))
        embedding = torch.cat([x[:, 0] for x in state], 1)
        return model.head(embedding), embedding, torch.stack(new_keys, 1), torch.stack(new_values, 1)


def _window(visible: Tensor, distance: Tensor, relation: Tensor) -> Window:
    """A ring as a window of one query: its slots already know what is inside of W and present."""
    seen = visible.any(-1)[:, None]
    return Window(seen, distance[:, None], relation[:, None], visible, rows=distance)


@dataclass(frozen=True)
class Graph:
    """A module ready for export: example inputs by name, names of outputs, and which axes vary beside the batch."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: Sequence[str]
    varying: dict[str, dict[int, Any]]


def graphs(model: HBAF, audio: nn.Module, text: nn.Module) -> dict[str, Graph]:
    """The four graphs with example inputs; every batch, frame and token axis varies, the window does not."""
    c = model.config
    if not (c.fusion and c.causal):
        raise InputError("a model without fusion or with future context is for ablations; it has no incremental form")
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
