"""One training run: a loop a reader can follow from top to bottom.

Selected on dev after every epoch; the best checkpoint stays in the run's folder, with a line per epoch in log.jsonl
and the state from which a killed run goes on (training/state.py).
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import batches, checkpoint, distributed, state
from training.config import ModelConfig, TrainConfig
from training.corpora.records import UNLABELLED
from training.errors import TrainingError
from training.learner import Learner, begin, groups_of
from training.pairs import PairStage
from training.stages import CorpusStage, Group, load_also, load_corpus


def schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then a cosine to zero: the factor on every learning rate.

    >>> [round(schedule(s, 100, 0.1), 2) for s in (0, 9, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
    """
    ramp = max(1, int(steps * warmup))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - ramp) / max(1, steps - ramp))))


def train(
    config: TrainConfig,
    out: Path,
    model: ModelConfig | None = None,
    init: Path | None = None,
    device: torch.device | str = "cpu",
    restart: bool = False,
) -> dict[str, float]:
    """One run; returns the dev scores of the best epoch, whose checkpoint is in `out`.

    Args:
        config: what to learn from and how.
        out: the run's folder. A run of the same config that was killed there goes on.
        model: flags and sizes of a model that starts afresh; its encoders' sizes and labels are found out.
        init: a checkpoint to start from in its place.
        device: where to compute.
        restart: forget what the folder holds.
    """
    config.check()
    corpus = load_corpus(config)
    torch.manual_seed(config.seed)
    learner, about = begin(config, corpus, model, init)
    also = load_also(config, corpus.labels)
    learner.to(device)
    kind = PairStage if config.pair else CorpusStage
    stage = distributed.first_then_all(lambda: kind(config, corpus, also, learner))
    stage.material.standardise(stage.typical, [m for m in config.use.split("+") if m not in about["shown"]])
    about["shown"] = sorted({*about["shown"], *config.use.split("+")})
    if restart and distributed.rank() == 0:
        forget(out)
    return Run(config, learner, stage, out, about, state.identity(config, learner.hbaf.config, init)).go()


def forget(out: Path) -> None:
    """Remove what a run left in its folder, so that nothing of it is taken for the next one's."""
    for name in (state.FILE, "log.jsonl", "config.json"):
        (out / name).unlink(missing_ok=True)
    for name in ("hbaf", "text", "audio", "predictions"):
        (out / f"{name}.safetensors").unlink(missing_ok=True)
    shutil.rmtree(out / "evaluation", ignore_errors=True)


def peak_memory() -> float:
    """GB of main memory this process has held at most, cached states that it mapped among them; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Run:
    """The loop's state: learner, stage, optimiser, averaged weights, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        stage: CorpusStage,
        out: Path,
        about: dict[str, Any],
        begun: dict[str, Any],
    ) -> None:
        self.config, self.learner, self.stage, self.out = config, learner, stage, out
        self.about, self.begun = about, begun  # what the checkpoint says of itself; what a resumed run must share
        self.device = learner.hbaf.absent.device
        self.optimiser = torch.optim.AdamW(groups_of(learner, config), fused=True)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.learned = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.average = state.Average(self.learned, config.ema)
        self.wrapped: Any = learner
        if distributed.size() > 1:
            self.wrapped = DistributedDataParallel(learner, find_unused_parameters=True)
        per_step = config.accumulate * distributed.size()
        self.steps = config.epochs * -(-len(stage.epoch(random.Random(config.seed))) // per_step)

    def go(self) -> dict[str, float]:
        """Every epoch that is left."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.progress = state.load(self.out, self.begun, self.optimiser, self.average)
        if self.progress.epoch != distributed.agreed(self.progress.epoch):
            raise TrainingError(f"{self.out} is not the same folder for every process; put it on a disk that all share")
        if self.progress.epoch:
            _say(f"{self.out}: going on behind epoch {self.progress.epoch - 1}")
        while self.progress.epoch < self.config.epochs and not self._patient_enough():
            self._epoch()
        return self.progress.best

    def _patient_enough(self) -> bool:
        return bool(self.config.patience) and self.progress.waited >= self.config.patience

    def _epoch(self) -> None:
        """Learn, judge, keep the best, and leave a state behind."""
        started, p = time.perf_counter(), self.progress
        # Each epoch and process has its own seed, so that an epoch after a kill is the epoch it would have been.
        torch.manual_seed(hash((self.config.seed, p.epoch, distributed.rank())) % 2**31)
        loss, turns = self._learn(self.stage.epoch(random.Random(f"{self.config.seed}/{p.epoch}")))
        seconds = time.perf_counter() - started
        with self.average.applied():
            found = self.stage.judge()
            found["score"] = distributed.agreed(found["score"])
            better = found["score"] > p.best["score"]
            p.waited = 0 if better else p.waited + 1
            if better:
                p.best = found
                self._keep(found)
        line = {"epoch": p.epoch, "loss": loss, **found, "utterances_per_second": turns / seconds,
                "minutes": (time.perf_counter() - started) / 60, "peak_memory_gb": peak_memory()}  # fmt: skip
        p.epoch += 1
        if distributed.rank() == 0:
            self._log(line)
            state.save(self.out, self.begun, p, self.optimiser, self.average)

    def _learn(self, groups: list[Group]) -> tuple[float, int]:
        """One pass over the groups; returns the mean loss and the turns of all processes together."""
        self.wrapped.train()
        steps = list(batches.groups(groups, self.config.accumulate * distributed.size()))
        bar = track(
            steps,
            f"epoch {self.progress.epoch}",
            transient=True,
            console=Console(stderr=True),
            disable=distributed.rank() > 0,
        )
        seen = [self.step(list(step)) for step in bar]
        turns = sum(len(history) for group in groups for history in group)
        return sum(seen) / max(1, len(seen)), turns

    def step(self, groups: list[Group]) -> float:
        """One step of the optimiser on this process' share of the groups; every labelled turn weighs the same."""
        world = distributed.size()
        mine = groups[distributed.rank() :: world]
        everyone = max(1, sum(map(_labelled, groups)))
        # The last step may have fewer groups than processes; one without a group goes along at no weight.
        weighed = [(group, _labelled(group) * world / everyone) for group in mine] or [(groups[0], 0.0)]
        self.optimiser.zero_grad(set_to_none=True)
        loss = 0.0
        for i, (group, share) in enumerate(weighed):
            last = i == len(weighed) - 1
            with nullcontext() if last or world == 1 else self.wrapped.no_sync():
                loss += self._backward(group, share)
        nn.utils.clip_grad_norm_(self.learned, self.config.clip)
        factor = schedule(self.progress.step, self.steps, self.config.warmup)
        for parameters, rate in zip(self.optimiser.param_groups, self.rates):
            parameters["lr"] = rate * factor
        self.optimiser.step()
        self.progress.step += 1
        self.average.update(self.progress.step)
        return distributed.total(loss) / world

    def _backward(self, group: Group, share: float) -> float:
        half = self.config.precision == "bf16" and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss: Tensor = self.wrapped(group) * share
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _keep(self, found: dict[str, float]) -> None:
        if distributed.rank() == 0:
            about = {**self.about, "train": self.config.to_json(), "dev": found, "epoch": self.progress.epoch}
            audio = self.learner.audio if "audio" in self.about["tuned"] else None
            checkpoint.save(self.out, self.learner.hbaf, self.learner.text, about, audio)

    def _log(self, line: dict[str, float]) -> None:
        _say({k: round(v, 4) for k, v in line.items()})
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")


def _labelled(group: Group) -> int:
    return sum(turn.label != UNLABELLED for history in group for turn in history)


def _say(what: object) -> None:
    if distributed.rank() == 0:
        Console(stderr=True).print(what, highlight=False)
