"""The step kernel against its reference in float64, and the reference against the runtime's conversations."""

import numpy as np
import pytest
import torch

from hbaf_edge.conversation import Conversation, Sizes, TurnState, speaker_relation
from kernels.reference import GateWeights, Memory, bimodal_attention_gate
from kernels.ring import Ring, Step, step_reference
from kernels.step import step
from tests.backends import commit_turn
from tests.kernels.random_inputs import CLOSE, DEVICE, DTYPES, assert_error_bound, cast, random_step

SHAPES = [
    {},
    {"window": 1, "heads": 1},
    {"window": 5, "e": 24},
    {"window": 32, "heads": 4, "e": 64, "batch": 2},
    {"window": 40, "e": 8, "batch": 1},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_that_of_pytorch(shape, dtype):
    inputs, ring, weights = random_step(**shape, dtype=dtype)
    exact = step_reference(*(cast(x, torch.float64) for x in (inputs, ring, weights)), store=False)
    plain = step_reference(inputs, ring, weights, store=False)
    assert_error_bound(step(inputs, ring, weights, store=False), exact, plain)


@pytest.mark.parametrize("number", [0, 1, 3, 7, 8, 9, 15, 16, 1_000_003])
def test_every_position_in_the_ring(number):
    """First turns, half-full rings, the wrap-around, and a very long conversation."""
    inputs, ring, weights = random_step(turns=[number, number + 1, 0])
    exact = step_reference(*(cast(x, torch.float64) for x in (inputs, ring, weights)), store=False)
    plain = step_reference(inputs, ring, weights, store=False)
    assert_error_bound(step(inputs, ring, weights, store=False), exact, plain)


@pytest.mark.parametrize("now", [0, 1, 2, 3])
@pytest.mark.parametrize("past", [0, 1, 2, 3])
def test_absent_modalities_and_empty_memories(now, past):
    inputs, ring, weights = random_step(turns=[20, 20, 20])
    inputs = inputs._replace(slots=torch.full_like(inputs.slots, past), now=torch.full_like(inputs.now, now))
    exact = step_reference(*(cast(x, torch.float64) for x in (inputs, ring, weights)), store=False)
    result = step(inputs, ring, weights, store=False)
    assert_error_bound(result, exact, step_reference(inputs, ring, weights, store=False))
    if not now and not past:
        assert (result == 0).all()


@pytest.mark.parametrize("large", [2, 128])
def test_nan_in_slots_that_are_not_visible_changes_no_bit(large, monkeypatch):
    """Slots out of the window, of absent modalities and of other conversations."""
    monkeypatch.setattr("kernels.step.LARGE_BATCH", large)
    inputs, ring, weights = random_step(turns=[5, 0, 11])
    result = step(inputs, ring, weights, store=False)
    with_nan = Ring(*(x.clone() for x in ring))
    for b, count in enumerate([5, 0, 11]):
        for j in range(8):
            far = (count - 1 - j) % 8 + 1
            for m in range(2):
                if far >= 8 or far > count or not int(inputs.slots[b, j]) >> m & 1:
                    for part in with_nan:
                        part[inputs.rows[b].item(), j, m] = float("nan")
    others = [row for row in range(5) if row not in inputs.rows.tolist()]
    for part in with_nan:
        part[others] = float("nan")
    assert torch.equal(step(inputs, with_nan, weights, store=False), result)
    with_nan.values[inputs.rows[1].item()] = with_nan.keys[inputs.rows[1].item()] = float("nan")
    with_nan.values[inputs.rows[2].item()] = float("nan")  # NaN of one conversation does not reach the others
    changed = step(inputs, with_nan, weights, store=False)
    assert torch.equal(changed[:2], result[:2])
    assert changed[2].isnan().any()


@pytest.mark.parametrize("large", [2, 128])
def test_store_writes_only_the_slot_of_the_turn(large, monkeypatch):
    monkeypatch.setattr("kernels.step.LARGE_BATCH", large)
    inputs, ring, weights = random_step(turns=[5, 0, 11])
    stored, expected = (Ring(*(x.clone() for x in ring)) for _ in range(2))
    assert torch.equal(step(inputs, stored, weights), step(inputs, stored, weights, store=True))
    step_reference(inputs, expected, weights, store=True)
    for a, b, before in zip(stored, expected, ring):
        assert torch.equal(a, b)
        assert (a != before).flatten(2).any(2).sum() == 3
        assert (a[inputs.rows.long(), torch.tensor([5, 0, 3], device=DEVICE)]
                == inputs.news[:, :, 0 if a is stored.keys else 1]).all()  # fmt: skip


def test_a_provisional_turn_stores_nothing():
    """Its slot is still visible to the last turn, and that turn may be revised."""
    last, ring, weights = random_step(turns=[19, 19, 19])
    last = last._replace(slots=torch.full_like(last.slots, 3))
    before = Ring(*(x.clone() for x in ring))
    result = step(last, ring, weights)
    provisional = last._replace(turn=last.turn + 1)
    step(provisional, ring, weights)
    assert all(torch.equal(a, b) for a, b in zip(ring, before))
    assert torch.equal(step(last, ring, weights), result)
    step(provisional, ring, weights, store=True)
    assert not torch.equal(step(last, ring, weights), result)


@pytest.mark.parametrize("batch", [15, 18])
def test_large_batches_share_a_program_and_give_the_same_results(batch, monkeypatch):
    monkeypatch.setattr("kernels.step.LARGE_BATCH", 2)
    inputs, ring, weights = random_step(batch=batch, window=4, e=8)
    exact = step_reference(*(cast(x, torch.float64) for x in (inputs, ring, weights)), store=False)
    assert_error_bound(step(inputs, ring, weights), exact, step_reference(inputs, ring, weights, store=False))


def test_a_ring_with_strides_is_read_in_place():
    inputs, ring, weights = random_step()
    memory = torch.zeros(5, 3, 2, *ring.keys.shape[1:], device=DEVICE)  # conversations, layers, keys and values
    memory[:, 1, 0], memory[:, 1, 1] = ring.keys, ring.values
    assert torch.equal(step(inputs, Ring(memory[:, 1, 0], memory[:, 1, 1]), weights), step(inputs, ring, weights))


def test_turn_by_turn_equals_attention_over_each_window():
    """The kernel turn by turn against the reference on each turn's complete window."""
    window, heads, e, turns = 4, 2, 16, 11
    _, ring, weights = random_step(batch=1, window=window, heads=heads, e=e, pool=0)
    steps = [random_step(batch=1, window=window, heads=heads, e=e, seed=s, pool=0)[0] for s in range(turns)]
    speakers = [("anna", "bob", None)[s % 3] for s in range(turns)]
    for t, inputs in enumerate(steps):
        slots = torch.zeros(1, window, dtype=torch.uint8, device=DEVICE)
        for past in range(max(0, t - window), t):
            slots[0, past % window] = (int(steps[past].now) & 3) + 4 * speaker_relation(speakers[t], speakers[past])
        now = (inputs.now & 3) + 4 * speaker_relation(speakers[t], speakers[t])
        current = inputs._replace(rows=inputs.rows * 0, turn=torch.full_like(inputs.turn, t), slots=slots, now=now)
        result = step(current, ring, weights, store=True)
        visible_turns = range(max(0, t - window + 1), t + 1)
        memories = []
        for m in range(2):
            keys, values = (torch.stack([steps[p].news[0, m, i] for p in visible_turns], 1)[None] for i in range(2))
            visible = torch.tensor([bool(int(steps[p].now) >> m & 1) for p in visible_turns], device=DEVICE)[None, None]
            bias = torch.stack(
                [weights.bias[m, :, t - p, speaker_relation(speakers[t], speakers[p])] for p in visible_turns], 1
            )[None, :, None]
            memories.append(Memory(keys, values, visible, bias))
        for m in range(2):
            expected = bimodal_attention_gate(
                inputs.asks[:, m, 0][:, :, None], inputs.asks[:, m, 1][:, :, None], memories[m], memories[1 - m],
                GateWeights(*(part[m] for part in weights[1:])),
            )  # fmt: skip
            torch.testing.assert_close(result[:, m], expected[:, :, 0], **CLOSE)


def test_distance_and_window_equal_those_of_a_conversation():
    """The kernel computes from the turn's number what the runtime has in its context."""
    from kernels.ring import distances

    conversation = Conversation("key", Sizes(4, 1, 2))
    for n in range(11):
        context = conversation.view("a").arrays
        far, inside = distances(torch.tensor([n]), 4)
        assert np.array_equal(far.numpy(), context.distance)
        assert np.array_equal((inside & torch.tensor([[t is not None for t in conversation.memory.turns]])).numpy(),
                              context.visible.any(-1))  # fmt: skip
        zero = np.zeros((2, 2), np.float32)
        commit_turn(conversation, TurnState(zero, zero, zero[None], zero[None], np.array([True, False])), "a")


def test_fields_have_the_order_of_the_kernels_arguments():
    """`step` passes them by position."""
    from kernels.step import gate_step

    names = list(gate_step.arg_names)
    assert names[:2] == list(Step._fields[:2])
    assert names[4:8] == ["rows", "turns", "slots", "nows"]
    assert names[13:18] == ["out", "batch", "step_row", "store", "scale"]
