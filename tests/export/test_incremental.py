"""Turn by turn equals the causal sliding-window pass over the whole dialogue: any length, window, speakers, modalities.

Through the modules that are exported and the runtime's own conversation; tests/hbaf_edge/test_runtime.py does the same
through ONNX Runtime.
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graphs import DialogueGraph, UtteranceGraph
from hbaf_edge.conversation import Conversation, Sizes, TurnState, relate
from tests.backends import commit
from training.config import ModelConfig
from training.model import HBAF, Batch

STACK, FRAMES, TOKENS = 4, 8, 3


def made(window, layers, seed):
    """A tiny model in which order, speakers and absence matter."""
    torch.manual_seed(seed)
    config = ModelConfig(audio_dim=6, audio_states=1, text_dim=5, text_states=1, width=16, heads=2, window=window,
                         utterance_layers=1, dialogue_layers=layers, kernel=3)  # fmt: skip
    model = HBAF(config).eval()
    for table in [b.table for b in model.bias] + [model.context.bias.table, model.absent]:
        torch.nn.init.normal_(table)
    return model


def dialogue(count, seed):
    """Random states, speakers (some unknown), and modalities, at least one in each turn."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    audio, text = torch.randn(count, FRAMES, 1, 6), torch.randn(count, TOKENS, 1, 5)
    shown = [rng.choice(["audio", "text", "both", "both"]) for _ in range(count)]
    heard = torch.tensor([s != "text" for s in shown])[:, None].expand(-1, FRAMES)
    said = torch.tensor([s != "audio" for s in shown])[:, None].expand(-1, TOKENS)
    speakers = [rng.choice(["anna", "bob", "carl", None]) for _ in range(count)]
    relation = torch.tensor([[relate(a, b) for b in speakers] for a in speakers])[None]
    rows = torch.arange(count)[None]
    batch = Batch(audio, heard, text, said, rows, relation, torch.zeros(count).long(), torch.ones(count, 2).bool())
    return batch, speakers


def turn_by_turn(model, batch, speakers):
    """What the runtime does, with the modules in the graphs' place."""
    c = model.config
    utterance, turn = UtteranceGraph(model), DialogueGraph(model)
    chat = Conversation("k", Sizes(c.window, c.dialogue_layers, c.width))
    found = []
    for i, speaker in enumerate(speakers):
        recall = {k: torch.from_numpy(v) for k, v in chat.view(speaker).arrays._asdict().items()}
        seen = {k: recall[k] for k in ("visible", "distance", "relation")}
        rings = {k: recall[k] for k in ("context_keys", "context_values")}
        states = (batch.audio[i, :, 0], batch.audio_mask[i], batch.text[i, :, 0], batch.text_mask[i])
        codes, key, value = utterance(*(x[None] for x in states), **rings, **seen)
        present = torch.stack([batch.audio_mask[i].any(), batch.text_mask[i].any()])
        rings = {k: recall[k] for k in ("keys", "values", "own_relation")}
        logits, embedding, keys, values = turn(codes, present[None], **rings, **seen)
        commit(chat, TurnState(*(x[0].numpy() for x in (key, value, keys, values)), present.numpy()), speaker)
        found.append((logits[0], embedding[0]))
    return [torch.stack(parts) for parts in zip(*found)]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 200), window=st.integers(1, 64), layers=st.integers(1, 3), seed=st.integers(0, 999))
def test_turn_by_turn_equals_the_whole_pass(count, window, layers, seed):
    model = made(window, layers, seed)
    batch, speakers = dialogue(count, seed)
    with torch.inference_mode():
        whole = model(batch)
        logits, embedding = turn_by_turn(model, batch, speakers)
    torch.testing.assert_close(embedding, whole.embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, whole.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_past_matters_as_far_as_it_should(window):
    """So that the test above does not hold for a model that has no memory: 3 (W - 1) turns back is felt, no further."""
    model = made(window, 2, 0)
    batch, _ = dialogue(20, 1)
    batch.audio_mask, batch.text_mask = torch.ones(20, FRAMES).bool(), torch.ones(20, TOKENS).bool()
    with torch.inference_mode():
        before = model(batch).logits
        batch.audio[0], batch.text[0] = 9.0, -9.0
        after = model(batch).logits
    changed = (before - after).abs().amax(1) > 1e-7
    assert changed.tolist() == [i <= 3 * (window - 1) for i in range(20)]
