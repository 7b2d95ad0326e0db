"""The HBAF model: causality, padding, window, speakers, absent modalities and ablations."""

import dataclasses

import numpy as np
import pytest
import torch

from training.batches import Turn, collate
from training.config import ModelConfig
from training.errors import TrainingError
from training.model import HBAF

CONFIG = ModelConfig(audio_dim=6, audio_states=2, text_dim=5, text_states=3, width=16, heads=2, window=4)


def build(**changes):
    torch.manual_seed(1)
    model = HBAF(dataclasses.replace(CONFIG, **changes)).double().eval()
    for table in [b.table for b in model.bias] + [model.context.bias.table]:
        torch.nn.init.normal_(table)
    return model


def turns(count, seed=0, speakers=("a", "b", None)):
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        text = rng.standard_normal((rng.integers(1, 6), 3, 5)) if rng.random() < 0.8 else None
        audio = rng.standard_normal((rng.integers(1, 14), 2, 6)) if text is None or rng.random() < 0.7 else None
        result.append(Turn(int(rng.integers(7)), speakers[i % len(speakers)], text, audio))
    return result


def batch_of(*histories):
    """Histories as one batch in float64."""
    flat = [turn for history in histories for turn in history]
    batch = collate(histories, [t.audio for t in flat], [t.text for t in flat], (2, 6), (3, 5))
    batch.audio, batch.text = batch.audio.double(), batch.text.double()
    return batch


def run(model, *histories):
    batch = batch_of(*histories)
    with torch.no_grad():
        return model(batch)


def test_earlier_logits_are_bit_identical_when_later_turns_change():
    model, history = build(), turns(10)
    changed = [*history[:6], *turns(4, seed=9)]
    # The lengths stay the same, and with them the order of floating-point operations.
    for i in range(6, 10):
        text, audio = history[i].text, history[i].audio
        changed[i] = Turn(0, "z", None if text is None else text[::-1] * 3, None if audio is None else audio[::-1] + 1)
    a, b = run(model, history), run(model, changed)
    assert torch.equal(a.logits[:6], b.logits[:6])
    assert not torch.allclose(a.logits[6:], b.logits[6:])


def test_dialogues_of_a_batch_are_independent():
    model = build()
    first, second = turns(30, 1), turns(3, 2)  # more turns than in one part
    both = run(model, first, second).logits
    torch.testing.assert_close(both[:30], run(model, first).logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(both[30:], run(model, second).logits, rtol=1e-9, atol=1e-9)


def test_padding_does_not_change_logits():
    model, history = build(), turns(5, 3)
    longer = Turn(0, "a", np.ones((40, 3, 5)), np.ones((90, 2, 6)))
    alone = run(model, history).logits
    padded = run(model, history, [longer]).logits[:5]
    torch.testing.assert_close(alone, padded, rtol=1e-9, atol=1e-9)


def test_speakers_and_order_matter():
    model, history = build(), turns(4, 4, speakers=("a", "b"))
    renamed = [dataclasses.replace(t, speaker={"a": "x", "b": "y"}[t.speaker]) for t in history]
    hidden = [dataclasses.replace(t, speaker=None) for t in history]
    swapped = [history[1], history[0], *history[2:]]
    base = run(model, history).logits[-1]
    assert torch.equal(base, run(model, renamed).logits[-1])
    assert not torch.allclose(base, run(model, hidden).logits[-1])
    assert not torch.allclose(base, run(model, swapped).logits[-1])


def test_window_contains_w_utterances_with_the_current_one():
    """With one dialogue layer, no context network and W = 4, turn i sees turns i − 3 to i."""
    model = build(dialogue_layers=1, context_network=False)
    history = turns(6, 5)
    within_window = run(model, history[2:]).logits[-1]
    torch.testing.assert_close(run(model, history).logits[-1], within_window, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(within_window, run(model, history[3:]).logits[-1])


def test_masked_values_do_not_change_logits():
    model, history = build(), turns(5, 6)
    history[1] = Turn(0, "a", np.ones((3, 3, 5)), None)
    batch = batch_of(history)
    with torch.no_grad():
        a = model(batch).logits
        batch.audio[1] = 1e3  # masked values
        b = model(batch).logits
    assert torch.equal(a, b)


@pytest.mark.parametrize("flag", ["context_network", "fusion", "gate", "relevance", "residual", "causal"])
def test_every_ablation_changes_the_logits(flag):
    history = turns(6, 7)
    full, ablated = run(build(), history).logits, run(build(**{flag: False}), history).logits
    assert torch.isfinite(ablated).all()
    assert not torch.allclose(full, ablated)


def test_turns_are_independent_without_fusion_and_context():
    model, history = build(fusion=False, context_network=False), turns(4, 8)
    torch.testing.assert_close(run(model, history).logits[-1], run(model, history[-1:]).logits[-1])


def test_every_parameter_has_a_gradient():
    from training import losses
    from training.config import LossWeights

    model = build()
    histories = [turns(6, seed) for seed in range(4)]
    batch = batch_of(*histories)
    losses.total(model, batch, model(batch), LossWeights()).backward()
    without_gradient = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without_gradient == []


def test_standardisation_undoes_scaling_of_the_states():
    history = turns(4, 2)
    model, scaled = build(), build()
    scaled.audio.standardise.set(torch.full((6,), 3.0), torch.full((6,), 2.0))
    scaled_history = [Turn(t.label, t.speaker, t.text, None if t.audio is None else 2 * t.audio + 3) for t in history]
    torch.testing.assert_close(run(scaled, scaled_history).logits, run(model, history).logits)


def test_config_with_unknown_fields_raises():
    stored = CONFIG.to_json()
    assert ModelConfig.from_json(stored) == CONFIG
    assert ModelConfig.from_json({**stored, "earlier_turns": 0, "recurrent": False}) == CONFIG
    with pytest.raises(TrainingError, match="recurrent"):
        ModelConfig.from_json({**stored, "recurrent": True})
    with pytest.raises(TrainingError, match="novelty"):
        ModelConfig.from_json({**stored, "novelty": 1})
