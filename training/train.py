"""Train on any corpus, once or for several seeds and folds, score the dev split and print a table.

    python -m training.train --corpus meld --use text --text-tuning full --epochs 3 --out runs/text
    python -m training.train --corpus manifest:mine.jsonl --out runs/mine
    python -m training.train --corpus ravdess-8 --use audio --folds all --seeds 0 1 2 --out runs/ravdess
    torchrun --nproc-per-node 2 -m training.train --corpus iemocap-6:IEMOCAP --out runs/iemocap

The same command resumes a killed run and does not repeat a finished one. Fold k is test and fold k + 1 is dev; the
dev predictions of all folds are pooled to one set of scores per seed. Test data stay closed until
`python -m training.evaluate RUN --final`. docs/model.md explains the settings. A corpus is NAME or NAME:PATH: meld,
iemocap-6, iemocap-4, ravdess, ravdess-8, nemo, emospeech, emogator, dailytalk, features:FILE.npz, manifest:FILE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from rich.table import Table
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from training import distributed, loop
from training.command import cli, emit
from training.config import ModelConfig, TrainConfig
from training.corpora.records import Corpus
from training.errors import TrainingError
from training.feature_provider import FeatureProvider
from training.files import write, write_json
from training.metrics import fit_temperature, scores
from training.tasks import load_corpus, predict_labelled
from training.training_module import load_training_module

TABLE_SCORES = ("weighted_f1", "macro_f1", "uar", "ece")


@dataclass(frozen=True)
class Plan:
    """The runs of a command, and how each one starts."""

    seeds: tuple[int, ...] = ()  # one run per seed, with mean and deviation in the summary; none uses --seed
    folds: Literal["own", "all"] = "own"  # all: cross-validation over the corpus' folds; own: its own split, or --fold
    init: Path | None = None  # checkpoint to start from, or a folder of checkpoints with the same seeds and folds
    restart: bool = False  # remove earlier runs from the folder


def run_plan(
    config: TrainConfig,
    out: Path,
    plan: Plan,
    model: ModelConfig | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Train all runs of a plan. Return the summary that is also written to summary.json."""
    corpus, folds = corpus_and_folds(config, plan.folds == "all")
    seeds = plan.seeds or (config.seed,)
    is_single = len(seeds) == 1 and len(folds) == 1
    seed_scores, folders = [], []
    for seed in seeds:
        predictions = []
        for fold in folds:
            name = f"seed{seed}" + ("" if fold is None else f"-fold{fold}")
            init = plan.init and start_checkpoint(plan.init, name, is_single)
            folder = out if is_single else out / name
            folders.append(str(folder))
            run_config = replace(config, seed=seed, fold=fold)
            loop.train(run_config, folder, model, init, device, plan.restart)
            if distributed.rank() == 0:
                predictions.append(predictions_on_dev(run_config, folder, device))
        if distributed.rank() == 0:
            seed_scores.append(pooled_scores(predictions, corpus.labels))
    about = {"seeds": list(seeds), "folds": len(folds), "scored_on": "dev", "folders": folders}
    result = summarise_seeds(seed_scores) | about
    if distributed.rank() == 0:
        write_json(out / "summary.json", result, indent=1)
    return result


def corpus_and_folds(config: TrainConfig, cross_validate: bool) -> tuple[Corpus, list[int | None]]:
    """Load the corpus. Return it with the folds to test on: all of them, or only the config's own."""
    if not cross_validate:
        return load_corpus(config), [config.fold]
    corpus = load_corpus(replace(config, fold=0))
    for fold in range(1, corpus.folds):  # an empty fold raises before the first run
        load_corpus(replace(config, fold=fold))
    return corpus, list(range(corpus.folds))


def start_checkpoint(init: Path, name: str, is_single: bool) -> Path:
    """The checkpoint from which a run starts: `init` itself, or the checkpoint of the same name in `init`."""
    if (init / "config.json").is_file() or (is_single and not (init / name).is_dir()):
        return init  # loading raises if it is not a checkpoint
    if not (init / name / "config.json").is_file():
        raise TrainingError(
            f"--init {init} is not a checkpoint and has none named {name}; train its seeds and folds first"
        )
    return init / name


def predictions_on_dev(config: TrainConfig, out: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Logits and labels of a run's dev split, and the temperature fitted to them; stored next to the checkpoint."""
    path = out / "dev.safetensors"
    if not path.exists() or path.stat().st_mtime < (out / "config.json").stat().st_mtime:
        corpus = load_corpus(config)
        module = load_training_module(out, device)
        features = FeatureProvider(module, config, cached=False)
        dev = predict_labelled(module, features, corpus.split("dev"), config.use)
        temperature = torch.tensor(fit_temperature(dev.logits, dev.labels))
        dialogue_index = {d.name: i for i, d in enumerate(corpus.dialogues)}
        turn = torch.tensor([[dialogue_index[t.dialogue], t.position] for t in dev.turns])
        tensors = {"logits": dev.logits, "labels": dev.labels, "turn": turn, "temperature": temperature}
        write(path, as_bytes(tensors))
    return load_file(path)


def pooled_scores(predictions: Sequence[dict[str, Tensor]], labels: tuple[str, ...]) -> dict[str, Any]:
    """Scores of the predictions of all folds together, each fold calibrated by its own temperature."""
    raw = torch.cat([p["logits"] for p in predictions])
    scaled = torch.cat([p["logits"] / p["temperature"] for p in predictions])
    truth = torch.cat([p["labels"] for p in predictions])
    return scores(scaled, truth, labels) | {"ece_before_scaling": scores(raw, truth, labels)["ece"]}


def summarise_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every score, and the scores of each seed."""
    names = [k for k, v in runs[0].items() if isinstance(v, float)] if runs else []
    values_of = {name: [float(run[name]) for run in runs] for name in names}
    deviation = {name: stdev(values) if len(values) > 1 else 0.0 for name, values in values_of.items()}
    return {"mean": {n: mean(v) for n, v in values_of.items()}, "sd": deviation, "runs": runs}


def score_cells(result: Mapping[str, Any], names: Sequence[str] = TABLE_SCORES) -> list[str]:
    """Table cells with mean ± deviation over seeds, in percent."""
    return [f"{100 * result['mean'][k]:.1f} ± {100 * result['sd'][k]:.1f}" for k in names]


def table(results: Mapping[str, dict[str, Any]], first_column: str = "run") -> Table:
    """A table with the scores of each summary."""
    shown = Table(first_column, "scored on", "seeds", *(name.replace("_", " ") for name in TABLE_SCORES))
    for name, r in results.items():
        scored_on = "dev, also used for selection" if r["scored_on"] == "dev" else r["scored_on"]
        shown.add_row(name, scored_on, str(len(r["runs"])), *score_cells(r))
    return shown


def main(
    out: Path,
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    plan: Plan = Plan(),
    compute: distributed.Compute = distributed.Compute(),
    json_output: bool = False,
) -> None:
    """Train.

    Args:
        out: folder of the run, or of one run per seed and fold.
        train: settings of the run.
        model: flags and sizes of a new model; a model from --init keeps its own.
        plan: seeds, folds and start.
        compute: device and threads.
    """
    result = run_plan(train, out, plan, model, compute.start())
    if distributed.rank() == 0:
        emit(result, json_output, table({str(out): result}))


if __name__ == "__main__":
    cli(main)
