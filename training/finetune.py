"""Go on from the default model, or another, on data of your own with labels of your own: one command, on a CPU.

    python -m training.finetune mine.jsonl --out runs/mine
    python -m export.release runs/mine --work runs/work --out mine-bundle --name "my model"

The manifest is described in training/corpora/manifest.py. Encoders are frozen and their states cached, so that 1,000
utterances take minutes on two cores; --text-tuning lora lets the words be learned anew as well. What the base model
learned from binds the result: its licence follows the weights.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hbaf_edge.bundle import DEFAULT, load_bundle
from hbaf_edge.card import NOTICE
from training import checkpoint, distributed, evaluate, from_bundle, loop
from training.command import cli
from training.config import LossWeights, TrainConfig, Tuning, Use
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
    result = evaluate.evaluate(out, device=device)
    return {"before": before, **result}


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


def table(result: dict[str, Any]) -> Table:
    """Before (where the labels are the same) and after."""
    shown = Table("scored on", "utterances", "weighted F1", "macro F1", "UAR", "ECE", caption=NOTICE)
    for name, s in result["scores"].items():
        rows = {"before": (result["before"] or {}).get(name), "after": s}
        for when, r in rows.items():
            if r:
                cells = [f"{r[k]:.3f}" for k in ("weighted_f1", "macro_f1", "uar", "ece")]
                shown.add_row(f"{name}, {when}", str(r["utterances"]), *cells)
    return shown


def main(
    manifest: str,
    /,
    out: Path,
    init: Path | None = None,
    use: Use = "audio+text",
    text_tuning: Tuning = "frozen",
    audio_tuning: Tuning = "frozen",
    epochs: int = RECIPE.epochs,
    learning_rate: float = RECIPE.learning_rate,
    seed: int = 0,
    skip: str = "",
    device: str = "auto",
    threads: int | None = None,
    restart: bool = False,
) -> None:
    """Fine-tune.

    Args:
        manifest: .jsonl or .csv, or any corpus as training.train takes it.
        out: folder of the run.
        init: checkpoint to go on from; none is the default model.
        use: modalities shown.
        text_tuning: frozen, lora or full.
        audio_tuning: frozen, lora or full.
        epochs: at most; it stops early where dev gains nothing.
        learning_rate: of HBAF.
        seed: of everything drawn at random.
        skip: skip list of training.check.
        device: cpu, cuda, or auto.
        threads: CPU threads; None leaves torch's choice.
        restart: forget what the folder holds.
    """
    if threads:
        torch.set_num_threads(threads)
    config = replace(
        RECIPE,
        corpus=manifest,
        use=use,
        text_tuning=text_tuning,
        audio_tuning=audio_tuning,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        skip=skip,
    )
    result = finetune(config, out, init, distributed.start(device), restart)
    console = Console()
    console.print(table(result))
    console.print(
        f"a bundle of it: python -m export.release {out} --work {out}/work --out {out}/bundle", highlight=False
    )
    print(json.dumps(result))


if __name__ == "__main__":
    cli(main)
