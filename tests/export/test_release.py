"""From a trained checkpoint to the bundle that ships, on small synthetic corpora."""

import json
from dataclasses import replace

import pytest

from export import release
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError
from tests.corpora import PAIR_RUN
from training.evaluate import evaluate
from training.loop import train


@pytest.mark.slow
def test_release_writes_scores_and_card_of_an_evaluated_model(small_corpora, quantise_small_matrices):
    train(replace(PAIR_RUN, epochs=1), small_corpora / "run")
    with pytest.raises(InputError, match="no temperatures yet"):
        release.release(small_corpora / "run", small_corpora / "work", small_corpora / "out", "test model")
    evaluate(small_corpora / "run")
    scores = release.release(small_corpora / "run", small_corpora / "work", small_corpora / "out", "test model")
    manifest = load_bundle(small_corpora / "out").manifest
    assert manifest["scores"] == json.loads(json.dumps(scores))
    assert manifest["float32_difference"] <= 1e-4
    assert manifest["licence"]["commercial"] is False
    assert manifest["headline"]["against float32"].split()[0] == str(scores["against_float32"]["label_flips"])
    assert "NON-COMMERCIAL" in repr(HBAFRuntime(small_corpora / "out"))
    card = (small_corpora / "out" / "MODEL_CARD.md").read_text()
    assert "not for commercial use" in card
    assert "recall anger" in card
    assert "RAVDESS" in (small_corpora / "out" / "LICENSE-WEIGHTS").read_text()
