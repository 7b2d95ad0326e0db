"""The kernels that ship compiled: their argument types, compile-time constants and warps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from kernels import common, layer, node, sequence, step

TRITON_DTYPES = {torch.float16: "fp16", torch.float32: "fp32"}  # Triton's names
# Type of an argument by its name, in every kernel. All others are pointers to the dtype of rings and weights.
TYPES = {
    "rows": "*i32", "turns": "*i32", "places": "*i32", "slots": "*u8", "nows": "*u8", "bias": "*fp32", "batch": "i32",
    "labels": "i32", "step_row": "i64", "store": "i32", "scale": "fp32", "states": "*fp32", "result": "*fp32",
    "logits": "*fp32", "audio_visible": "*u8", "text_visible": "*u8", **dict.fromkeys(node.SIZES, "i32"),
}  # fmt: skip
SOURCES = (common, layer, node, sequence, step)


class Sizes(NamedTuple):
    """Sizes of a model: window, heads, and the width of a head."""

    window: int
    heads: int
    e: int

    @property
    def d(self) -> int:
        """Width of the model."""
        return self.heads * self.e


class KernelSpec(NamedTuple):
    """A kernel and how it is compiled.

    Attributes:
        function: decorated with `triton.jit`.
        constants: compile-time constants for a model's sizes and a dtype.
        warps: of a program, for a dtype and a compute capability.
        dtypes: of rings and weights.
    """

    function: Any
    constants: Callable[[Sizes, torch.dtype], dict[str, Any]]
    warps: Callable[[torch.dtype, int], int]
    dtypes: tuple[torch.dtype, ...] = tuple(TRITON_DTYPES)

    @property
    def name(self) -> str:
        """Name of the function."""
        return str(self.function.__name__)

    def types(self, dtype: torch.dtype) -> dict[str, str]:
        """Triton's type of each argument. The bias of `project` has the weights' dtype; that of gates is float32."""
        types = {name: TYPES.get(name, f"*{TRITON_DTYPES[dtype]}") for name in self.function.arg_names}
        return types if self.function is not layer.project else {**types, "bias": f"*{TRITON_DTYPES[dtype]}"}


SHIPPED = (
    KernelSpec(step.gate_step, lambda s, _: step.constants(*s), step.warps),
    KernelSpec(layer.keep, lambda s, _: layer.keep_constants(s.window, s.d), lambda *_: layer.KEEP_WARPS),
    KernelSpec(layer.project, lambda s, _: layer.project_constants(s.d), lambda *_: layer.PROJECT_WARPS),
    KernelSpec(layer.finish, lambda s, dtype: layer.finish_constants(s.d, dtype), lambda *_: layer.FINISH_WARPS),
    KernelSpec(layer.head, lambda s, _: layer.head_constants(s.d), lambda *_: layer.HEAD_WARPS),
    KernelSpec(node.gate_node, lambda s, _: node.constants(s.heads, s.e), lambda *_: node.WARPS, (torch.float32,)),
)
