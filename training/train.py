"""Train on any corpus, once or over seeds and folds; scored on test, and shown as a table.

    python -m training.train --corpus meld --use text --text-tuning full --epochs 3 --out runs/text
    python -m training.train --corpus manifest:mine.jsonl --out runs/mine
    python -m training.train --corpus ravdess-8 --use audio --folds all --seeds 0 1 2 --out runs/ravdess
    torchrun --nproc-per-node 2 -m training.train --corpus iemocap-6:IEMOCAP --out runs/iemocap

A run that was killed goes on when the same command is given again. `--help` lists every choice; training/MODEL.md says
what they mean. A corpus is NAME or NAME:PATH: meld, iemocap-6, iemocap-4, ravdess, ravdess-8, tess, emogator,
dailytalk, features:FILE.npz, manifest:FILE.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from training import distributed, protocol
from training.command import cli
from training.config import ModelConfig, TrainConfig


def main(
    out: Path,
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    init: Path | None = None,
    seeds: tuple[int, ...] = (),
    folds: Literal["own", "all"] = "own",
    device: str = "auto",
    threads: int | None = None,
    restart: bool = False,
) -> None:
    """Train.

    Args:
        out: folder of the run, or of one run for each seed and fold.
        train: the run.
        model: flags and sizes of a model that starts afresh.
        init: checkpoint to start from, or a folder of such with the same seeds and folds; sizes and encoders stay.
        seeds: several runs, reported with mean and deviation; none is --seed alone.
        folds: all: cross-validation over the corpus' folds; own: its own split, or --fold.
        device: cpu, cuda, or auto.
        threads: CPU threads; None leaves torch's choice.
        restart: forget what the folder holds.
    """
    if threads:
        torch.set_num_threads(threads)
    found = distributed.start(device)
    plan = protocol.Plan(seeds or (train.seed,), folds == "all", model, init, found, restart)
    result = protocol.carry_out(train, out, plan)
    if distributed.rank() == 0:
        Console().print(protocol.table({str(out): result}))
        print(json.dumps(result))


if __name__ == "__main__":
    cli(main)
