"""Without a GPU driver, kernels run in Triton's interpreter; that is chosen before anything imports Triton."""

import ctypes
import os

try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    os.environ.setdefault("TRITON_INTERPRET", "1")
