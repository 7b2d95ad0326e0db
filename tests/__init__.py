"""Without a GPU driver, kernels run in Triton's interpreter. The switch must be set before Triton is imported."""

import ctypes
import os

try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    os.environ.setdefault("TRITON_INTERPRET", "1")
