"""The paper's ablations and ours, by one command: the same training with one module left out at a time.

    python -m training.ablate --corpus features --folds all --seeds 0 1 2 --out runs/ablate
    python -m training.ablate --corpus meld:MELD.Raw --seeds 0 1 2 3 4 --out runs/ablate-meld

Prints one table: mean ± deviation over seeds, and the difference to the whole model by paired bootstrap; the same is
in OUT/ablation.json. Variants that are there already are not trained again.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from training import distributed
from training.command import cli
from training.config import ModelConfig, TrainConfig
from training.errors import TrainingError
from training.files import write_json
from training.metrics import paired
from training.stages import load_corpus
from training.train import Plan, carry_out, cells

WHOLE = "whole model"
# What is left out: fields of the model, of the loss, or of the run. The paper's own ablations come first.
VARIANTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "without audio context network": {"context_network": False},
    "without fusion module (concatenation)": {"fusion": False},
    "without contrastive learning": {"absolute": 0.0, "relative": 0.0},
    "no gate": {"gate": False},
    "no relevance": {"relevance": False},
    "no residual": {"residual": False},
    "absolute contrast only": {"relative": 0.0},
    "relative contrast only": {"absolute": 0.0},
    "text only": {"use": "text"},
    "audio only": {"use": "audio"},
    "bidirectional (offline)": {"causal": False},
}


def changed(config: Any, values: dict[str, Any]) -> Any:
    """A config with those of the values that it has fields for."""
    return replace(config, **{f.name: values[f.name] for f in fields(config) if f.name in values})


def ablate(
    config: TrainConfig,
    out: Path,
    plan: Plan,
    model: ModelConfig = ModelConfig(),
    chosen: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Every variant's summary and its paired difference to the whole model.

    Args:
        config: of the whole model.
        out: one folder per variant.
        plan: seeds, folds, start.
        model: flags and sizes of the whole model.
        chosen: names of VARIANTS; none is all of them.
        device: where to compute.
    """
    names = [WHOLE, *(n for n in chosen or VARIANTS if n != WHOLE)]
    unknown = [n for n in names if n not in VARIANTS]
    if unknown:
        raise TrainingError(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    has = load_corpus(replace(config, fold=0) if plan.folds == "all" else config).modalities()
    found: dict[str, Any] = {}
    for name in names:
        left_out = VARIANTS[name]
        if not {*left_out.get("use", "").split()} <= has:
            Console(stderr=True).print(f"{name}: the corpus has only {' and '.join(sorted(has))}, left out")
            continue
        Console(stderr=True).print(f"[bold]{name}[/]")
        run = changed(replace(config, loss=changed(config.loss, left_out)), left_out)
        place = out / name.split(" (")[0].replace(" ", "-")
        found[name] = carry_out(run, place, plan, changed(model, left_out), device)
        if distributed.rank() == 0:
            if name != WHOLE:
                found[name]["against_whole"] = difference(found[WHOLE], found[name])
            write_json(out / "ablation.json", found, indent=1)
    return found


def difference(whole: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Weighted F1 lost by leaving something out: paired over the test turns that both score, seed by seed.

    Resampled by dialogue; every seed's prediction of a dialogue is drawn together with the others'.
    """
    ours, theirs, labels, groups = [], [], [], []
    for folders in zip(whole["folders"], other["folders"], strict=True):
        a, b = (load_file(Path(folder) / "predictions.safetensors") for folder in folders)
        places = {tuple(turn): i for i, turn in enumerate(b["turn"].tolist())}
        both = [(i, places[tuple(turn)]) for i, turn in enumerate(a["turn"].tolist()) if tuple(turn) in places]
        mine, its = (torch.tensor(rows) for rows in zip(*both))
        ours.append(a["logits"][mine])
        theirs.append(b["logits"][its])
        labels.append(a["labels"][mine])
        groups += [str(dialogue) for dialogue in a["turn"][mine, 0].tolist()]
    return paired(torch.cat(ours), torch.cat(theirs), torch.cat(labels), groups)


def table(found: dict[str, Any]) -> Table:
    """Three scores of each variant; weighted F1 lost to the whole model with its interval, and p."""
    shown = Table("variant", "weighted F1", "macro F1", "UAR", "lost to the whole [95 %]", "p")
    for name, r in found.items():
        row = cells(r, ("weighted_f1", "macro_f1", "uar"))
        if lost := r.get("against_whole"):
            difference, low, high = (100 * lost[k] for k in ("difference", "low", "high"))
            row += [f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", f"{lost['p']:.3f}"]
        shown.add_row(name, *row)
    return shown


def main(
    out: Path,
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    plan: Plan = Plan((0, 1, 2)),
    only: tuple[str, ...] = (),
    compute: distributed.Compute = distributed.Compute(),
) -> None:
    """Ablate.

    Args:
        out: folder of all runs and of the table.
        train: the run of the whole model.
        model: its flags and sizes.
        plan: seeds, folds and start of each variant.
        only: names of variants; the whole model is always among them.
        compute: device and threads.
    """
    found = ablate(train, out, plan, model, only, compute.start())
    if distributed.rank() == 0:
        Console().print(table(found))
        print(json.dumps({name: r["mean"]["weighted_f1"] for name, r in found.items()}))


if __name__ == "__main__":
    cli(main)
