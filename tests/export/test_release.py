"""From training to the bundle that ships, on made corpora: every step runs, checks itself and is said."""

import json
from dataclasses import replace

import pytest

from export import release
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError
from tests.made import PAIRS
from training.evaluate import evaluate
from training.loop import train


@pytest.mark.slow
def test_release_of_a_trained_model(small, small_counts):
    train(replace(PAIRS, epochs=1), small / "run")
    with pytest.raises(InputError, match="no temperatures yet"):
        release.release(small / "run", small / "work", small / "out", "made")
    evaluate(small / "run")
    measured = release.release(small / "run", small / "work", small / "out", "made")
    manifest = load_bundle(small / "out").manifest
    assert manifest["scores"] == json.loads(json.dumps(measured))
    assert manifest["float32_difference"] <= 1e-4
    assert manifest["licence"]["commercial"] is False
    assert manifest["headline"]["against float32"].split()[0] == str(measured["against_float32"]["label_flips"])
    assert "NON-COMMERCIAL" in repr(HBAFRuntime(small / "out"))
    card = (small / "out" / "MODEL_CARD.md").read_text()
    assert "not for commercial use" in card
    assert "recall anger" in card
    assert "RAVDESS" in (small / "out" / "LICENSE-WEIGHTS").read_text()
