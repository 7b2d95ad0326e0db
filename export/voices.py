"""How well a model hears voices of corpora that it never met, beside a linear model on the same encoder's states.

    python -m export.voices                                      # choosing: each training corpus left out in turn
    python -m export.voices --model hbaf_edge/models/default     # a bundle or a checkpoint beside the linear model
    python -m export.voices --model hbaf_edge/models/default --final   # unseen corpora: once (training/ledger.py)

training/voices.py has the protocol. A bundle is judged through the runtime that ships, a checkpoint in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from export.compare import EPSILON
from export.score import predict_labelled_turns
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Cell, cell_text
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError
from training import checkpoint, encoders, ledger, voices
from training.command import cli, emit
from training.config import TrainConfig
from training.corpora.records import Dialogue, EvaluationSet, digest
from training.distributed import Compute
from training.evaluate import weights_hash
from training.feature_provider import FeatureProvider
from training.results import save_report
from training.tasks import predict_labelled
from training.training_module import load_training_module
from training.voices import HISTORIES, Model

CLIPS = ("ravdess", "nemo", "emospeech")
LIMIT = 400
TEXT = (
    "UAR over the labels that the tested corpus has. Life-like: after 16 turns of the same speaker with MELD's shares "
    "of labels; one mood: after 16 turns of the clip's own label. –: the model was trained on these clips."
)


def load_model(path: Path) -> tuple[str, str, Model]:
    """Load a checkpoint or a bundle; return its name, the hash under which the ledger knows it, and the model."""
    if (path / "config.json").exists():
        trained_on = tuple(checkpoint.describe(path)[0].get("corpora", ()))
        module = load_training_module(path)
        features = FeatureProvider(module, TrainConfig(use="audio"))

        def in_torch(dialogues: list[Dialogue]) -> tuple[Tensor, Tensor]:
            features.prepare(dialogues)
            predictions = predict_labelled(module, features, dialogues, "audio")
            return predictions.logits, predictions.labels

        return path.name, weights_hash([path]), Model(in_torch, trained_on)
    bundle = load_bundle(path)
    runtime = HBAFRuntime(path, threads=2)

    def in_runtime(dialogues: list[Dialogue]) -> tuple[Tensor, Tensor]:
        predictions, labels = predict_labelled_turns(runtime, EvaluationSet("audio", dialogues), "predicting")
        probabilities = torch.tensor([list(p.probabilities.values()) for p in predictions])
        return probabilities.clamp(min=EPSILON).log(), torch.tensor(labels)

    name = f"{bundle.manifest['name']}, {bundle.manifest['precision']}"
    return name, bundle.model_key, Model(in_runtime, tuple(bundle.manifest.get("corpora", ())))


def table_rows(result: dict[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of a table with one row per tested set."""
    who = [w for w in ("linear", "model") if any(f"{w}, first turn" in row for row in result.values())]
    columns = ["chance", *(f"{w}, {kind}" for w in who for kind in HISTORIES)]
    rows: list[list[Cell]] = [
        [name, " ".join(row["trained_on"]), row["clips"], *(round(row[c], 3) if c in row else None for c in columns)]
        for name, row in result.items()
    ]
    return ["tested on", "linear model trained on", "clips", *columns], rows


def final_result(names: Sequence[str], name: str, key: str, model: Model | None) -> dict[str, Any]:
    """Score the unseen corpora once, and enter the scores in the ledger."""
    encoder, sets = encoders.load_audio(encoders.model_config().audio_encoder), voices.unseen_sets(names)
    data = {f"{corpus}, voices": digest(one.clips) for corpus, one in sets.items()}

    def score(missing: list[str]) -> dict[str, Any]:
        wanted = {corpus: one for corpus, one in sets.items() if f"{corpus}, voices" in missing}
        scored = voices.score_voices(wanted, encoder, model, LIMIT)
        return {f"{corpus}, voices": row for corpus, row in scored.items()}

    return ledger.score_once(name, key, data, score)


def final_voices(path: Path) -> dict[str, Any]:
    """Score a bundle or checkpoint on the unseen corpora once, with the standard settings."""
    return final_result(CLIPS, *load_model(path))


def main(
    model: Path | None = None,
    clips: tuple[str, ...] = CLIPS,
    limit: int = LIMIT,
    final: bool = False,
    save: Path | None = None,
    compute: Compute = Compute(device="cpu"),
    json_output: bool = False,
) -> None:
    """Compare.

    Args:
        model: checkpoint or bundle to show beside the linear model.
        clips: corpora that the linear model is trained on.
        limit: clips of each tested set, about.
        final: test on the unseen corpora instead, and enter the result in the ledger.
        save: JSON file for the result, such as benchmarks/results/voices.json.
        compute: device and threads.
    """
    compute.start()
    name, key, loaded = load_model(model) if model is not None else ("linear model", "none", None)
    if final:
        if clips != CLIPS or limit != LIMIT:
            raise InputError("--final scores once, with the standard --clips and --limit; leave these options out")
        result = final_result(clips, name, key, loaded)
    else:
        encoder = encoders.load_audio(encoders.model_config().audio_encoder)
        result = voices.score_voices(voices.selecting_sets(clips), encoder, loaded, limit)
    head, rows = table_rows(result)
    if save is not None:
        save_report(save, "Voices of corpora never met", head, rows, TEXT, "" if key == "none" else key)
    shown = Table(*head)
    for row in rows:
        shown.add_row(*map(cell_text, row))
    emit(result, json_output, shown)


if __name__ == "__main__":
    cli(main)
