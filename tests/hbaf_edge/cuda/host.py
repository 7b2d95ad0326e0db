"""A host in a GPU's place: memory of its own, and kernels in Triton's interpreter, launched by the shipped manifest.

Everything of the runtime's GPU back ends but the driver's own calls runs on it: which kernel with which arguments on
which addresses, in which order. Arguments are ordered as for a card, so their names and alignment are checked.
"""

from __future__ import annotations

import ctypes
import os
import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hbaf_edge.backends.cuda.driver import Loaded
from hbaf_edge.errors import BackendError
from kernels.shipped import SHIPPED, Sizes

FUNCTIONS = {k.name: k for k in SHIPPED}
CONSTANTS = ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
             "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")  # fmt: skip
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

    def clear(self, target, size):
        ctypes.memset(self._inside(target, size), 0, size)

    def synchronize(self):
        pass

    def load(self, fitting):
        return Loaded(fitting[0], FUNCTIONS[fitting[0].name])

    def launch(self, loaded, grid, values):
        if self.broken:
            raise MemoryError("a launch failed")
        loaded.kernel.ordered(values)
        shipped, dtype = loaded.function, getattr(torch, loaded.kernel.dtype)
        kinds = shipped.types(dtype)
        arguments = {n: self._tensor(v, KINDS[kinds[n]]) if kinds[n].startswith("*") else v for n, v in values.items()}
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


class Bindings:
    """`cuda.bindings.driver` in a driver's place: every call succeeds but those in `failing`, and is written down."""

    class CUresult:
        CUDA_SUCCESS = 0

    def __init__(self, monkeypatch, *failing):
        self.failing, self.called = failing, []
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=self))

    def __getattr__(self, name):
        if name.startswith("CU"):
            return types.SimpleNamespace(**{constant: constant for constant in CONSTANTS})

        def call(*given):
            self.called.append((name, *given))
            major_or_minor = {CONSTANTS[0]: 9, CONSTANTS[1]: 0}.get(given[0] if given else None)
            answer = {"cuDeviceGetName": b"Card\0", "cuDeviceGetAttribute": major_or_minor}.get(name, 7)
            return (719 if name in self.failing else 0, answer)

        return call

    def count(self, name):
        """How many calls of a function there were."""
        return [called for called, *_ in self.called].count(name)
