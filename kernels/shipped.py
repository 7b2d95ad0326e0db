"""The kernels that are compiled ahead of time: types of their arguments, constants, and how each is launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from kernels import layer, node, parts, sequence, step

SHORT = {torch.float16: "fp16", torch.float32: "fp32"}  # Triton's names
# By argument's name, in every kernel; all others are pointers to the dtype of rings and weights.
TYPES = {
    "rows": "*i32", "turns": "*i32", "places": "*i32", "slots": "*u8", "nows": "*u8", "bias": "*fp32", "batch": "i32",
    "labels": "i32", "step_row": "i64", "store": "i32", "scale": "fp32", "states": "*fp32", "result": "*fp32",
    "logits": "*fp32", "audio_visible": "*u8", "text_visible": "*u8", **dict.fromkeys(node.SIZES, "i32"),
}  # fmt: skip
SOURCES = (layer, node, parts, sequence, step)


class Sizes(NamedTuple):
    """Of a model: window, heads, and the width of a head."""

    window: int
    heads: int
    e: int

    @property
    def d(self) -> int:
        """Width of the model."""
        return self.heads * self.e


class Shipped(NamedTuple):
    """A kernel.

    Attributes:
        function: under `triton.jit`.
        constants: of a model's sizes and a dtype.
        warps: of a program, by dtype and architecture.
        dtypes: of rings and weights.
    """

    function: Any
    constants: Callable[[Sizes, torch.dtype], dict[str, Any]]
    warps: Callable[[torch.dtype, int], int]
    dtypes: tuple[torch.dtype, ...] = tuple(SHORT)

    @property
    def name(self) -> str:
        """Of the function."""
        return str(self.function.__name__)

    def types(self, dtype: torch.dtype) -> dict[str, str]:
        """Triton's name of each argument's type; `project`'s own bias is of the weights' dtype."""
        found = {name: TYPES.get(name, f"*{SHORT[dtype]}") for name in self.function.arg_names}
        return found if self.function is not layer.project else {**found, "bias": f"*{SHORT[dtype]}"}


SHIPPED = (
    Shipped(step.gate_step, lambda s, _: step.constants(*s), step.warps),
    Shipped(layer.keep, lambda s, _: layer.keep_constants(s.window, s.d), lambda *_: layer.KEEP_WARPS),
    Shipped(layer.project, lambda s, _: layer.project_constants(s.d), lambda *_: layer.PROJECT_WARPS),
    Shipped(layer.finish, lambda s, dtype: layer.finish_constants(s.d, dtype), lambda *_: layer.FINISH_WARPS),
    Shipped(layer.head, lambda s, _: layer.head_constants(s.d), lambda *_: layer.HEAD_WARPS),
    Shipped(node.gate_node, lambda s, _: node.constants(s.heads, s.e), lambda *_: node.WARPS, (torch.float32,)),
)
