"""One training run, as a loop that can be read from top to bottom.

Each epoch is evaluated on dev, and the best checkpoint stays in the run's folder. The folder also has log.jsonl, with a
line per epoch, and the state with which a killed run resumes (training/state.py).
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
from training.pairs import PairTask
from training.tasks import CorpusTask, Group, load_corpus, load_extra_dialogues
from training.training_module import TrainingModule, initialise, parameter_groups


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on all learning rates: a linear warm-up, then a cosine to zero.

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
    """Train one run and return the dev scores of its best epoch, whose checkpoint is in `out`.

    Args:
        config: settings of the run.
        out: the run's folder. A killed run with the same settings is resumed.
        model: flags and sizes of a new model; sizes of encoders and labels are filled in.
        init: checkpoint to start from instead of a new model.
        device: where to compute.
        restart: remove an earlier run from the folder.
    """
    config.validate()
    corpus = load_corpus(config)
    torch.manual_seed(config.seed)
    module, about = initialise(config, corpus, model, init)
    also = load_extra_dialogues(config, corpus.labels)
    module.to(device)
    task_type = PairTask if config.pair else CorpusTask
    task = distributed.first_then_all(lambda: task_type(config, corpus, also, module))
    new_modalities = [m for m in config.use.split("+") if m not in about["shown"]]
    task.features.fit_standardisation(task.train_data, new_modalities)
    about["shown"] = sorted({*about["shown"], *config.use.split("+")})
    if restart and distributed.rank() == 0:
        remove_run(out)
    return Run(config, module, task, out, about, state.identity(config, module.hbaf.config, init)).train()


def remove_run(out: Path) -> None:
    """Remove the files of a run from its folder, so that the next run cannot use them."""
    for name in (state.STATE_FILE, "log.jsonl", "config.json"):
        (out / name).unlink(missing_ok=True)
    for name in ("hbaf", "text", "audio", "predictions"):
        (out / f"{name}.safetensors").unlink(missing_ok=True)
    shutil.rmtree(out / "evaluation", ignore_errors=True)


def peak_memory() -> float:
    """Peak main memory of this process in GB, with memory-mapped caches; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Run:
    """The state of the training loop: module, task, optimiser, averaged weights and progress."""

    def __init__(
        self,
        config: TrainConfig,
        module: TrainingModule,
        task: CorpusTask,
        out: Path,
        about: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        self.config, self.module, self.task, self.out = config, module, task, out
        self.about, self.settings = about, settings  # for the checkpoint; to compare with a stored state
        self.device = module.hbaf.absent.device
        self.optimiser = torch.optim.AdamW(parameter_groups(module, config), fused=True)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.average = state.Average(self.parameters, config.ema)
        self.wrapped: Any = module
        if distributed.world_size() > 1:
            self.wrapped = DistributedDataParallel(module, find_unused_parameters=True)
        groups_per_step = config.accumulate * distributed.world_size()
        self.steps = config.epochs * -(-len(task.epoch(random.Random(config.seed))) // groups_per_step)

    def train(self) -> dict[str, float]:
        """Train the remaining epochs."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.progress = state.load(self.out, self.settings, self.optimiser, self.average)
        if self.progress.epoch != distributed.broadcast(self.progress.epoch):
            raise TrainingError(f"{self.out} differs between processes; put it on a disk that all processes share")
        if self.progress.epoch:
            _log_line(f"{self.out}: resuming after epoch {self.progress.epoch - 1}")
        while self.progress.epoch < self.config.epochs and not self._should_stop_early():
            self._epoch()
        return self.progress.best

    def _should_stop_early(self) -> bool:
        return bool(self.config.patience) and self.progress.waited >= self.config.patience

    def _epoch(self) -> None:
        """Train and evaluate one epoch, save the checkpoint if it is the best, and save the state."""
        started, p = time.perf_counter(), self.progress
        # Each epoch and process has its own seed, so a resumed run has the same random numbers as an unbroken one.
        torch.manual_seed(hash((self.config.seed, p.epoch, distributed.rank())) % 2**31)
        loss, turns = self._train_on(self.task.epoch(random.Random(f"{self.config.seed}/{p.epoch}")))
        seconds = time.perf_counter() - started
        with self.average.applied():
            dev = self.task.evaluate()
            dev["score"] = distributed.broadcast(dev["score"])
            is_better = dev["score"] > p.best["score"]
            p.waited = 0 if is_better else p.waited + 1
            if is_better:
                p.best = dev
                self._save_checkpoint(dev)
        line = {"epoch": p.epoch, "loss": loss, **dev, "utterances_per_second": turns / seconds,
                "minutes": (time.perf_counter() - started) / 60, "peak_memory_gb": peak_memory()}  # fmt: skip
        p.epoch += 1
        if distributed.rank() == 0:
            self._log(line)
            state.save(self.out, self.settings, p, self.optimiser, self.average)

    def _train_on(self, groups: list[Group]) -> tuple[float, int]:
        """Train on the groups of an epoch. Return the mean loss and the number of turns of all processes."""
        self.wrapped.train()
        steps = list(batches.chunks(groups, self.config.accumulate * distributed.world_size()))
        bar = track(
            steps,
            f"epoch {self.progress.epoch}",
            transient=True,
            console=Console(stderr=True),
            disable=distributed.rank() > 0,
        )
        step_losses = [self.step(list(step)) for step in bar]
        turns = sum(len(history) for group in groups for history in group)
        return sum(step_losses) / max(1, len(step_losses)), turns

    def step(self, groups: list[Group]) -> float:
        """One optimiser step on this process' part of the groups; every labelled turn has the same weight."""
        processes = distributed.world_size()
        own_groups = groups[distributed.rank() :: processes]
        labelled_turns = max(1, sum(map(_labelled_turns, groups)))
        # The last step may have fewer groups than processes. A process without a group takes part with weight 0.
        weighted = [(group, _labelled_turns(group) * processes / labelled_turns) for group in own_groups]
        weighted = weighted or [(groups[0], 0.0)]
        self.optimiser.zero_grad(set_to_none=True)
        loss = 0.0
        for i, (group, weight) in enumerate(weighted):
            is_last = i == len(weighted) - 1
            with nullcontext() if is_last or processes == 1 else self.wrapped.no_sync():
                loss += self._backward(group, weight)
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        factor = schedule(self.progress.step, self.steps, self.config.warmup)
        for parameters, rate in zip(self.optimiser.param_groups, self.rates):
            parameters["lr"] = rate * factor
        self.optimiser.step()
        self.progress.step += 1
        self.average.update(self.progress.step)
        return distributed.sum_over_processes(loss) / processes

    def _backward(self, group: Group, weight: float) -> float:
        use_bf16 = self.config.precision == "bf16" and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16):
            loss: Tensor = self.wrapped(group) * weight
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _save_checkpoint(self, dev: dict[str, float]) -> None:
        if distributed.rank() == 0:
            about = {**self.about, "train": self.config.to_json(), "dev": dev, "epoch": self.progress.epoch}
            audio = self.module.audio if "audio" in self.about["tuned"] else None
            checkpoint.save(self.out, self.module.hbaf, self.module.text, about, audio)

    def _log(self, line: dict[str, float]) -> None:
        values = {k: round(v, 4) for k, v in line.items()}
        _log_line(", ".join(f"{k.replace('_', ' ')} {v}" for k, v in values.items()))
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")


def _labelled_turns(group: Group) -> int:
    return sum(turn.label != UNLABELLED for history in group for turn in history)


def _log_line(line: str) -> None:
    """Print a line on stderr, in the first process only."""
    if distributed.rank() == 0:
        Console(stderr=True).print(line, highlight=False)
