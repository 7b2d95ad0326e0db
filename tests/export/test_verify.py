"""A bundle passes against its own checkpoint and fails against another one."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.verify import example_dialogue, parity_chain
from hbaf_edge.bundle import load_bundle
from training.from_bundle import restore
from training.training_module import TrainingModule


def parity_row(module, bundle, dialogue):
    (row,) = parity_chain(module.eval(), [bundle], [dialogue], threads=1)
    return row


def test_bundle_passes_against_its_own_model(tiny):
    row = parity_row(TrainingModule(tiny.model, tiny.text, tiny.audio), tiny.bundle, example_dialogue())
    assert not row["broken"]


def test_bundle_fails_against_another_model(tiny):
    other = copy.deepcopy(tiny.model)
    with torch.no_grad():
        other.dialogue_scope[0].halves[0].w_g += 0.5
    row = parity_row(TrainingModule(other, tiny.text, tiny.audio), tiny.bundle, example_dialogue())
    assert row["broken"]


@pytest.mark.slow
def test_default_int8_bundle_stays_close_to_pytorch():
    """The default bundle turn by turn against PyTorch's causal pass with the weights that the bundle holds.

    The only expected difference is the rounding of activations; a wrong ring slot or scale is much larger.
    """
    bundle = load_bundle(None)
    assert bundle.manifest["precision"] == "int8"
    row = parity_row(TrainingModule(*restore(bundle)), Path(bundle.path), example_dialogue())
    assert row["difference_max"] <= 0.06
    assert row["label_flips"] <= 1


def test_example_dialogue_exceeds_the_window_and_has_all_kinds_of_turns():
    """100 turns are three times the default window; turns have audio, text or both."""
    turns = example_dialogue().turns
    assert len(turns) == 100
    modalities = {(bool(u.text), u.audio is not None) for u in turns}
    assert modalities == {(True, True), (True, False), (False, True)}
    assert {u.speaker for u in turns} == {"anna", "bob", None}


def test_f1_covers_only_labels_that_occur(tiny):
    """Half of the turns have one label, the others none."""
    dialogue = example_dialogue(12)
    turns = tuple(replace(u, label=3 if i % 2 else u.label) for i, u in enumerate(dialogue.turns))
    module = TrainingModule(tiny.model, tiny.text, tiny.audio)
    row = parity_row(module, tiny.bundle, replace(dialogue, turns=turns))
    assert set(row["f1_by_label"]) == {"joy"}
    assert row["f1_drop"] == 0.0
    assert not row["broken"]
