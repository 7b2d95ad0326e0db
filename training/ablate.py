"""The ablations of the paper and our own in one command: the same training with one part left out at a time.

    python -m training.ablate --corpus features --folds all --seeds 0 1 2 --out runs/ablate
    python -m training.ablate --corpus meld:MELD.Raw --seeds 0 1 2 3 4 --out runs/ablate-meld

The table shows mean ± deviation over seeds and the difference to the whole model by paired bootstrap, on dev. It is
also written to OUT/ablation.json. Finished variants are not trained again.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from hbaf_edge.bench.document import Cell, cell_text
from training import distributed
from training.command import cli, emit
from training.config import ModelConfig, TrainConfig
from training.errors import TrainingError
from training.files import write_json
from training.metrics import paired_bootstrap
from training.results import save_report
from training.tasks import load_corpus
from training.train import Plan, run_plan, score_cells

WHOLE = "whole model"
# Changed fields of the model, the loss or the run. The paper's own ablations come first.
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


def with_changes(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of a config with those changes that are fields of it."""
    return replace(config, **{f.name: changes[f.name] for f in fields(config) if f.name in changes})


def ablate(
    config: TrainConfig,
    out: Path,
    plan: Plan,
    model: ModelConfig = ModelConfig(),
    variants: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Train the variants. Return the summary of each one with its paired difference to the whole model.

    Args:
        config: settings of the whole model's run.
        out: folder with one subfolder per variant.
        plan: seeds, folds and start.
        model: flags and sizes of the whole model.
        variants: names in VARIANTS; empty for all of them.
        device: where to compute.
    """
    names = [WHOLE, *(n for n in variants or VARIANTS if n != WHOLE)]
    unknown = [n for n in names if n not in VARIANTS]
    if unknown:
        raise TrainingError(f"unknown variant {unknown[0]!r}; expected one of {', '.join(VARIANTS)}")
    available = load_corpus(replace(config, fold=0) if plan.folds == "all" else config).modalities()
    results: dict[str, Any] = {}
    for name in names:
        changes = VARIANTS[name]
        if not {*changes.get("use", "").split()} <= available:
            Console(stderr=True).print(f"{name}: skipped, the corpus has only {' and '.join(sorted(available))}")
            continue
        Console(stderr=True).print(f"[bold]{name}[/]")
        run_config = with_changes(replace(config, loss=with_changes(config.loss, changes)), changes)
        folder = out / name.split(" (")[0].replace(" ", "-")
        results[name] = run_plan(run_config, folder, plan, with_changes(model, changes), device)
        if distributed.rank() == 0:
            if name != WHOLE:
                results[name]["against_whole"] = difference(results[WHOLE], results[name])
            write_json(out / "ablation.json", results, indent=1)
    return results


def difference(whole: dict[str, Any], variant: dict[str, Any]) -> dict[str, float]:
    """Loss of weighted F1 by paired bootstrap over dialogues, on the dev turns that both models predict.

    A resample contains the predictions of all seeds for the same dialogues.
    """
    whole_logits, variant_logits, labels, groups = [], [], [], []
    for folders in zip(whole["folders"], variant["folders"], strict=True):
        a, b = (load_file(Path(folder) / "dev.safetensors") for folder in folders)
        row_in_b = {tuple(turn): i for i, turn in enumerate(b["turn"].tolist())}
        common = [(i, row_in_b[tuple(turn)]) for i, turn in enumerate(a["turn"].tolist()) if tuple(turn) in row_in_b]
        rows_a, rows_b = (torch.tensor(rows) for rows in zip(*common))
        whole_logits.append(a["logits"][rows_a])
        variant_logits.append(b["logits"][rows_b])
        labels.append(a["labels"][rows_a])
        groups += [str(dialogue) for dialogue in a["turn"][rows_a, 0].tolist()]
    return paired_bootstrap(torch.cat(whole_logits), torch.cat(variant_logits), torch.cat(labels), groups)


HEAD = ("variant", "weighted F1", "macro F1", "UAR", "weighted F1 lost [95 %]", "p")


def table_rows(results: dict[str, Any]) -> list[list[Cell]]:
    """Scores of each variant, its loss of weighted F1 with an interval, and p."""
    rows: list[list[Cell]] = []
    for name, r in results.items():
        row: list[Cell] = [name, *score_cells(r, ("weighted_f1", "macro_f1", "uar")), None, None]
        if lost := r.get("against_whole"):
            difference, low, high = (100 * lost[k] for k in ("difference", "low", "high"))
            row[4:] = [f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", f"{lost['p']:.3f}"]
        rows.append(row)
    return rows


def main(
    out: Path,
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    plan: Plan = Plan((0, 1, 2)),
    only: tuple[str, ...] = (),
    save: Path | None = None,
    compute: distributed.Compute = distributed.Compute(),
    json_output: bool = False,
) -> None:
    """Train the ablations.

    Args:
        out: folder of all runs and of the results.
        train: settings of the whole model's run.
        model: its flags and sizes.
        plan: seeds, folds and start of each variant.
        only: names of variants; the whole model is always included.
        save: JSON file for the table, such as benchmarks/results/ablation-features.json.
        compute: device and threads.
    """
    results = ablate(train, out, plan, model, only, compute.start())
    if distributed.rank() == 0:
        rows, shown = table_rows(results), Table(*HEAD)
        if save is not None:
            text = (
                f"Scored on dev, {len(results[WHOLE]['runs'])} seeds; differences by paired bootstrap over dialogues."
            )
            save_report(save, f"Ablations on {train.corpus}", HEAD, rows, text)
        for row in rows:
            shown.add_row(*map(cell_text, row))
        emit({name: r["mean"]["weighted_f1"] for name, r in results.items()}, json_output, shown)


if __name__ == "__main__":
    cli(main)
