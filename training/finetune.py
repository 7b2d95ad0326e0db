"""Go on from the default model, or another, on data of your own with labels of your own: one command, on a CPU.

    python -m training.finetune mine.jsonl --out runs/mine
    python -m export.release runs/mine --work runs/work --out mine-bundle --name "my model"

The manifest is described in training/corpora/manifest.py. Encoders are frozen and their states cached, so that 1,000
utterances take minutes on two cores; --text-tuning full lets the words be learned anew as well. It stops early where
dev gains nothing. What the base model learned from binds the result: its licence follows the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hbaf_edge.bundle import DEFAULT, load_bundle
from training import checkpoint, distributed, evaluate, from_bundle, loop
from training.command import cli
from training.config import LossWeights, TrainConfig
from training.stages import load_corpus

RECIPE = TrainConfig(
    corpus="",
    epochs=8,
    patience=3,
    learning_rate=2e-4,
    encoder_rate=3e-5,
    ema=0.99,
    turns=32,
    loss=LossWeights(balance=0.5),
)


def finetune(
    config: TrainConfig, out: Path, init: Path | None = None, device: torch.device | str = "cpu", restart: bool = False
) -> dict[str, Any]:
    """Train from a checkpoint (the default bundle's where none is given) and score; returns scores before and after."""
    labels = load_corpus(config).labels  # its errors come before anything is unpacked
    base = init or _default(out / "base")
    before = None
    if checkpoint.describe(base)[1].labels == labels:
        before = evaluate.evaluate(base, config.corpus, config.use, device=device, skip=config.skip)["scores"]
    loop.train(config, out, init=base, device=device, restart=restart)
    return {"before": before, **evaluate.evaluate(out, device=device)}


def _default(folder: Path) -> Path:
    """The default bundle as a checkpoint."""
    if not (folder / "config.json").exists():
        from_bundle.main(DEFAULT, out=folder)
    licence = load_bundle(DEFAULT).manifest["licence"]
    if not licence["commercial"]:
        said = (
            f"The default model's weights are {licence['id']}, so what is trained from them is not for commercial use."
        )
        Console(stderr=True).print(f"[yellow]{said}[/] --init with a checkpoint of the open recipe is free of this.")
    return folder


def both(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of each set before (where the labels are the same) and after."""
    found: dict[str, Any] = {}
    for name, after in result["scores"].items():
        before = (result["before"] or {}).get(name)
        found |= {f"{name}, before": before} if before else {}
        found[f"{name}, after"] = after
    return found


def main(
    corpus: str,
    /,
    out: Path,
    train: TrainConfig = RECIPE,
    init: Path | None = None,
    restart: bool = False,
    compute: distributed.Compute = distributed.Compute(),
) -> None:
    """Fine-tune.

    Args:
        corpus: .jsonl or .csv, or any corpus as training.train takes it.
        out: folder of the run.
        train: the run.
        init: checkpoint to go on from; none is the default model.
        restart: forget what the folder holds.
        compute: device and threads.
    """
    result = finetune(train, out, init, compute.start(), restart)
    console = Console()
    console.print(evaluate.table(both(result)))
    console.print(
        f"a bundle of it: python -m export.release {out} --work {out}/work --out {out}/bundle", highlight=False
    )
    print(json.dumps(result))


if __name__ == "__main__":
    cli(main)
