"""The bimodal attention gate as the model calls it: one operator for both modalities.

On a GPU the fused kernel computes it (kernels/sequence.py), elsewhere the reference. HBAF_KERNELS=reference selects the
reference everywhere. HBAF_KERNELS=triton selects the kernel everywhere; if it cannot run, a warning gives the reason.

In an exported file the gate is one node of our own domain. The file also holds a function of the same name, made of
standard operators, so any runtime can run it, and a kernel can replace the node (export/gate_function.py).
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
QUERY_INPUTS = ("query", "cross_query")
MEMORY_INPUTS = ("keys", "values", "visible", "bias")
WEIGHTS = ("w_r", "b_r", "w_g", "b_g")
INPUTS = tuple(f"{m}_{name}" for m in ("audio", "text") for name in (*QUERY_INPUTS, *MEMORY_INPUTS, *WEIGHTS))
OUTPUTS = ("audio", "text")
VARIABLE, CHOICES = "HBAF_KERNELS", ("auto", "reference", "triton")


def both_gates(
    queries: Sequence[tuple[Tensor, Tensor]],
    memories: Sequence[Memory],
    weights: Sequence[GateWeights],
    *,
    relevance: bool = True,
    gate: bool = True,
) -> list[Tensor]:
    """Compute `kernels.reference.both_gates` with the fused kernel or the reference; emit the node during an export.

    Without relevance or without gate (ablations) it has neither kernel nor node.
    """
    if not (torch.onnx.is_in_onnx_export() and relevance and gate):
        if use_kernel(queries[0][0], relevance and gate):
            return _run_kernel(queries, memories, weights)
        return reference(queries, memories, weights, relevance=relevance, gate=gate)
    inputs = [
        tensor
        for pair, memory, weight in zip(queries, memories, weights)
        for tensor in (*pair, *memory[:3], no_bias(pair[0]) if memory.bias is None else memory.bias, *weight)
    ]
    return list(
        torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{NAME}",
            inputs,
            dtypes=[pair[0].dtype for pair in queries],
            shapes=[pair[0].shape for pair in queries],
            attrs={"plugin_namespace": DOMAIN},  # TensorRT's parser finds a plugin by it; other parsers ignore it
            version=VERSION,
        )
    )


def use_kernel(query: Tensor, is_complete: bool = True) -> bool:
    """Whether to run the kernel for a query (B, H, N, e). Warn once if the kernel is selected but cannot run.

    Args:
        query: its device, dtype and head width decide.
        is_complete: relevance and gate are both on.

    Raises:
        ValueError: HBAF_KERNELS is not auto, reference or triton.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} is {choice!r}; valid ones are {', '.join(CHOICES)}")
    if choice == "reference" or (choice == "auto" and query.device.type != "cuda"):
        return False
    reason = _reason_against_kernel(query, is_complete)
    if reason:
        warn_once(f"the gate runs unfused: {reason}")
    return not reason


def _reason_against_kernel(query: Tensor, is_complete: bool) -> str:
    """Why the kernel cannot run; empty if it can."""
    dtype, e = query.dtype, query.shape[-1]
    if query.is_cuda and torch.cuda.get_device_capability(query.device) < (7, 5):
        return f"{torch.cuda.get_device_name(query.device)} is older than Turing"
    if not query.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return "the kernel runs on NVIDIA GPUs, and elsewhere only in Triton's interpreter (TRITON_INTERPRET=1)"
    if not is_complete:
        return "models without relevance or without gate (ablations) have no kernel"
    try:
        from kernels.common import MAX_HEAD_WIDTH
    except ImportError as error:
        return f"Triton cannot be imported ({error}); it comes with PyTorch for CUDA, or: pip install triton"
    if dtype not in MAX_HEAD_WIDTH:
        return f"the kernel takes {', '.join(map(str, MAX_HEAD_WIDTH))}, not {dtype}"
    return (
        f"the kernel takes {dtype} heads up to {MAX_HEAD_WIDTH[dtype]} wide, not {e}"
        if e > MAX_HEAD_WIDTH[dtype]
        else ""
    )


def _run_kernel(
    queries: Sequence[tuple[Tensor, Tensor]], memories: Sequence[Memory], weights: Sequence[GateWeights]
) -> list[Tensor]:
    from kernels.sequence import gate as kernel

    results = []
    for m, (query, cross) in enumerate(queries):
        # Mixed precision keeps the gate's parameters in float32, but casts queries to half precision.
        cast = GateWeights(*(w.to(query.dtype).contiguous() for w in weights[m]))
        results.append(kernel(query, cross.to(query.dtype), memories[m], memories[1 - m], cast))
    return results


@functools.cache
def warn_once(message: str) -> None:
    """Warn once per message."""
    warnings.warn(message, stacklevel=4)


def no_bias(like: Tensor) -> Tensor:
    """A zero bias, (1, 1, 1, 1), because the node has the same inputs in every scope."""
    return like.new_zeros(1, 1, 1, 1)
