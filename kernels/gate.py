"""The bimodal attention gate as the model calls it: one operator for both modalities, whoever computes it.

On a GPU it is the fused kernel (kernels/sequence.py), elsewhere the reference; HBAF_KERNELS=reference takes the
reference everywhere, HBAF_KERNELS=triton the kernel, and says why where it cannot. In an exported file it is one node
of our own domain, with a function of the same name beside it that is made of standard operators: any runtime can run
the file, and a kernel can take the node's place (export/gate_function.py).
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.reference import GateWeights, Memory
from kernels.reference import both_gates as reference

DOMAIN, NAME, VERSION = "hbaf_edge", "BimodalAttentionGate", 1
ASKED = ("query", "cross_query")
REMEMBERED = ("keys", "values", "visible", "bias")
WEIGHTS = ("w_r", "b_r", "w_g", "b_g")
INPUTS = tuple(f"{modality}_{name}" for modality in ("audio", "text") for name in (*ASKED, *REMEMBERED, *WEIGHTS))
OUTPUTS = ("audio", "text")
SWITCH, CHOICES = "HBAF_KERNELS", ("auto", "reference", "triton")


def both_gates(
    asked: Sequence[tuple[Tensor, Tensor]],
    memories: Sequence[Memory],
    weights: Sequence[GateWeights],
    *,
    relevance: bool = True,
    gate: bool = True,
) -> list[Tensor]:
    """`kernels.reference.both_gates`, by the fused kernel where it runs; while a graph is exported, the node instead.

    Without relevance or without gate (ablations) it is another function and has neither kernel nor node.
    """
    if not (torch.onnx.is_in_onnx_export() and relevance and gate):
        if fused(asked[0][0], relevance and gate):
            return _by_kernel(asked, memories, weights)
        return reference(asked, memories, weights, relevance=relevance, gate=gate)
    inputs = [
        tensor
        for ask, memory, weight in zip(asked, memories, weights)
        for tensor in (*ask, *memory[:3], no_bias(ask[0]) if memory.bias is None else memory.bias, *weight)
    ]
    return list(
        torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{NAME}",
            inputs,
            dtypes=[ask[0].dtype for ask in asked],
            shapes=[ask[0].shape for ask in asked],
            attrs={"plugin_namespace": DOMAIN},  # by which TensorRT's parser finds a plugin; others pass over it
            version=VERSION,
        )
    )


def fused(query: Tensor, whole: bool = True) -> bool:
    """Whether the kernel is asked for a query (B, H, N, e); a GPU that goes without it is told so once.

    Args:
        query: decides by device, dtype and width.
        whole: relevance and gate are both there.

    Raises:
        ValueError: HBAF_KERNELS is none of auto, reference and triton.
    """
    choice = os.environ.get(SWITCH, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{SWITCH} is {choice!r}; valid ones are {', '.join(CHOICES)}")
    if choice == "reference" or (choice == "auto" and query.device.type != "cuda"):
        return False
    why = _hindrance(query, whole)
    if why:
        warn_once(f"the gate runs unfused: {why}")
    return not why


def _hindrance(query: Tensor, whole: bool) -> str:
    """Why the kernel cannot be taken; empty where it can."""
    dtype, e = query.dtype, query.shape[-1]
    if query.is_cuda and torch.cuda.get_device_capability(query.device) < (7, 5):
        return f"{torch.cuda.get_device_name(query.device)} is older than Turing"
    if not query.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return "the kernel runs on NVIDIA GPUs, elsewhere only in Triton's interpreter (TRITON_INTERPRET=1)"
    if not whole:
        return "without relevance or without gate (ablations) it has no kernel"
    try:
        from kernels.parts import WIDEST
    except ImportError as error:
        return f"Triton cannot be imported ({error}); it comes with PyTorch for CUDA, or: pip install triton"
    if dtype not in WIDEST:
        return f"the kernel takes {', '.join(map(str, WIDEST))}, not {dtype}"
    return f"the kernel takes {dtype} heads up to {WIDEST[dtype]} wide, not {e}" if e > WIDEST[dtype] else ""


def _by_kernel(
    asked: Sequence[tuple[Tensor, Tensor]], memories: Sequence[Memory], weights: Sequence[GateWeights]
) -> list[Tensor]:
    from kernels.sequence import gate as kernel

    found = []
    for m, (query, cross) in enumerate(asked):
        # Mixed precision keeps the gate's parameters in float32 beside queries in half.
        cast = GateWeights(*(w.to(query.dtype).contiguous() for w in weights[m]))
        found.append(kernel(query, cross.to(query.dtype), memories[m], memories[1 - m], cast))
    return found


@functools.cache
def warn_once(message: str) -> None:
    """Once for each message."""
    warnings.warn(message, stacklevel=4)


def no_bias(like: Tensor) -> Tensor:
    """A bias that adds nothing, (1, 1, 1, 1): the node takes the same inputs in every scope."""
    return like.new_zeros(1, 1, 1, 1)
