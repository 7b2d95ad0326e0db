"""The ring buffer: which turns are visible, at which distance and speaker relation, after any number of turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbaf_edge.conversation import OTHER, SAME, UNKNOWN, Conversation, Sizes, TurnState
from tests.backends import commit_turn

SPEAKERS = st.sampled_from(["anna", "bob", None])


def turn_state(turn, width=4, layers=2, present=(True, True)):
    """State whose values are the turn's number."""
    context = np.full((2, width), turn, np.float32)
    return TurnState(
        context,
        context,
        np.full((layers, 2, width), turn, np.float32),
        np.full((layers, 2, width), turn, np.float32),
        np.array(present),
    )


@given(window=st.integers(1, 9), speakers=st.lists(SPEAKERS, max_size=30), speaker=SPEAKERS)
def test_exactly_the_last_turns_of_the_window_are_visible(window, speakers, speaker):
    chat = Conversation("k", Sizes(window, 2, 4))
    for turn, past_speaker in enumerate(speakers):
        commit_turn(chat, turn_state(turn), past_speaker)
    context = chat.view(speaker).arrays
    visible = context.visible[0].all(-1)
    turns = context.keys[0, 0, :, 0, 0][visible]
    # The window has W turns including the current one.
    assert sorted(turns.tolist()) == list(range(max(0, len(speakers) - window + 1), len(speakers)))
    for slot in np.flatnonzero(visible):
        turn = int(context.context_keys[0, slot, 0, 0])
        assert context.distance[0, slot] == len(speakers) - turn
        relation = UNKNOWN if None in (speaker, speakers[turn]) else SAME if speaker == speakers[turn] else OTHER
        assert context.relation[0, slot] == relation
    assert context.own_relation.item() == (UNKNOWN if speaker is None else SAME)


def test_a_missing_modality_is_masked():
    chat = Conversation("k", Sizes(4, 2, 4))
    commit_turn(chat, turn_state(0, present=(False, True)), None)
    assert chat.view(None).arrays.visible[0, 0].tolist() == [False, True]


def test_a_commit_that_fails_half_way_changes_nothing_visible():
    """The arrays are written first and the count last, so visible slots and the count stay as they were."""
    chat = Conversation("k", Sizes(3, 2, 4))
    for turn in range(5):
        commit_turn(chat, turn_state(turn), "anna")
    before = chat.view("anna").arrays
    keys_before = visible_keys(before)
    with pytest.raises(ValueError, match="broadcast"):
        commit_turn(chat, turn_state(9)._replace(values=np.zeros((7, 7))), "bob")
    after = chat.view("anna").arrays
    assert chat.turn == 5
    np.testing.assert_array_equal(before.visible, after.visible)
    np.testing.assert_array_equal(keys_before, visible_keys(after))


def visible_keys(context):
    """Keys of all layers, with zeros in invisible slots."""
    is_visible = context.visible[0].any(-1)
    return np.where(is_visible[None, :, None, None], context.keys[0], 0)
