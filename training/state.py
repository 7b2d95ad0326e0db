"""A run that can be killed and goes on as if it had not been: everything its next epoch depends on, in one file.

Random numbers need no saving: every epoch seeds its own from the run's seed (training/loop.py).
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

FILE = "state.safetensors"


class Average:
    """Exponential moving average of the weights that learn; young averages forget faster.

    Args:
        parameters: those that learn.
        decay: of one step; 0 keeps no average, and `applied` changes nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.average = [p.detach().clone() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights in the model's place."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)


@dataclass
class Progress:
    """How far a run is: epochs done, steps taken, the best dev scores and how many epochs ago they were."""

    epoch: int = 0
    step: int = 0
    best: dict[str, float] = field(default_factory=lambda: {"score": -1.0})
    waited: int = 0


def identity(config: TrainConfig, model: ModelConfig, init: Path | None) -> dict[str, Any]:
    """All that a run was begun with; one that goes on must have been begun with the same."""
    whole = {**config.to_json(), "model": model.to_json(), "init": str(init)}
    found: dict[str, Any] = json.loads(json.dumps(whole))
    return found


def save(
    out: Path,
    begun: dict[str, Any],
    progress: Progress,
    optimiser: torch.optim.Optimizer,
    average: Average,
) -> None:
    """Write the state, whole or not at all; `begun` is the run's `identity`."""
    tensors = {f"weight/{i}": p.detach() for i, p in enumerate(_parameters(optimiser))}
    for i, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{i}/{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors |= {f"average/{i}": value for i, value in enumerate(average.average)}
    about = {"begun": begun, "progress": vars(progress)}
    held = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    write(out / FILE, as_bytes(held, metadata={"state": json.dumps(about)}))


def load(out: Path, begun: dict[str, Any], optimiser: torch.optim.Optimizer, average: Average) -> Progress:
    """Go on from a folder's state, or from the beginning where there is none.

    Raises:
        TrainingError: where the folder holds a run of another config.
    """
    path = out / FILE
    if not path.exists():
        return Progress()
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["state"])
        check_same(out, about["begun"], begun)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, i, *name = key.split("/")
        if kind == "optimiser":
            moments.setdefault(int(i), {})[name[0]] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    with torch.no_grad():
        for kind, held in (("weight", _parameters(optimiser)), ("average", average.average)):
            for i, tensor in enumerate(held):
                tensor.copy_(tensors[f"{kind}/{i}"])
    return Progress(**about["progress"])


def check_same(out: Path, stored: dict[str, Any], begun: dict[str, Any]) -> None:
    """Refuse to go on with a run that began with other choices."""
    other = [name for name in begun if begun[name] != stored.get(name)]
    if other:
        said = ", ".join(f"{name} {_short(stored.get(name), begun[name])}" for name in other)
        raise TrainingError(f"{out} holds a run of another config ({said}); choose another --out, or --restart")


def _short(there: Any, now: Any) -> str:
    """Two values, or of two dictionaries only what differs."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [k for k in now if now[k] != there.get(k)]
        there, now = ({k: d.get(k) for k in keys} for d in (there, now))
    return f"{there!r} there, {now!r} now"


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]
