"""State of a run on disk, with which a killed run resumes exactly: all that its next epoch depends on, in one file.

Random number generators are not stored, since every epoch seeds its own from the run's seed (training/loop.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from training.config import ModelConfig, TrainConfig
from training.errors import TrainingError
from training.files import write

STATE_FILE = "state.safetensors"
RENAMED = {"mislead": "mismatch", "misleading": "mismatched"}  # settings that older state files call differently


class Average:
    """Exponential moving average of the trained weights; early averages use a smaller decay.

    Args:
        parameters: the trained parameters.
        decay: per step; 0 turns averaging off, and `applied` changes nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.average = [p.detach().clone() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after `step` steps."""
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)


@dataclass
class Progress:
    """Epochs and steps done, the best dev scores, and the number of epochs since then."""

    epoch: int = 0
    step: int = 0
    best: dict[str, float] = field(default_factory=lambda: {"score": -1.0})
    waited: int = 0


def identity(config: TrainConfig, model: ModelConfig, init: Path | None) -> dict[str, Any]:
    """The settings of a run as JSON values; a run only resumes with the same settings."""
    settings = {**config.to_json(), "model": model.to_json(), "init": str(init)}
    json_values: dict[str, Any] = json.loads(json.dumps(settings))
    return json_values


def save(
    out: Path,
    settings: dict[str, Any],
    progress: Progress,
    optimiser: torch.optim.Optimizer,
    average: Average,
) -> None:
    """Write the state atomically; `settings` is the run's `identity`."""
    tensors = {f"weight/{i}": p.detach() for i, p in enumerate(_parameters(optimiser))}
    for i, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{i}/{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors |= {f"average/{i}": value for i, value in enumerate(average.average)}
    about = {"begun": settings, "progress": vars(progress)}
    on_cpu = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    write(out / STATE_FILE, as_bytes(on_cpu, metadata={"state": json.dumps(about)}))


def load(out: Path, settings: dict[str, Any], optimiser: torch.optim.Optimizer, average: Average) -> Progress:
    """Restore the state of a run, or return the progress of a new run if there is no state file.

    Raises:
        TrainingError: the folder contains a run with other settings.
    """
    path = out / STATE_FILE
    if not path.exists():
        return Progress()
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["state"])
        check_same_settings(out, about["begun"], settings)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, i, *name = key.split("/")
        if kind == "optimiser":
            moments.setdefault(int(i), {})[name[0]] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    with torch.no_grad():
        for kind, targets in (("weight", _parameters(optimiser)), ("average", average.average)):
            for i, tensor in enumerate(targets):
                tensor.copy_(tensors[f"{kind}/{i}"])
    return Progress(**about["progress"])


def check_same_settings(out: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise TrainingError if the run in a folder was started with other settings."""
    stored = _with_current_names(stored)
    different = [name for name in settings if settings[name] != stored.get(name)]
    if different:
        values = ", ".join(f"{name} {_difference(stored.get(name), settings[name])}" for name in different)
        raise TrainingError(
            f"{out} contains a run with other settings ({values}); choose another --out, or give --restart"
        )


def _with_current_names(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {RENAMED.get(name, name): _with_current_names(value) for name, value in settings.items()}


def _difference(stored: Any, requested: Any) -> str:
    """Two values as text; of two dictionaries only the entries that differ."""
    if isinstance(stored, dict) and isinstance(requested, dict):
        keys = [k for k in requested if requested[k] != stored.get(k)]
        stored, requested = ({k: d.get(k) for k in keys} for d in (stored, requested))
    return f"{stored!r} there, {requested!r} now"


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]
