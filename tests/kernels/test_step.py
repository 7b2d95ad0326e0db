"""The step kernel against its reference in float64, and the reference against the conversations of the runtime."""

import numpy as np
import pytest
import torch

from hbaf_edge.conversation import Conversation, Sizes, TurnState, relate
from kernels.reference import GateWeights, Memory, bimodal_attention_gate
from kernels.ring import Ring, Step, step_reference
from kernels.step import step
from tests.backends import commit
from tests.kernels.made import CLOSE, DEVICE, DTYPES, cast, turn, within

SHAPES = [
    {},
    {"window": 1, "heads": 1},
    {"window": 5, "e": 24},
    {"window": 32, "heads": 4, "e": 64, "batch": 2},
    {"window": 40, "e": 8, "batch": 1},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_plain_torchs(shape, dtype):
    given, ring, weights = turn(**shape, dtype=dtype)
    exact = step_reference(*(cast(x, torch.float64) for x in (given, ring, weights)), store=False)
    plain = step_reference(given, ring, weights, store=False)
    within(step(given, ring, weights, store=False), exact, plain)


@pytest.mark.parametrize("place", [0, 1, 3, 7, 8, 9, 15, 16, 1_000_003])
def test_every_place_in_the_ring(place):
    """First turns, half-full rings, the first lap's end, and a conversation of weeks."""
    given, ring, weights = turn(turns=[place, place + 1, 0])
    exact = step_reference(*(cast(x, torch.float64) for x in (given, ring, weights)), store=False)
    within(step(given, ring, weights, store=False), exact, step_reference(given, ring, weights, store=False))


@pytest.mark.parametrize("now", [0, 1, 2, 3])
@pytest.mark.parametrize("past", [0, 1, 2, 3])
def test_absent_modalities_and_empty_memories(now, past):
    given, ring, weights = turn(turns=[20, 20, 20])
    given = given._replace(slots=torch.full_like(given.slots, past), now=torch.full_like(given.now, now))
    exact = step_reference(*(cast(x, torch.float64) for x in (given, ring, weights)), store=False)
    found = step(given, ring, weights, store=False)
    within(found, exact, step_reference(given, ring, weights, store=False))
    if not now and not past:
        assert (found == 0).all()


@pytest.mark.parametrize("large", [2, 128])
def test_what_is_not_visible_cannot_be_felt(large, monkeypatch):
    """Rubbish in every slot out of the window, of an absent modality or of another conversation changes no bit."""
    monkeypatch.setattr("kernels.step.LARGE", large)
    given, ring, weights = turn(turns=[5, 0, 11])
    found = step(given, ring, weights, store=False)
    spoiled = Ring(*(x.clone() for x in ring))
    for b, count in enumerate([5, 0, 11]):
        for j in range(8):
            far = (count - 1 - j) % 8 + 1
            for m in range(2):
                if far >= 8 or far > count or not int(given.slots[b, j]) >> m & 1:
                    for part in spoiled:
                        part[given.rows[b].item(), j, m] = float("nan")
    others = [p for p in range(5) if p not in given.rows.tolist()]
    for part in spoiled:
        part[others] = float("nan")
    assert torch.equal(step(given, spoiled, weights, store=False), found)
    spoiled.values[given.rows[1].item()] = spoiled.keys[given.rows[1].item()] = float("nan")
    spoiled.values[given.rows[2].item()] = float("nan")  # one conversation is broken: its neighbours are not
    hurt = step(given, spoiled, weights, store=False)
    assert torch.equal(hurt[:2], found[:2])
    assert hurt[2].isnan().any()


@pytest.mark.parametrize("large", [2, 128])
def test_a_turn_enters_its_own_slot_and_no_other(large, monkeypatch):
    monkeypatch.setattr("kernels.step.LARGE", large)
    given, ring, weights = turn(turns=[5, 0, 11])
    ours, theirs = (Ring(*(x.clone() for x in ring)) for _ in range(2))
    assert torch.equal(step(given, ours, weights), step(given, ours, weights, store=True))
    step_reference(given, theirs, weights, store=True)
    for a, b, before in zip(ours, theirs, ring):
        assert torch.equal(a, b)
        assert (a != before).flatten(2).any(2).sum() == 3
        assert (a[given.rows.long(), torch.tensor([5, 0, 3], device=DEVICE)]
                == given.news[:, :, 0 if a is ours.keys else 1]).all()  # fmt: skip


def test_nothing_is_stored_before_the_turn_is_committed():
    """A turn to come would overwrite what the last turn, being revised, still sees."""
    last, ring, weights = turn(turns=[19, 19, 19])
    last = last._replace(slots=torch.full_like(last.slots, 3))
    before = Ring(*(x.clone() for x in ring))
    found = step(last, ring, weights)
    provisional = last._replace(turn=last.turn + 1)
    step(provisional, ring, weights)
    assert all(torch.equal(a, b) for a, b in zip(ring, before))
    assert torch.equal(step(last, ring, weights), found)
    step(provisional, ring, weights, store=True)
    assert not torch.equal(step(last, ring, weights), found)


@pytest.mark.parametrize("batch", [15, 18])
def test_large_batches_share_a_program_and_agree(batch, monkeypatch):
    monkeypatch.setattr("kernels.step.LARGE", 2)
    given, ring, weights = turn(batch=batch, window=4, e=8)
    exact = step_reference(*(cast(x, torch.float64) for x in (given, ring, weights)), store=False)
    within(step(given, ring, weights), exact, step_reference(given, ring, weights, store=False))


def test_a_ring_between_other_layers_is_read_where_it_lies():
    given, ring, weights = turn()
    pool = torch.zeros(5, 3, 2, *ring.keys.shape[1:], device=DEVICE)  # conversations, layers, keys and values
    pool[:, 1, 0], pool[:, 1, 1] = ring.keys, ring.values
    assert torch.equal(step(given, Ring(pool[:, 1, 0], pool[:, 1, 1]), weights), step(given, ring, weights))


def test_many_turns_are_the_whole_sequence():
    """Turn by turn through the kernel against each turn's full window, assembled by hand."""
    window, heads, e, turns = 4, 2, 16, 11
    _, ring, weights = turn(batch=1, window=window, heads=heads, e=e, pool=0)
    spoken = [turn(batch=1, window=window, heads=heads, e=e, seed=s, pool=0)[0] for s in range(turns)]
    said = [("anna", "bob", None)[s % 3] for s in range(turns)]
    for t, given in enumerate(spoken):
        slots = torch.zeros(1, window, dtype=torch.uint8, device=DEVICE)
        for past in range(max(0, t - window), t):
            slots[0, past % window] = (int(spoken[past].now) & 3) + 4 * relate(said[t], said[past])
        now = (given.now & 3) + 4 * relate(said[t], said[t])
        here = given._replace(rows=given.rows * 0, turn=torch.full_like(given.turn, t), slots=slots, now=now)
        found = step(here, ring, weights, store=True)
        seen = range(max(0, t - window + 1), t + 1)
        memories = []
        for m in range(2):
            keys, values = (torch.stack([spoken[p].news[0, m, i] for p in seen], 1)[None] for i in range(2))
            visible = torch.tensor([bool(int(spoken[p].now) >> m & 1) for p in seen], device=DEVICE)[None, None]
            bias = torch.stack([weights.bias[m, :, t - p, relate(said[t], said[p])] for p in seen], 1)[None, :, None]
            memories.append(Memory(keys, values, visible, bias))
        for m in range(2):
            expected = bimodal_attention_gate(
                given.asks[:, m, 0][:, :, None], given.asks[:, m, 1][:, :, None], memories[m], memories[1 - m],
                GateWeights(*(part[m] for part in weights[1:])),
            )  # fmt: skip
            torch.testing.assert_close(found[:, m], expected[:, :, 0], **CLOSE)


def test_distance_and_window_are_the_conversations():
    """What the runtime's rings say a turn may recall is what the kernel works out from the turn's number."""
    from kernels.ring import distances

    chat = Conversation("key", Sizes(4, 1, 2))
    for n in range(11):
        recall = chat.view("a").arrays
        far, inside = distances(torch.tensor([n]), 4)
        assert np.array_equal(far.numpy(), recall.distance)
        assert np.array_equal((inside & torch.tensor([[t is not None for t in chat.memory.turns]])).numpy(),
                              recall.visible.any(-1))  # fmt: skip
        zero = np.zeros((2, 2), np.float32)
        commit(chat, TurnState(zero, zero, zero[None], zero[None], np.array([True, False])), "a")


def test_fields_are_in_the_kernels_order():
    """The launcher and the build pass them by place."""
    from kernels.step import gate_step

    names = list(gate_step.arg_names)
    assert names[:2] == list(Step._fields[:2])
    assert names[4:8] == ["rows", "turns", "slots", "nows"]
    assert names[13:18] == ["out", "batch", "step_row", "store", "scale"]
