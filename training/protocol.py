"""Runs over seeds and folds, each scored on its test split: what one row of a table stands on.

Fold k tests and fold k + 1 selects; predictions of all folds are pooled to one set of scores per seed; a table shows
mean and deviation over seeds. A run that is there already is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from training import distributed, loop
from training.config import ModelConfig, TrainConfig
from training.corpora.records import UNLABELLED, Corpus
from training.errors import TrainingError
from training.files import write, write_json
from training.learner import load_learner
from training.material import Material
from training.metrics import fit_temperature, scores
from training.stages import load_corpus, score

SHOWN = ("weighted_f1", "macro_f1", "uar", "ece")


@dataclass(frozen=True)
class Plan:
    """Seeds, whether over all folds, and how each run starts.

    `init` is a checkpoint for every run, or the folder of an earlier plan's: then each run starts from its own seed's
    and fold's.
    """

    seeds: tuple[int, ...] = (0,)
    cross_validate: bool = False
    model: ModelConfig | None = None
    init: Path | None = None
    device: torch.device | str = "cpu"
    restart: bool = False


def carry_out(config: TrainConfig, out: Path, plan: Plan) -> dict[str, Any]:
    """Every run of the plan; returns the summary that is also written to summary.json."""
    corpus, folds = folded(config, plan.cross_validate)
    single = len(plan.seeds) == 1 and len(folds) == 1
    found = []
    for seed in plan.seeds:
        predictions = []
        for fold in folds:
            name = f"seed{seed}" + ("" if fold is None else f"-fold{fold}")
            place = out if single else out / name
            alike = single and plan.init and not (plan.init / name).is_dir()  # loop.train says what it lacks
            start = plan.init if alike else plan.init and beginning(plan.init, name)
            predictions.append(one(replace(config, seed=seed, fold=fold), place, replace(plan, init=start)))
        if distributed.rank() == 0 and predictions[0] is not None:
            found.append(pooled([p for p in predictions if p is not None], corpus.labels))
    on = scored_split(corpus)
    result = summary(found) | {"seeds": list(plan.seeds), "folds": len(folds), "scored_on": on, "out": str(out)}
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


def beginning(init: Path, name: str) -> Path:
    """The checkpoint that a run of this name starts from; the runs of one plan start alike, or each from its own."""
    if (init / "config.json").is_file():
        return init
    if not (init / name / "config.json").is_file():
        raise TrainingError(
            f"--init {init} is no checkpoint, and holds none named {name}; run its seeds and folds first"
        )
    return init / name


def one(config: TrainConfig, out: Path, plan: Plan) -> dict[str, Tensor] | None:
    """Train one run if need be and predict its test split: logits, labels, and the temperature fitted on dev."""
    path = out / "predictions.safetensors"
    loop.train(config, out, plan.model, plan.init, plan.device, plan.restart)
    if distributed.rank() > 0:
        return None
    if plan.restart or not path.exists() or path.stat().st_mtime < (out / "config.json").stat().st_mtime:
        corpus = load_corpus(config)
        learner = load_learner(out, plan.device)
        material = Material(learner, config, cached=False)
        dev = score(learner, material, corpus.split("dev"), config.use)
        temperature = torch.tensor(fit_temperature(dev.logits, dev.labels))
        test = score(learner, material, corpus.split(scored_split(corpus)), config.use)
        order = {d.name: i for i, d in enumerate(corpus.dialogues)}
        turn = torch.tensor([[order[d], place] for d, place in zip(test.dialogues, test.places)])
        found = {"logits": test.logits, "labels": test.labels, "turn": turn, "temperature": temperature}
        write(path, as_bytes(found))
    return load_file(path)


def scored_split(corpus: Corpus) -> str:
    """test; or dev where a corpus has no labelled test turns, which tables and summaries then say."""
    return "test" if any(t.label != UNLABELLED for d in corpus.split("test") for t in d.turns) else "dev"


def pooled(predictions: list[dict[str, Tensor]], labels: tuple[str, ...]) -> dict[str, Any]:
    """Scores over the folds' predictions together, each calibrated by its own temperature."""
    raw = torch.cat([p["logits"] for p in predictions])
    scaled = torch.cat([p["logits"] / p["temperature"] for p in predictions])
    truth = torch.cat([p["labels"] for p in predictions])
    found = scores(scaled, truth, labels)
    found["ece_before_scaling"] = scores(raw, truth, labels)["ece"]
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds of every single number, and each seed's own."""
    numbers = [k for k, v in found[0].items() if isinstance(v, float)] if found else []
    over = {name: [float(f[name]) for f in found] for name in numbers}
    spread = {name: stdev(values) if len(values) > 1 else 0.0 for name, values in over.items()}
    return {"mean": {n: mean(v) for n, v in over.items()}, "sd": spread, "runs": found}


def table(results: Mapping[str, dict[str, Any]], first: str = "run") -> Table:
    """Mean ± deviation over seeds, in percent."""
    shown = Table(first, "scored on", "seeds", *(name.replace("_", " ") for name in SHOWN))
    for name, r in results.items():
        cells = [f"{100 * r['mean'][k]:.1f} ± {100 * r['sd'][k]:.1f}" for k in SHOWN]
        on = r["scored_on"] if r["scored_on"] == "test" else "dev, which also selected"
        shown.add_row(name, on, str(len(r["runs"])), *cells)
    return shown
