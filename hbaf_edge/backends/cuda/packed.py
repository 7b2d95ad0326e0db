"""Several arrays in one buffer, so that they cross to the GPU or back in one copy. Needs no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import BackendError

Array = NDArray[Any]
Parts = Mapping[str, tuple[tuple[int, ...], Any]]  # shape and dtype of each
ALIGNMENT = 256  # of every part; a multiple of what any kernel reads at once


@dataclass(frozen=True)
class Packed:
    """Where each part lies.

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
    def of(cls, parts: Parts) -> Packed:
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

    def at(self, address: int) -> dict[str, int]:
        """Address of each part of a buffer that begins there."""
        return {name: address + offset for name, offset in self.offsets.items()}

    def view(self, buffer: Array, name: str) -> Array:
        """A part of a host buffer of bytes as the array it is."""
        kind, shape = self.kinds[name], self.shapes[name]
        start = self.offsets[name]
        found: Array = buffer[start : start + int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
        return found

    def fill(self, buffer: Array, given: Mapping[str, Array]) -> None:
        """Copy arrays into a host buffer; values are cast where that loses nothing but precision.

        Raises:
            BackendError: one is missing or of another shape; nothing is written.
        """
        for name, shape in self.shapes.items():
            array = given.get(name)
            if array is None or array.shape != shape:
                came = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise BackendError(f"{name} is {came}; the GPU takes {self.kinds[name]} {shape}")
        for name in self.shapes:
            np.copyto(self.view(buffer, name), given[name], casting="same_kind")
