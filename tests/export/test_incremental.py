"""Predicting turn by turn equals one causal pass over the whole dialogue, for any length, window, speakers, modalities.

These tests use the exported modules and the runtime's `Conversation`; tests/hbaf_edge/test_runtime.py does the same
with ONNX Runtime.
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graphs import DialogueGraph, UtteranceGraph
from hbaf_edge.conversation import Conversation, Sizes, TurnState, speaker_relation
from tests.backends import commit_turn
from training.config import ModelConfig
from training.model import HBAF, Batch

STACK, FRAMES, TOKENS = 4, 8, 3


def random_model(window, layers, seed):
    """A tiny model whose result depends on order, speakers and absent modalities."""
    torch.manual_seed(seed)
    config = ModelConfig(audio_dim=6, audio_states=1, text_dim=5, text_states=1, width=16, heads=2, window=window,
                         utterance_layers=1, dialogue_layers=layers, kernel=3)  # fmt: skip
    model = HBAF(config).eval()
    for table in [b.table for b in model.bias] + [model.context.bias.table, model.absent]:
        torch.nn.init.normal_(table)
    return model


def dialogue(count, seed):
    """Random encoder states, speakers (some unknown) and modalities (at least one per turn)."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    audio, text = torch.randn(count, FRAMES, 1, 6), torch.randn(count, TOKENS, 1, 5)
    modalities = [rng.choice(["audio", "text", "both", "both"]) for _ in range(count)]
    audio_mask = torch.tensor([m != "text" for m in modalities])[:, None].expand(-1, FRAMES)
    text_mask = torch.tensor([m != "audio" for m in modalities])[:, None].expand(-1, TOKENS)
    speakers = [rng.choice(["anna", "bob", "carl", None]) for _ in range(count)]
    relation = torch.tensor([[speaker_relation(a, b) for b in speakers] for a in speakers])[None]
    rows = torch.arange(count)[None]
    labels, is_matched = torch.zeros(count).long(), torch.ones(count, 2).bool()
    batch = Batch(audio, audio_mask, text, text_mask, rows, relation, labels, is_matched)
    return batch, speakers


def predict_turn_by_turn(model, batch, speakers):
    """Logits and embeddings of all turns, computed as in the runtime but with PyTorch modules."""
    c = model.config
    utterance_graph, dialogue_graph = UtteranceGraph(model), DialogueGraph(model)
    conversation = Conversation("k", Sizes(c.window, c.dialogue_layers, c.width))
    results = []
    for i, speaker in enumerate(speakers):
        view = {k: torch.from_numpy(v) for k, v in conversation.view(speaker).arrays._asdict().items()}
        window = {k: view[k] for k in ("visible", "distance", "relation")}
        context = {k: view[k] for k in ("context_keys", "context_values")}
        states = (batch.audio[i, :, 0], batch.audio_mask[i], batch.text[i, :, 0], batch.text_mask[i])
        codes, key, value = utterance_graph(*(x[None] for x in states), **context, **window)
        present = torch.stack([batch.audio_mask[i].any(), batch.text_mask[i].any()])
        past = {k: view[k] for k in ("keys", "values", "own_relation")}
        logits, embedding, keys, values = dialogue_graph(codes, present[None], **past, **window)
        state = TurnState(*(x[0].numpy() for x in (key, value, keys, values)), present.numpy())
        commit_turn(conversation, state, speaker)
        results.append((logits[0], embedding[0]))
    return [torch.stack(parts) for parts in zip(*results)]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 200), window=st.integers(1, 64), layers=st.integers(1, 3), seed=st.integers(0, 999))
def test_turn_by_turn_equals_one_pass_over_the_dialogue(count, window, layers, seed):
    model = random_model(window, layers, seed)
    batch, speakers = dialogue(count, seed)
    with torch.inference_mode():
        expected = model(batch)
        logits, embedding = predict_turn_by_turn(model, batch, speakers)
    torch.testing.assert_close(embedding, expected.embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_turn_influences_exactly_the_next_turns_in_reach(window):
    """Reach is 3 (W - 1) turns. Without this test, the one above would also pass for a model without any memory."""
    model = random_model(window, 2, 0)
    batch, _ = dialogue(20, 1)
    batch.audio_mask, batch.text_mask = torch.ones(20, FRAMES).bool(), torch.ones(20, TOKENS).bool()
    with torch.inference_mode():
        before = model(batch).logits
        batch.audio[0], batch.text[0] = 9.0, -9.0
        after = model(batch).logits
    changed = (before - after).abs().amax(1) > 1e-7
    assert changed.tolist() == [i <= 3 * (window - 1) for i in range(20)]
