"""Buffers that carry all arrays of a turn to the GPU in one copy, and all results back in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hbaf_edge.backends.cuda.device import Array, Device

ArraySpecs = Mapping[str, tuple[Any, tuple[int, ...]]]  # dtype and shape of each array
ALIGNMENT = 256  # bytes, of every array; a multiple of what any kernel or engine reads at once


def record_dtype(specs: ArraySpecs) -> np.dtype[np.void]:
    """A dtype whose fields are the arrays, one after another and aligned.

    >>> record = record_dtype({"a": (np.uint8, (3,)), "b": (np.float32, (2, 2))})
    >>> record.fields["b"][1], record.itemsize
    (256, 512)
    """
    sizes = [np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in specs.values()]
    ends = np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]).tolist()
    return np.dtype({
        "names": list(specs), "formats": list(specs.values()), "offsets": [0, *ends[:-1]], "itemsize": ends[-1],
    })  # fmt: skip


class _Buffer:
    """A page-locked host buffer and a device buffer of the same size; both grow when needed."""

    def __init__(self, device: Device) -> None:
        self._device, self.address = device, 0
        self.host: Array = np.empty(0, np.uint8)

    def reserve(self, record: np.dtype[np.void]) -> dict[str, int]:
        """Grow to the size of a record; returns the device address of each of its arrays."""
        size = record.itemsize
        if size > len(self.host):
            host, address = self._device.allocate_pinned(2 * size), self._device.allocate(2 * size)
            self.host, self.address = host, address  # set both, or neither if memory is short
        assert record.fields is not None
        return {name: self.address + int(field[1]) for name, field in record.fields.items()}


class TransferBuffers:
    """Buffers for both directions."""

    def __init__(self, device: Device) -> None:
        self._device, self._inputs, self._outputs = device, _Buffer(device), _Buffer(device)

    def upload(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """Copy arrays to the device; returns their addresses."""
        record = record_dtype({name: (array.dtype, array.shape) for name, array in inputs.items()})
        addresses = self._inputs.reserve(record)
        host = self._inputs.host[: record.itemsize]
        for name, array in inputs.items():
            host.view(record)[0][name][...] = array
        self._device.upload(self._inputs.address, host)
        return addresses

    def reserve_outputs(self, specs: ArraySpecs) -> dict[str, int]:
        """Addresses of the arrays that `download` will copy back."""
        return self._outputs.reserve(record_dtype(specs))

    def download(self, specs: ArraySpecs) -> dict[str, Array]:
        """Copy the output arrays to the host and wait for them; returns new arrays."""
        record = record_dtype(specs)
        host = self._outputs.host[: record.itemsize]
        self._device.download(host, self._outputs.address)
        self._device.synchronize()
        return {name: host.view(record)[0][name].copy() for name in specs}
