"""From a trained checkpoint to the bundle that ships, on small synthetic corpora."""

import json
from dataclasses import replace

import pytest

from export import release, score
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError
from tests.corpora import PAIR_RUN
from training import ledger
from training.evaluate import evaluate
from training.loop import train


@pytest.mark.slow
def test_release_writes_scores_and_card_of_an_evaluated_model(small_corpora, quantise_small_matrices):
    train(replace(PAIR_RUN, epochs=1), small_corpora / "run")
    folders = (small_corpora / "run", small_corpora / "work", small_corpora / "out")
    with pytest.raises(InputError, match="no temperatures yet"):
        release.release(*folders, "test model", parity_turns=30)
    evaluate(small_corpora / "run")
    scores = release.release(*folders, "test model", parity_turns=30)
    assert {"meld dev, text", "ravdess dev, audio"} < set(scores)
    assert not any("test" in name for name in scores), "test is not read without --final"
    assert not ledger.entries()
    manifest = load_bundle(small_corpora / "out").manifest
    assert manifest["scores"] == json.loads(json.dumps(scores))
    assert manifest["parity_about"]["reference"] == "the trained weights"
    assert manifest["float32_difference"] <= 1e-4
    assert manifest["licence"]["commercial"] is False
    assert manifest["headline"]["against float32"].split()[0] == str(scores["against_float32"]["label_flips"])
    assert "NON-COMMERCIAL" in repr(HBAFRuntime(small_corpora / "out"))
    card = (small_corpora / "out" / "MODEL_CARD.md").read_text()
    assert "not for commercial use" in card
    assert "recall anger" in card
    assert [row["name"] for row in manifest["parity"]] == ["float32", "float16", "int8"]
    assert "RAVDESS" in (small_corpora / "out" / "LICENSE-WEIGHTS").read_text()

    final = score.final_scores(small_corpora / "out")
    assert set(final) == {"meld test, text", "ravdess test, audio"}
    (entry,) = ledger.entries()
    assert entry["scores"] == final
    assert entry["sha256"] == load_bundle(small_corpora / "out").model_key
    again = release.release(*folders, "test model", parity_turns=30)
    assert len(ledger.entries()) == 1
    assert final.items() <= again.items(), "a model that was scored before gets its scores from the ledger"
