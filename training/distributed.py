"""Several processes, each with its own device, under `torchrun`; one process needs none of this.

    torchrun --nproc-per-node 2 -m training.train --corpus meld --out runs/meld

Every process draws the same groups of histories from the same seed and takes its own share of each step, so two
processes take the same steps as one that accumulates two batches (tests/training/test_distributed.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(hours=4)  # the first process may encode a whole corpus while the others wait


def start(device: str = "auto") -> torch.device:
    """The device of this process; joins the group where torchrun says there is one."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device, local) if device == "cuda" else torch.device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo", timeout=PATIENCE)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


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
    if size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def total(value: float) -> float:
    """Sum over all processes."""
    if size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    return float(shared)
