"""A stand-in for a GPU: host memory, and kernels in Triton's interpreter, launched by the shipped manifest.

The runtime's GPU back ends run on it, except for calls of the driver. Launch arguments are ordered as for a GPU, so
their names and alignment are checked.
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

from hbaf_edge.backends.cuda.driver import LoadedKernel
from hbaf_edge.errors import BackendError
from kernels.shipped import SHIPPED, Sizes

SPECS = {k.name: k for k in SHIPPED}
CONSTANTS = ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
             "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")  # fmt: skip
TORCH_DTYPES = {"*fp16": torch.float16, "*fp32": torch.float32, "*i32": torch.int32, "*u8": torch.uint8}


class HostDevice:
    """Replaces `hbaf_edge.backends.cuda.device.Device`; counts copies.

    Attributes:
        copies: uploads and downloads so far.
        launches: names of the kernels launched so far.
        is_broken: all launches fail.
    """

    capability, name, stream = 87, "interpreter", 0

    def __init__(self, sizes: Sizes) -> None:
        if os.environ.get("TRITON_INTERPRET") != "1":  # compiled kernels cannot read host memory
            pytest.skip("HostDevice needs Triton's interpreter (TRITON_INTERPRET=1)")
        self.sizes, self._memory = sizes, dict[int, np.ndarray]()
        self.copies, self.launches, self.is_broken = [0, 0], [], False

    @contextmanager
    def current_context(self, when):
        try:
            yield
        except MemoryError as error:
            raise BackendError(f"the GPU failed {when} ({error})") from error

    def allocate(self, size):
        allocation = np.full(size + 512, 0, np.uint8)
        address = -(-allocation.ctypes.data // 256) * 256
        self._memory[address] = allocation
        return address

    def allocate_pinned(self, size):
        return np.full(size, 0xFF, np.uint8)  # NaN until something is written

    def upload(self, target, host):
        self.copies[0] += 1
        ctypes.memmove(self._checked(target, host.nbytes), np.ascontiguousarray(host).ctypes.data, host.nbytes)

    def download(self, host, source):
        self.copies[1] += 1
        ctypes.memmove(host.ctypes.data, self._checked(source, host.nbytes), host.nbytes)

    def clear(self, target, size):
        ctypes.memset(self._checked(target, size), 0, size)

    def synchronize(self):
        pass

    def load(self, candidates):
        return LoadedKernel(candidates[0], SPECS[candidates[0].name])

    def launch(self, loaded, grid, values):
        if self.is_broken:
            raise MemoryError("a launch failed")
        loaded.kernel.launch_arguments(values)
        spec, dtype = loaded.function, getattr(torch, loaded.kernel.dtype)
        triton_types = spec.types(dtype)
        arguments = {
            name: self._tensor(value, TORCH_DTYPES[kind]) if (kind := triton_types[name]).startswith("*") else value
            for name, value in values.items()
        }
        spec.function[grid](**arguments, **spec.constants(self.sizes, dtype))
        self.launches.append(loaded.kernel.name)

    def replay(self, key, enqueue):
        enqueue()

    def array(self, address, shape, dtype):
        """View of the memory at an address."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self._checked(address, size)), dtype).reshape(shape)

    def _tensor(self, address, dtype):
        """View of an allocation from an address to its end."""
        allocation = self._allocation(address)
        end = allocation.ctypes.data + len(allocation)
        raw = (ctypes.c_uint8 * ((end - address) // 8 * 8)).from_address(address)
        return torch.frombuffer(raw, dtype=dtype)

    def _allocation(self, address):
        for start, allocation in self._memory.items():
            if start <= address < allocation.ctypes.data + len(allocation):
                return allocation
        raise AssertionError(f"{address:#x} was never allocated")

    def _checked(self, address, size):
        allocation = self._allocation(address)
        assert address + size <= allocation.ctypes.data + len(allocation), "out of bounds"
        return address


class FakeDriver:
    """Replaces `cuda.bindings.driver`: records every call, and lets all succeed except for those in `failing`."""

    class CUresult:
        CUDA_SUCCESS = 0

    def __init__(self, monkeypatch, *failing):
        self.failing, self.calls = failing, []
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=self))

    def __getattr__(self, name):
        if name.startswith("CU"):
            return types.SimpleNamespace(**{constant: constant for constant in CONSTANTS})

        def call(*arguments):
            self.calls.append((name, *arguments))
            major_or_minor = {CONSTANTS[0]: 9, CONSTANTS[1]: 0}.get(arguments[0] if arguments else None)
            result = {"cuDeviceGetName": b"Card\0", "cuDeviceGetAttribute": major_or_minor}.get(name, 7)
            return (719 if name in self.failing else 0, result)

        return call

    def count(self, name):
        """Number of calls of a function."""
        return [call_name for call_name, *_ in self.calls].count(name)
