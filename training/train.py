"""The training loop, for both stages of the default recipe.

    python -m training.train text   --out runs/text
    python -m training.train fusion --init runs/text --out runs/default

`--open` leaves out every corpus that forbids commercial use (RAVDESS, TESS) and MELD, whose source is television;
DailyTalk, EmoGator and AMI remain. Selected on dev after every epoch; the best checkpoint stays in --out, with a line
per epoch in log.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import BertModel

from training import checkpoint, encoders, losses
from training.config import TrainConfig
from training.model import HBAF
from training.stages import FusionStage, TextStage, tokeniser_of


def schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then a cosine to zero: the factor on every learning rate.

    >>> [round(schedule(s, 100, 0.1), 2) for s in (0, 9, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
    """
    ramp = max(1, int(steps * warmup))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - ramp) / max(1, steps - ramp))))


def optimiser_of(model: HBAF, text: BertModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; no decay on one-dimensional parameters (norms, biases); the encoder at its own rate where it learns."""
    groups: list[dict[str, Any]] = []
    for module, rate in ((model, config.learning_rate), (text, config.encoder_rate)):
        learned = [p for p in module.parameters() if p.requires_grad]
        groups.append({"params": [p for p in learned if p.ndim > 1], "lr": rate, "weight_decay": config.weight_decay})
        groups.append({"params": [p for p in learned if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW([g for g in groups if g["params"]])


def train(config: TrainConfig, out: Path, init: Path | None = None, audio: str = "audio") -> dict[str, float]:
    """One run; returns the dev scores of the best epoch, whose checkpoint is in `out`.

    Args:
        config: stage, corpora, rates.
        out: where the checkpoint and log.jsonl go.
        init: a checkpoint to start from, whose sizes and audio encoder stay.
        audio: audio encoder of a model that starts afresh.
    """
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    model, text = checkpoint.load(init)[:2] if init else (HBAF(encoders.model_config(audio)), encoders.load_text())
    text.requires_grad_(config.stage == "text")
    stage = (TextStage if config.stage == "text" else FusionStage)(config, model.config, text, tokeniser_of())
    optimiser = optimiser_of(model, text, config)
    steps = config.epochs * _steps(stage, config)
    factor = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, steps, config.warmup))
    out.mkdir(parents=True, exist_ok=True)
    best: dict[str, float] = {"score": -1.0}
    for epoch in range(config.epochs):
        started = time.perf_counter()
        model.train()
        text.train(config.stage == "text")
        loss = _epoch(stage, model, optimiser, factor, rng, f"epoch {epoch}")
        model.eval()
        text.eval()
        with torch.inference_mode():
            found = stage.judge(model)
        _log({"epoch": epoch, "loss": loss, **found, "minutes": (time.perf_counter() - started) / 60}, out)
        if found["score"] > best["score"]:
            best = found
            checkpoint.save(out, model, text, {"train": config.to_json(), "dev": found, "epoch": epoch})
    return best


def _epoch(
    stage: TextStage | FusionStage,
    model: HBAF,
    optimiser: torch.optim.AdamW,
    factor: torch.optim.lr_scheduler.LambdaLR,
    rng: random.Random,
    name: str,
) -> float:
    """One pass over the stage's batches; returns the mean loss."""
    learned = [p for group in optimiser.param_groups for p in group["params"]]
    seen: list[float] = []
    for batch in stage.epoch(rng):
        loss = losses.total(model, batch, model(batch), stage.config.loss)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, stage.config.clip)
        optimiser.step()
        factor.step()
        seen.append(float(loss.detach()))
        if len(seen) % 20 == 0:
            Console().print(f"{name} step {len(seen)} loss {sum(seen[-20:]) / 20:.3f}")
    return sum(seen) / len(seen)


def _log(line: dict[str, float], out: Path) -> None:
    Console().print({k: round(v, 4) for k, v in line.items()})
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def _steps(stage: TextStage | FusionStage, config: TrainConfig) -> int:
    """About how many batches an epoch has: the schedule's length, known before anything is encoded."""
    turns = config.talk_share * sum(len(d.turns) for d in stage.all)
    turns += config.dailytalk_share * sum(len(d.turns) for d in stage.shared)
    if isinstance(stage, TextStage):
        return int(turns / (config.sequences * (config.max_turns / 2 + 5))) + 1
    return int(turns / (3 * config.max_turns + 10) + stage.clips_of_an_epoch() / (config.clip_batch + 2)) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("text", "fusion"))
    parser.add_argument("--out", type=Path, required=True)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--init", type=Path, help="checkpoint folder to start from; its audio encoder stays")
    begin.add_argument("--audio", default="audio", help="encoder of a fresh model: audio (tiny.en) or audio-base")
    parser.add_argument("--open", action="store_true", default=None, help="only corpora that allow commercial use")
    parser.add_argument("--threads", type=int, default=2)
    for name in ("epochs", "seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("learning_rate", "encoder_rate", "talk_share", "dailytalk_share", "paired", "mislead"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    out, init, audio = given.pop("out"), given.pop("init"), given.pop("audio")
    config = dataclasses.replace(TrainConfig(), **{k: v for k, v in given.items() if v is not None})
    print(json.dumps(train(config, out, init, audio)))


if __name__ == "__main__":
    main()
