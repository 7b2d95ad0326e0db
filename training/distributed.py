"""Several processes, each with its own device, under `torchrun`; one process needs none of this.

    torchrun --nproc-per-node 2 -m training.train --corpus meld --out runs/meld

Every process draws the same groups of histories from the same seed and takes its own share of each step, so two
processes take the same steps as one that accumulates two batches (tests/training/test_distributed.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(hours=4)  # the first process may encode a whole corpus while the others wait


@dataclass(frozen=True)
class Compute:
    """What a command computes on."""

    device: str = "auto"  # cpu, cuda, or auto
    threads: int | None = None  # of the CPU; None leaves torch's choice

    def start(self) -> torch.device:
        """The device of this process; joins the group where torchrun says there is one."""
        if self.threads:
            torch.set_num_threads(self.threads)
        local = int(os.environ.get("LOCAL_RANK", 0))
        kind = self.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device


def rank() -> int:
    """Number of this process, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first_then_all(work: Callable[[], T]) -> T:
    """Run in the first process, then in the others: what the first wrote to the disk, they find."""
    if rank() == 0:
        found = work()
    if size() > 1:
        dist.barrier()
    return found if rank() == 0 else work()


def agreed(value: float) -> float:
    """The first process' number, in all of them; decisions on it are then the same."""
    return _shared(value, lambda tensor: dist.broadcast(tensor, 0))


def total(value: float) -> float:
    """Sum over all processes."""
    return _shared(value, dist.all_reduce)


def _shared(value: float, exchange: Callable[[torch.Tensor], object]) -> float:
    """A number after an exchange with the other processes."""
    if size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    exchange(tensor)
    return float(tensor)
