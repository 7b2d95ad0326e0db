"""Train on any corpus, once or over seeds and folds; scored on test, and shown as a table.

    python -m training.train --corpus meld --use text --text-tuning full --epochs 3 --out runs/text
    python -m training.train --corpus manifest:mine.jsonl --out runs/mine
    python -m training.train --corpus ravdess-8 --use audio --folds all --seeds 0 1 2 --out runs/ravdess
    torchrun --nproc-per-node 2 -m training.train --corpus iemocap-6:IEMOCAP --out runs/iemocap

A run that was killed goes on when the same command is given again, and one that is there already is not repeated. Fold
k tests and fold k + 1 selects; predictions of all folds are pooled to one set of scores per seed. training/MODEL.md
says what the choices mean. A corpus is NAME or NAME:PATH: meld, iemocap-6, iemocap-4, ravdess, ravdess-8, tess,
emogator, dailytalk, features:FILE.npz, manifest:FILE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from training import distributed, loop
from training.command import cli
from training.config import ModelConfig, TrainConfig
from training.corpora.records import Corpus
from training.errors import TrainingError
from training.files import write, write_json
from training.learner import load_learner
from training.material import Material
from training.metrics import fit_temperature, scores
from training.stages import load_corpus, score

SHOWN = ("weighted_f1", "macro_f1", "uar", "ece")


@dataclass(frozen=True)
class Plan:
    """Which runs are made, and how each starts."""

    seeds: tuple[int, ...] = ()  # several runs, reported with mean and deviation; none is --seed alone
    folds: Literal["own", "all"] = "own"  # all: cross-validation over the corpus' folds; own: its own split, or --fold
    init: Path | None = None  # checkpoint to start from, or a folder of such with the same seeds and folds
    restart: bool = False  # forget what the folder holds


def carry_out(
    config: TrainConfig,
    out: Path,
    plan: Plan,
    model: ModelConfig | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Every run of the plan; returns the summary that is also written to summary.json."""
    corpus, folds = folded(config, plan.folds == "all")
    seeds = plan.seeds or (config.seed,)
    single = len(seeds) == 1 and len(folds) == 1
    found, folders = [], []
    for seed in seeds:
        predictions = []
        for fold in folds:
            name = f"seed{seed}" + ("" if fold is None else f"-fold{fold}")
            start = plan.init and beginning(plan.init, name, single)
            place = out if single else out / name
            folders.append(str(place))
            run = replace(config, seed=seed, fold=fold)
            loop.train(run, place, model, start, device, plan.restart)
            if distributed.rank() == 0:
                predictions.append(predictions_of(run, place, device))
        if distributed.rank() == 0:
            found.append(pooled(predictions, corpus.labels))
    about = {"seeds": list(seeds), "folds": len(folds), "scored_on": corpus.scored_split, "folders": folders}
    result = summary(found) | about
    if distributed.rank() == 0:
        write_json(out / "summary.json", result, indent=1)
    return result


def folded(config: TrainConfig, cross_validate: bool) -> tuple[Corpus, list[int | None]]:
    """The corpus and the folds that test in turn, or the config's own alone."""
    if not cross_validate:
        return load_corpus(config), [config.fold]
    corpus = load_corpus(replace(config, fold=0)).require("test")
    for fold in range(1, corpus.folds):  # so that an empty one is said before the first run
        load_corpus(replace(config, fold=fold)).require("test")
    return corpus, list(range(corpus.folds))


def beginning(init: Path, name: str, single: bool) -> Path:
    """The checkpoint that a run of this name starts from; the runs of one plan start alike, or each from its own."""
    if (init / "config.json").is_file() or (single and not (init / name).is_dir()):
        return init  # where it is no checkpoint, loading it says so
    if not (init / name / "config.json").is_file():
        raise TrainingError(
            f"--init {init} is no checkpoint, and holds none named {name}; run its seeds and folds first"
        )
    return init / name


def predictions_of(config: TrainConfig, out: Path, device: torch.device | str) -> dict[str, Tensor]:
    """A run's logits and labels of its test split, and the temperature fitted on dev; kept beside its checkpoint."""
    path = out / "predictions.safetensors"
    if not path.exists() or path.stat().st_mtime < (out / "config.json").stat().st_mtime:
        corpus = load_corpus(config)
        learner = load_learner(out, device)
        material = Material(learner, config, cached=False)
        dev = score(learner, material, corpus.split("dev"), config.use)
        temperature = torch.tensor(fit_temperature(dev.logits, dev.labels))
        test = score(learner, material, corpus.split(corpus.scored_split), config.use)
        order = {d.name: i for i, d in enumerate(corpus.dialogues)}
        turn = torch.tensor([[order[t.dialogue], t.place] for t in test.turns])
        found = {"logits": test.logits, "labels": test.labels, "turn": turn, "temperature": temperature}
        write(path, as_bytes(found))
    return load_file(path)


def pooled(predictions: Sequence[dict[str, Tensor]], labels: tuple[str, ...]) -> dict[str, Any]:
    """Scores over the folds' predictions together, each calibrated by its own temperature."""
    raw = torch.cat([p["logits"] for p in predictions])
    scaled = torch.cat([p["logits"] / p["temperature"] for p in predictions])
    truth = torch.cat([p["labels"] for p in predictions])
    return scores(scaled, truth, labels) | {"ece_before_scaling": scores(raw, truth, labels)["ece"]}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds of every single number, and each seed's own."""
    numbers = [k for k, v in found[0].items() if isinstance(v, float)] if found else []
    over = {name: [float(f[name]) for f in found] for name in numbers}
    spread = {name: stdev(values) if len(values) > 1 else 0.0 for name, values in over.items()}
    return {"mean": {n: mean(v) for n, v in over.items()}, "sd": spread, "runs": found}


def cells(result: Mapping[str, Any], names: Sequence[str] = SHOWN) -> list[str]:
    """Mean ± deviation over seeds, in percent."""
    return [f"{100 * result['mean'][k]:.1f} ± {100 * result['sd'][k]:.1f}" for k in names]


def table(results: Mapping[str, dict[str, Any]], first: str = "run") -> Table:
    """A row of scores for each summary."""
    shown = Table(first, "scored on", "seeds", *(name.replace("_", " ") for name in SHOWN))
    for name, r in results.items():
        on = r["scored_on"] if r["scored_on"] == "test" else "dev, which also selected"
        shown.add_row(name, on, str(len(r["runs"])), *cells(r))
    return shown


def main(
    out: Path,
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    plan: Plan = Plan(),
    compute: distributed.Compute = distributed.Compute(),
) -> None:
    """Train.

    Args:
        out: folder of the run, or of one run for each seed and fold.
        train: the run.
        model: flags and sizes of a model that starts afresh; with --init they stay.
        plan: seeds, folds and start.
        compute: device and threads.
    """
    result = carry_out(train, out, plan, model, compute.start())
    if distributed.rank() == 0:
        Console().print(table({str(out): result}))
        print(json.dumps(result))


if __name__ == "__main__":
    cli(main)
