"""The turns of run.sh are reproducible, and the comparison detects differences. Only run.sh runs the emulation."""

import copy
import itertools

import numpy as np
import pytest

from tests.arm64 import compare, turns


def committed_conversations():
    return [*turns.audio_conversations(), *turns.text_conversations()]


def test_the_committed_turns_have_the_documented_number_and_are_reproducible(runtime):
    conversations = committed_conversations()
    assert max(map(len, conversations)) > runtime.manifest["window"], "one must be longer than the window"
    flat = list(itertools.chain(*conversations))
    clips = [turn for turn in flat if turn.get("audio") is not None]
    assert (len(clips), len(flat) - len(clips)) == (turns.CLIPS, turns.TEXT_TURNS)
    assert 0 < sum(bool(turn.get("text")) for turn in clips) < turns.CLIPS, "some clips have text, some have none"
    for first, second in zip(flat, itertools.chain(*committed_conversations()), strict=True):
        np.testing.assert_equal(first, second)


@pytest.fixture
def result():
    turn = {"label": "joy", "modalities": ["audio"], "probabilities": {"joy": 0.6, "anger": 0.4}}
    return {"bundle": "ab", "material": "committed", "machine": {}, "turns": [turn, copy.deepcopy(turn)]}


def test_equal_results_have_no_difference(result):
    comparison = compare.compare(result, copy.deepcopy(result))
    assert (comparison["labels_differing"], comparison["largest_difference"]) == ([], 0)
    assert (comparison["turns"], comparison["turns_with_audio"]) == (2, 2)


def test_results_of_different_models_or_turns_raise_an_error(result):
    for field in ("bundle", "material"):
        with pytest.raises(SystemExit, match=field):
            compare.compare(result, {**result, field: "other"})
    with pytest.raises(ValueError, match="shorter"):
        compare.compare(result, {**result, "turns": result["turns"][:1]})


@pytest.mark.parametrize(("arm", "x86", "expected"), [(0.505, 0.49, True), (0.52, 0.48, False), (0.9, 0.6, False)])
def test_labels_may_differ_only_in_ties(result, arm, x86, expected):
    arm_result, x86_result = copy.deepcopy(result), result
    for architecture, joy in ((arm_result, arm), (x86_result, x86)):
        turn = architecture["turns"][0]
        turn.update(label="joy" if joy > 0.5 else "anger", probabilities={"joy": joy, "anger": 1 - joy})
    assert compare.meets_bounds(compare.compare(arm_result, x86_result)) == expected
