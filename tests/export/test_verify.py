"""The check of a bundle against its checkpoint passes for the right one and fails for another."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.verify import conversation, walk
from hbaf_edge.bundle import load_bundle
from training.from_bundle import restore
from training.learner import Learner


def test_the_bundle_of_this_model_passes(tiny):
    (step,) = walk(Learner(tiny.model, tiny.text, tiny.audio).eval(), [tiny.bundle], [conversation()], threads=1)
    assert not step["broken"]


def test_the_bundle_of_another_model_fails(tiny):
    other = copy.deepcopy(tiny.model)
    with torch.no_grad():
        other.dialogue_scope[0].halves[0].w_g += 0.5
    (step,) = walk(Learner(other, tiny.text, tiny.audio).eval(), [tiny.bundle], [conversation()], threads=1)
    assert step["broken"]


@pytest.mark.slow
def test_int8_turn_by_turn_stays_near_the_whole_pass_in_float32():
    """The model that ships, in INT8 and turn by turn, against PyTorch's whole causal pass with the weights it holds.

    Only the rounding of activations separates them; a wrong ring or scale would show at once.
    """
    bundle = load_bundle(None)
    assert bundle.manifest["precision"] == "int8"
    (step,) = walk(Learner(*restore(bundle)).eval(), [Path(bundle.path)], [conversation()], threads=1)
    assert step["difference_max"] <= 0.06
    assert step["label_flips"] <= 1


def test_the_conversation_is_hard_enough():
    """It runs past the default window three times and has turns without audio, without text and with both."""
    turns = conversation().turns
    assert len(turns) == 100
    kinds = {(bool(u.text), u.audio is not None) for u in turns}
    assert kinds == {(True, True), (True, False), (False, True)}
    assert {u.speaker for u in turns} == {"anna", "bob", None}


def test_data_that_lack_a_label_are_verified(tiny):
    """One label alone, and turns without any: F1 of what is there; a label that never occurs is no error."""
    talk = conversation(12)
    turns = tuple(replace(u, label=3 if i % 2 else u.label) for i, u in enumerate(talk.turns))
    learner = Learner(tiny.model, tiny.text, tiny.audio).eval()
    (step,) = walk(learner, [tiny.bundle], [replace(talk, turns=turns)], threads=1)
    assert set(step["f1_by_label"]) == {"joy"}
    assert step["f1_drop"] == 0.0
    assert not step["broken"]
