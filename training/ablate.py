"""The paper's ablations and ours, by one command: the same protocol with one module left out at a time.

    python -m training.ablate --corpus features --folds all --seeds 0 1 2 --out runs/ablate
    python -m training.ablate --corpus meld:MELD.Raw --seeds 0 1 2 3 4 --out runs/ablate-meld

Prints one table (mean ± deviation over seeds, and the difference to the whole model by paired bootstrap), and writes it
to OUT as ablation.json, ablation.md and ablation.png. Variants that are there already are not trained again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from training import distributed, pictures, protocol
from training.command import cli
from training.config import ModelConfig, TrainConfig
from training.corpora.records import Corpus
from training.errors import TrainingError
from training.files import write, write_json
from training.metrics import paired
from training.stages import load_corpus


@dataclass(frozen=True)
class Variant:
    """What is left out: fields of the model, of the loss, or of the run. `paper` marks the paper's own ablations."""

    model: dict[str, Any]
    loss: dict[str, float]
    run: dict[str, Any]
    paper: bool = False


WHOLE = "whole model"
VARIANTS = {
    WHOLE: Variant({}, {}, {}, True),
    "without audio context network": Variant({"context_network": False}, {}, {}, True),
    "without fusion module (concatenation)": Variant({"fusion": False}, {}, {}, True),
    "without contrastive learning": Variant({}, {"absolute": 0.0, "relative": 0.0}, {}, True),
    "no gate": Variant({"gate": False}, {}, {}),
    "no relevance": Variant({"relevance": False}, {}, {}),
    "no residual": Variant({"residual": False}, {}, {}),
    "absolute contrast only": Variant({}, {"relative": 0.0}, {}),
    "relative contrast only": Variant({}, {"absolute": 0.0}, {}),
    "text only": Variant({}, {}, {"use": "text"}),
    "audio only": Variant({}, {}, {"use": "audio"}),
    "bidirectional (offline)": Variant({"causal": False}, {}, {}),
}


def ablate(config: TrainConfig, out: Path, plan: protocol.Plan, chosen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every variant's summary and its paired difference to the whole model.

    Args:
        config: of the whole model.
        out: one folder per variant.
        plan: seeds, folds, start.
        chosen: names of VARIANTS; none is all of them.
    """
    names = [WHOLE, *(n for n in chosen or VARIANTS if n != WHOLE)]
    unknown = [n for n in names if n not in VARIANTS]
    if unknown:
        raise TrainingError(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    has = modalities(load_corpus(replace(config, fold=0) if plan.cross_validate else config))
    found: dict[str, Any] = {}
    for name in names:
        v = VARIANTS[name]
        if not set(v.run.get("use", "").split("+")) <= has | {""}:
            Console(stderr=True).print(f"{name}: the corpus has only {' and '.join(sorted(has))}, left out")
            continue
        Console(stderr=True).print(f"[bold]{name}[/]")
        model = replace(plan.model or ModelConfig(), **v.model)
        run = replace(config, loss=replace(config.loss, **v.loss), **v.run)
        place = out / name.split(" (")[0].replace(" ", "-")
        found[name] = protocol.carry_out(run, place, replace(plan, model=model))
        if distributed.rank() == 0:
            if name != WHOLE:
                found[name]["against_whole"] = _difference(*(_predictions(found[n], plan) for n in (WHOLE, name)))
            write_json(out / "ablation.json", found, indent=1)
    return found


def modalities(corpus: Corpus) -> set[str]:
    """Which of audio and text some turn of a corpus has."""
    turns = [t for d in corpus.dialogues for t in d.turns]
    held = {"text": any(t.text or t.vectors for t in turns), "audio": any(t.audio or t.vectors for t in turns)}
    return {name for name, there in held.items() if there}


def _predictions(found: dict[str, Any], plan: protocol.Plan) -> dict[str, dict[str, Tensor]]:
    """Predictions of the plan's runs of a variant, by the run's place in its folder."""
    folder = Path(found["out"])
    files = sorted(folder.glob("**/predictions.safetensors"))
    named = {str(f.parent.relative_to(folder)): f for f in files}
    return {n: load_file(f) for n, f in named.items() if n == "." or int(n[4:].partition("-")[0]) in plan.seeds}


def _difference(whole: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """Weighted F1 lost by leaving something out: paired over the test turns that both score, seed by seed.

    Resampled by dialogue; every seed's prediction of a dialogue is drawn together with the others'.
    """
    ours, theirs, labels, groups = [], [], [], []
    for name in whole:
        places = {tuple(turn): i for i, turn in enumerate(other[name]["turn"].tolist())}
        both = [
            (i, places[tuple(turn)]) for i, turn in enumerate(whole[name]["turn"].tolist()) if tuple(turn) in places
        ]
        mine, its = (torch.tensor(rows) for rows in zip(*both))
        ours.append(whole[name]["logits"][mine])
        theirs.append(other[name]["logits"][its])
        labels.append(whole[name]["labels"][mine])
        groups += [str(whole[name]["turn"][i, 0].item()) for i in mine]
    return paired(torch.cat(ours), torch.cat(theirs), torch.cat(labels), groups)


def table(found: dict[str, Any]) -> Table:
    """For people; the paper's own ablations come first."""
    shown = Table("variant", "of", "weighted F1", "macro F1", "UAR", "lost to the whole [95 %]", "p")
    for name, r in found.items():
        shown.add_row(name, "paper" if VARIANTS[name].paper else "ours", *_cells(r))
    return shown


def markdown(found: dict[str, Any]) -> str:
    """The same for a document."""
    head = ["| variant | weighted F1 | macro F1 | UAR | weighted F1 lost [95 %] | p |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(_cells(r))} |" for name, r in found.items())]) + "\n"


def _cells(r: dict[str, Any]) -> list[str]:
    """Three scores, mean ± deviation over seeds; weighted F1 lost to the whole model with its interval, and p."""
    cells = [f"{100 * r['mean'][k]:.1f} ± {100 * r['sd'][k]:.1f}" for k in ("weighted_f1", "macro_f1", "uar")]
    lost = r.get("against_whole")
    if not lost:
        return [*cells, "", ""]
    difference, low, high = (100 * lost[k] for k in ("difference", "low", "high"))
    return [*cells, f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", f"{lost['p']:.3f}"]


def main(
    out: Path,
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    seeds: tuple[int, ...] = (0, 1, 2),
    folds: Literal["own", "all"] = "own",
    only: tuple[str, ...] = (),
    device: str = "auto",
    threads: int | None = None,
    restart: bool = False,
) -> None:
    """Ablate.

    Args:
        out: folder of all runs and of the table.
        train: the run of the whole model.
        model: its flags and sizes.
        seeds: of the runs.
        folds: all: cross-validation; own: the corpus' own split, or --fold.
        only: names of variants; the whole model is always among them.
        device: cpu, cuda, or auto.
        threads: CPU threads; None leaves torch's choice.
        restart: train again what is there.
    """
    if threads:
        torch.set_num_threads(threads)
    plan = protocol.Plan(seeds, folds == "all", model, None, distributed.start(device), restart)
    found = ablate(train, out, plan, only)
    if distributed.rank() == 0:
        Console().print(table(found))
        write(out / "ablation.md", markdown(found).encode())
        rows = {name: (r["mean"]["weighted_f1"], r["sd"]["weighted_f1"]) for name, r in found.items()}
        pictures.bars(rows, "weighted F1", out / "ablation.png")
        print(json.dumps({name: r["mean"]["weighted_f1"] for name, r in found.items()}))


if __name__ == "__main__":
    cli(main)
