"""A host in a GPU's place: memory of its own, and kernels in Triton's interpreter, launched by the shipped manifest.

Everything of the runtime's GPU back ends but the driver's own calls runs on it: which kernel with which arguments on
which addresses, in which order. A launch is packed as it would be for a card, so its names and alignment are checked.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hbaf_edge.backends.cuda.device import Loaded
from hbaf_edge.errors import BackendError
from kernels.shipped import SHIPPED, Sizes

FUNCTIONS = {k.name: k for k in SHIPPED}
KINDS = {"*fp16": torch.float16, "*fp32": torch.float32, "*i32": torch.int32, "*u8": torch.uint8}


class HostDevice:
    """As `hbaf_edge.backends.cuda.device.Device`; counts what crosses.

    Attributes:
        copies: uploads and downloads so far.
        launches: names of the kernels launched so far.
        broken: fail the next launch.
    """

    capability, name, stream = 87, "interpreter", 0

    def __init__(self, sizes: Sizes) -> None:
        if os.environ.get("TRITON_INTERPRET") != "1":  # Triton would read this machine's memory from the card
            pytest.skip("a host takes a GPU's place in Triton's interpreter alone (TRITON_INTERPRET=1)")
        self.sizes, self._memory = sizes, dict[int, np.ndarray]()
        self.copies, self.launches, self.broken = [0, 0], [], False

    @contextmanager
    def here(self, when):
        try:
            yield
        except MemoryError as error:
            raise BackendError(f"the GPU failed {when} ({error})") from error

    def allocate(self, size):
        whole = np.full(size + 512, 0, np.uint8)
        address = -(-whole.ctypes.data // 256) * 256
        self._memory[address] = whole
        return address

    def pinned(self, size):
        return np.full(size, 0xFF, np.uint8)  # not a number, where nothing was written

    def upload(self, target, host):
        self.copies[0] += 1
        ctypes.memmove(self._inside(target, host.nbytes), np.ascontiguousarray(host).ctypes.data, host.nbytes)

    def download(self, host, source):
        self.copies[1] += 1
        ctypes.memmove(host.ctypes.data, self._inside(source, host.nbytes), host.nbytes)

    def copy(self, target, source, size):
        ctypes.memmove(self._inside(target, size), self._inside(source, size), size)

    def clear(self, target, size):
        ctypes.memset(self._inside(target, size), 0, size)

    def synchronize(self):
        pass

    def load(self, fitting):
        return Loaded(fitting[0], FUNCTIONS[fitting[0].name])

    def launch(self, loaded, grid, values):
        if self.broken:
            raise MemoryError("a launch failed")
        struct.pack(loaded.kernel.layout, *loaded.kernel.ordered(values))
        shipped, dtype = loaded.function, getattr(torch, loaded.kernel.dtype)
        types = shipped.types(dtype)
        arguments = {n: self._tensor(v, KINDS[types[n]]) if types[n].startswith("*") else v for n, v in values.items()}
        shipped.function[grid](**arguments, **shipped.constants(self.sizes, dtype))
        self.launches.append(loaded.kernel.name)

    def replay(self, key, enqueue):
        enqueue()

    def array(self, address, shape, dtype):
        """What lies at an address."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self._inside(address, size)), dtype).reshape(shape)

    def _tensor(self, address, dtype):
        """All of the allocation from there on."""
        _, whole = self._of(address)
        end = whole.ctypes.data + len(whole)
        raw = (ctypes.c_uint8 * ((end - address) // 8 * 8)).from_address(address)
        return torch.frombuffer(raw, dtype=dtype)

    def _of(self, address):
        for start, whole in self._memory.items():
            if start <= address < whole.ctypes.data + len(whole):
                return start, whole
        raise AssertionError(f"{address:#x} was never allocated")

    def _inside(self, address, size):
        _, whole = self._of(address)
        assert address + size <= whole.ctypes.data + len(whole), "beyond what was allocated"
        return address
