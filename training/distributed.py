"""Training with several processes under `torchrun`, one device each. A single process needs none of this.

    torchrun --nproc-per-node 2 -m training.train --corpus meld --out runs/meld

Every process builds the same groups of histories from the same seed and takes its own part of each step. So two
processes take the same steps as one process that accumulates two batches (tests/training/test_distributed.py).
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
TIMEOUT = timedelta(hours=4)  # the first process may encode a whole corpus while the others wait


@dataclass(frozen=True)
class Compute:
    """The device of a command and its CPU threads."""

    device: str = "auto"  # cpu, cuda, or auto
    threads: int | None = None  # CPU threads; None uses torch's default

    def start(self) -> torch.device:
        """Return the device of this process. Join the process group if torchrun started it."""
        if self.threads:
            torch.set_num_threads(self.threads)
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        kind = self.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        if "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device


def rank() -> int:
    """Number of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first_then_all(work: Callable[[], T]) -> T:
    """Run `work` in the first process, then in the others, which then find on disk what the first one wrote."""
    if rank() == 0:
        result = work()
    if world_size() > 1:
        dist.barrier()
    return result if rank() == 0 else work()


def broadcast(value: float) -> float:
    """The first process' number in every process, so that all of them take the same decisions."""
    return _exchange(value, lambda tensor: dist.broadcast(tensor, 0))


def sum_over_processes(value: float) -> float:
    """Sum of a number over all processes."""
    return _exchange(value, dist.all_reduce)


def _exchange(value: float, operation: Callable[[torch.Tensor], object]) -> float:
    """Apply a collective operation to one number."""
    if world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    operation(tensor)
    return float(tensor)
