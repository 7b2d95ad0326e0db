"""Fine-tune the default model, or another one, on your own data and labels, on a CPU.

    python -m training.finetune mine.jsonl --out runs/mine
    python -m export.release runs/mine --work runs/work --out mine-bundle --name "my model"

training/corpora/manifest.py describes the manifest. Encoders are frozen and their states cached, so 1,000 utterances
take minutes on two cores; --text-tuning full also trains the text encoder. Training stops early when dev no longer
improves. The licence of the base model also applies to the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hbaf_edge.bundle import DEFAULT, load_bundle
from training import checkpoint, distributed, evaluate, from_bundle, loop
from training.command import cli, emit
from training.config import LossWeights, TrainConfig
from training.tasks import load_corpus

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
    """Fine-tune a checkpoint and score it. Return the scores before and after.

    `init` None means the default bundle. `before` is None if the base model has other labels.
    """
    labels = load_corpus(config).labels  # reports errors in the data first
    base = init or _default_checkpoint(out / "base")
    before = None
    if checkpoint.describe(base)[1].labels == labels:
        before = evaluate.evaluate(base, config.corpus, config.use, device=device, skip=config.skip)["scores"]
    loop.train(config, out, init=base, device=device, restart=restart)
    return {"before": before, **evaluate.evaluate(out, device=device)}


def _default_checkpoint(folder: Path) -> Path:
    """Convert the default bundle to a checkpoint, and warn if its licence is non-commercial."""
    if not (folder / "config.json").exists():
        from_bundle.save_checkpoint(DEFAULT, folder)
    licence = load_bundle(DEFAULT).manifest["licence"]
    if not licence["commercial"]:
        warning = f"The default model's weights are {licence['id']}, so the fine-tuned model is not for commercial use."
        Console(stderr=True).print(f"[yellow]{warning}[/] --init with a checkpoint of the open recipe avoids this.")
    return folder


def before_and_after(result: dict[str, Any]) -> dict[str, Any]:
    """Scores of each set before fine-tuning (if the labels are the same) and after it."""
    results: dict[str, Any] = {}
    for name, after in result["scores"].items():
        before = (result["before"] or {}).get(name)
        results |= {f"{name}, before": before} if before else {}
        results[f"{name}, after"] = after
    return results


def main(
    corpus: str,
    /,
    out: Path,
    train: TrainConfig = RECIPE,
    init: Path | None = None,
    restart: bool = False,
    compute: distributed.Compute = distributed.Compute(),
    json_output: bool = False,
) -> None:
    """Fine-tune.

    Args:
        corpus: a .jsonl or .csv manifest, or any corpus of training.train.
        out: folder of the run.
        train: settings of the run.
        init: checkpoint to start from; None uses the default model.
        restart: remove an earlier run from the folder.
        compute: device and threads.
    """
    result = finetune(train, out, init, compute.start(), restart)
    next_step = f"to make a bundle: python -m export.release {out} --work {out}/work --out {out}/bundle"
    emit(result, json_output, evaluate.table(before_and_after(result)), next_step)


if __name__ == "__main__":
    cli(main)
