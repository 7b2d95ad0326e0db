"""The ring: who is seen, at what distance, in which relation, after any number of turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbaf_edge.conversation import OTHER, SAME, UNKNOWN, Conversation, Sizes, TurnState
from tests.backends import commit

SPEAKERS = st.sampled_from(["anna", "bob", None])


def slot(turn, width=4, layers=2, present=(True, True)):
    code = np.full((2, width), turn, np.float32)
    return TurnState(
        code,
        code,
        np.full((layers, 2, width), turn, np.float32),
        np.full((layers, 2, width), turn, np.float32),
        np.array(present),
    )


@given(window=st.integers(1, 9), speakers=st.lists(SPEAKERS, max_size=30), now=SPEAKERS)
def test_ring_recalls_the_last_turns_and_no_others(window, speakers, now):
    chat = Conversation("k", Sizes(window, 2, 4))
    for turn, speaker in enumerate(speakers):
        commit(chat, slot(turn), speaker)
    recall = chat.view(now).arrays
    seen = recall.visible[0].all(-1)
    held = recall.keys[0, 0, :, 0, 0][seen]
    # The current turn is the window's first; W − 1 before it may be seen.
    assert sorted(held.tolist()) == list(range(max(0, len(speakers) - window + 1), len(speakers)))
    for place in np.flatnonzero(seen):
        turn = int(recall.context_keys[0, place, 0, 0])
        assert recall.distance[0, place] == len(speakers) - turn
        relation = UNKNOWN if None in (now, speakers[turn]) else SAME if now == speakers[turn] else OTHER
        assert recall.relation[0, place] == relation
    assert recall.own_relation.item() == (UNKNOWN if now is None else SAME)


def test_absent_modality_stays_masked():
    chat = Conversation("k", Sizes(4, 2, 4))
    commit(chat, slot(0, present=(False, True)), None)
    assert chat.view(None).arrays.visible[0, 0].tolist() == [False, True]


def test_commit_cut_short_changes_nothing_that_is_seen():
    """Written first, counted last: a commit that dies half-way leaves every visible slot and the count as they were."""
    chat = Conversation("k", Sizes(3, 2, 4))
    for turn in range(5):
        commit(chat, slot(turn), "anna")
    before = chat.view("anna").arrays
    kept = [np.where(before.visible.any(-1)[0][:, None, None], before.keys[0, layer], 0).copy() for layer in (0, 1)]
    with pytest.raises(ValueError, match="broadcast"):
        commit(chat, slot(9)._replace(values=np.zeros((7, 7))), "bob")
    after = chat.view("anna").arrays
    assert chat.turn == 5
    np.testing.assert_array_equal(before.visible, after.visible)
    for layer in (0, 1):
        np.testing.assert_array_equal(
            kept[layer], np.where(after.visible.any(-1)[0][:, None, None], after.keys[0, layer], 0)
        )
