"""What run.sh compares: the turns are the same every time, and a difference is found. Emulation itself is run.sh's."""

import copy
import itertools

import numpy as np
import pytest

from tests.arm64 import compare, turns


def committed():
    return [*turns.audio_conversations(), *turns.text_conversations()]


def test_the_turns_are_as_many_as_is_said_and_the_same_every_time(runtime):
    conversations = committed()
    assert max(map(len, conversations)) > runtime.manifest["window"], "one is longer than the context"
    flat = list(itertools.chain(*conversations))
    clips = [turn for turn in flat if turn.get("audio") is not None]
    assert (len(clips), len(flat) - len(clips)) == (turns.CLIPS, turns.TEXT_TURNS)
    assert 0 < sum(bool(turn.get("text")) for turn in clips) < turns.CLIPS, "some clips have text, some have none"
    for first, second in zip(flat, itertools.chain(*committed()), strict=True):
        np.testing.assert_equal(first, second)


@pytest.fixture
def result():
    turn = {"label": "joy", "modalities": ["audio"], "probabilities": {"joy": 0.6, "anger": 0.4}}
    return {"bundle": "ab", "material": "committed", "machine": {}, "turns": [turn, copy.deepcopy(turn)]}


def test_equal_results_have_no_difference(result):
    compared = compare.compare(result, copy.deepcopy(result))
    assert (compared["labels_differing"], compared["largest_difference"]) == ([], 0)
    assert (compared["turns"], compared["turns_with_audio"]) == (2, 2)


def test_different_models_or_turns_are_not_compared(result):
    for field in ("bundle", "material"):
        with pytest.raises(SystemExit, match=field):
            compare.compare(result, {**result, field: "other"})
    with pytest.raises(ValueError, match="shorter"):
        compare.compare(result, {**result, "turns": result["turns"][:1]})


@pytest.mark.parametrize(("arm", "x86", "passed"), [(0.505, 0.49, True), (0.52, 0.48, False), (0.9, 0.6, False)])
def test_only_ties_may_differ(result, arm, x86, passed):
    there, here = copy.deepcopy(result), result
    for side, joy in ((there, arm), (here, x86)):
        turn = side["turns"][0]
        turn.update(label="joy" if joy > 0.5 else "anger", probabilities={"joy": joy, "anger": 1 - joy})
    assert compare.is_passed(compare.compare(there, here)) == passed
