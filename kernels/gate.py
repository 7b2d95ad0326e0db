"""The bimodal attention gate as the model calls it: one operator for both modalities, whoever computes it.

In PyTorch it is the reference. In an exported file it is one node of our own domain, with a function of the same name
beside it that is made of standard operators: any runtime can run the file, and a kernel can take the node's place
(export/gate_function.py).
"""

from __future__ import annotations

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


def both_gates(
    asked: Sequence[tuple[Tensor, Tensor]],
    memories: Sequence[Memory],
    weights: Sequence[GateWeights],
    *,
    relevance: bool = True,
    gate: bool = True,
) -> list[Tensor]:
    """`kernels.reference.both_gates`; while a graph is exported, the node that stands for it.

    Without relevance or without gate (ablations) it is another function and has no node.
    """
    if not (torch.onnx.is_in_onnx_export() and relevance and gate):
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
            version=VERSION,
        )
    )


def no_bias(like: Tensor) -> Tensor:
    """A bias that adds nothing, (1, 1, 1, 1): the node takes the same inputs in every scope."""
    return like.new_zeros(1, 1, 1, 1)
