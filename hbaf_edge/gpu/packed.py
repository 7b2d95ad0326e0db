"""What a step of the gate brings to the GPU, in one buffer, and checks that its values lead nowhere else. No GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import BackendError

Array = NDArray[Any]
WEIGHTS = ("bias", "w_r", "b_r", "w_g", "b_g")
ALIGNMENT = 256  # of every part of a packed buffer; a multiple of what any kernel reads at once
MARKS = 11  # 1 and 2 for modalities, 4 times a relation of 0 to 2


@dataclass(frozen=True)
class Packed:
    """Several arrays in one buffer, so that they cross in one copy.

    Attributes:
        offsets: of each part, in bytes.
        shapes: of each part.
        kinds: dtype of each part.
        size: of the whole.
    """

    offsets: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, Any]
    size: int

    @classmethod
    def of(cls, parts: Mapping[str, tuple[tuple[int, ...], Any]]) -> Packed:
        """Parts by name, shape and dtype, one after the other.

        >>> made = Packed.of({"a": ((3,), np.uint8), "b": ((2, 2), np.float32)})
        >>> dict(made.offsets), made.size
        ({'a': 0, 'b': 256}, 512)
        """
        offsets, end = {}, 0
        for name, (shape, kind) in parts.items():
            offsets[name] = end
            end += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // ALIGNMENT) * ALIGNMENT
        return cls(offsets, {n: s for n, (s, _) in parts.items()}, {n: np.dtype(k) for n, (_, k) in parts.items()}, end)

    def view(self, buffer: Array, name: str) -> Array:
        """A part of a host buffer of bytes as the array it is."""
        kind, shape = self.kinds[name], self.shapes[name]
        start = self.offsets[name]
        found: Array = buffer[start : start + int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
        return found

    def fill(self, buffer: Array, given: Mapping[str, Array]) -> None:
        """Copy arrays into a host buffer.

        Raises:
            BackendError: one is missing, or of another shape or dtype.
        """
        for name, kind in self.kinds.items():
            array = given.get(name)
            if array is None or array.shape != self.shapes[name] or array.dtype != kind:
                came = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise BackendError(f"{name} is {came}; the step takes {kind} {self.shapes[name]}")
        for name in self.kinds:
            self.view(buffer, name)[...] = given[name]


def inputs_of(batch: int, window: int, heads: int, e: int, kind: Any) -> Packed:
    """What a step brings to the GPU: queries, new keys and values, and what each conversation's slots hold."""
    both = (batch, 2, 2, heads, e)
    return Packed.of({
        "asks": (both, kind), "news": (both, kind), "rows": ((batch,), np.int32), "turns": ((batch,), np.int32),
        "slots": ((batch, window), np.uint8), "nows": ((batch,), np.uint8),
    })  # fmt: skip


def check_weights(weights: Mapping[str, Array]) -> tuple[int, int, int]:
    """Heads, window and width of a head that the weights are of.

    Raises:
        BackendError: one is missing, or they do not fit one another.
    """
    if set(weights) != set(WEIGHTS):
        raise BackendError(f"a gate has the weights {', '.join(WEIGHTS)}; given were {', '.join(weights)}")
    if weights["bias"].ndim != 4 or weights["b_g"].ndim != 3:
        came = f"bias is {weights['bias'].shape}, b_g {weights['b_g'].shape}"
        raise BackendError(f"{came}; bias has to be (2, H, W, 3) and b_g (2, H, e)")
    _, heads, window, _ = weights["bias"].shape
    e = weights["b_g"].shape[-1]
    wanted = {"bias": (2, heads, window, 3), "w_r": (2, heads, 2 * e), "b_r": (2, heads), "w_g": (2, heads, e, 2 * e),
              "b_g": (2, heads, e)}  # fmt: skip
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise BackendError(f"{name} is {weights[name].shape}; beside the others it has to be {shape}")
    return heads, window, e


def check_inputs(given: Mapping[str, Array], capacity: int) -> int:
    """The batch of a call, whose values lead nowhere but into the rings.

    Raises:
        BackendError: a value would lead elsewhere.
    """
    missing = {"asks", "news", "rows", "turns", "slots", "nows"} - set(given)
    if missing:
        raise BackendError(f"a turn needs {', '.join(sorted(missing))} as well")
    batch, rows = len(given["asks"]), given["rows"]
    if not 1 <= batch <= capacity or ((rows < 0) | (rows >= capacity)).any() or len(set(rows.tolist())) != rows.size:
        raise BackendError(f"{batch} turns of rows {rows.tolist()} came; there are {capacity}, and each has one turn")
    if (given["turns"] < 0).any() or (given["slots"] > MARKS).any() or (given["nows"] > MARKS).any():
        came = (
            f"turns from {given['turns'].min()}, slots up to {given['slots'].max()}, nows up to {given['nows'].max()}"
        )
        raise BackendError(f"{came} came; turns count from 0, and what a slot holds is 0 to {MARKS} (kernels/ring.py)")
    return batch
