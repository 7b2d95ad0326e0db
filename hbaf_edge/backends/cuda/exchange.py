"""Buffers through which a turn's arrays cross to the GPU in one copy, and back in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hbaf_edge.backends.cuda.device import Array, Device

Parts = Mapping[str, tuple[Any, tuple[int, ...]]]  # dtype and shape of each array
ALIGNMENT = 256  # of every array; a multiple of what any kernel or engine reads at once


def layout(parts: Parts) -> np.dtype[np.void]:
    """A record that holds arrays one after the other, aligned.

    >>> made = layout({"a": (np.uint8, (3,)), "b": (np.float32, (2, 2))})
    >>> made.fields["b"][1], made.itemsize
    (256, 512)
    """
    sizes = [np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in parts.values()]
    ends = np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]).tolist()
    return np.dtype({
        "names": list(parts), "formats": list(parts.values()), "offsets": [0, *ends[:-1]], "itemsize": ends[-1],
    })  # fmt: skip


class Exchange:
    """Buffers of both directions, pinned on the host and on the device; they grow where they must."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._host: list[Array] = [np.empty(0, np.uint8)] * 2
        self._there = [0, 0]

    def bring(self, given: Mapping[str, Array]) -> dict[str, int]:
        """Copy arrays in; their addresses."""
        record = layout({name: (array.dtype, array.shape) for name, array in given.items()})
        at = self._room(0, record)
        host = self._host[0][: record.itemsize]
        for name, array in given.items():
            host.view(record)[0][name][...] = array
        self._device.upload(self._there[0], host)
        return at

    def room(self, parts: Parts) -> dict[str, int]:
        """Addresses for what `take` will bring back."""
        return self._room(1, layout(parts))

    def take(self, parts: Parts) -> dict[str, Array]:
        """Copy arrays out, and wait for it; arrays of their own."""
        record = layout(parts)
        host = self._host[1][: record.itemsize]
        self._device.download(host, self._there[1])
        self._device.synchronize()
        return {name: host.view(record)[0][name].copy() for name in parts}

    def _room(self, which: int, record: np.dtype[np.void]) -> dict[str, int]:
        """Addresses of a record's arrays in a buffer that is large enough for it."""
        size = record.itemsize
        if size > len(self._host[which]):
            host, there = self._device.pinned(2 * size), self._device.allocate(2 * size)
            self._host[which], self._there[which] = host, there  # both or, where memory was short, neither
        assert record.fields is not None
        return {name: self._there[which] + int(field[1]) for name, field in record.fields.items()}
