"""Open the back end for a provider name: ONNX Runtime, or one of our own back ends for NVIDIA GPUs.

"cuda"       ONNX Runtime runs the encoders and the utterance scope (with its CUDA provider if available, otherwise on
             the CPU). Our kernels run the dialogue scope, with the rings on the GPU.
"tensorrt"   TensorRT engines run the encoders and the utterance scope (cuda/tensorrt_backend.py), our kernels the
             dialogue scope. All states stay on the GPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from hbaf_edge.backends.base import Backend
from hbaf_edge.backends.cuda.device import Device
from hbaf_edge.backends.cuda.dialogue import DialogueOnGpu, DialogueScope, kernel_dtype
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.backends.cuda.tensorrt_backend import TensorRTBackend, load_engines
from hbaf_edge.backends.cuda.weights import dialogue_weights
from hbaf_edge.backends.onnxruntime import OrtBackend
from hbaf_edge.backends.settings import GPU_PROVIDERS, PROVIDERS
from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError, BundleError

# What "auto" tries before the CPU, best first. Our own GPU back ends have not been measured on a GPU yet.
AUTO_ORDER = ("ort-tensorrt", "ort-cuda")
log = logging.getLogger("hbaf_edge")


def open_backend(bundle: Bundle, provider: str, threads: int, kernels: str | os.PathLike[str] | None = None) -> Backend:
    """Open a back end. With "auto", open the best one that works here, log its name and report it as `provider`.

    Args:
        bundle: a verified bundle.
        provider: a provider name, or "auto".
        threads: of each operator.
        kernels: folder of compiled kernels for "cuda" and "tensorrt"; None for the packaged ones.

    Raises:
        BackendError: the named provider cannot run. There is no fallback.
    """
    if provider in GPU_PROVIDERS:
        return open_gpu_backend(bundle, provider, threads, Path(kernels) if kernels is not None else None)
    if kernels is not None:
        raise BackendError(
            f"kernels are for the providers {' and '.join(map(repr, GPU_PROVIDERS))}, not for {provider!r}"
        )
    if provider != "auto":
        return OrtBackend(bundle, provider, threads)
    for name in AUTO_ORDER:
        try:
            backend = OrtBackend(bundle, name, threads)
        except (BackendError, BundleError) as error:
            log.info("provider auto: not %s (%s)", name, error)
        else:
            log.info("provider auto: %s", name)
            return backend
    log.info("provider auto: cpu")
    return OrtBackend(bundle, "cpu", threads)


def open_gpu_backend(
    bundle: Bundle,
    provider: str,
    threads: int,
    kernels: Path | None = None,
    open_device: Callable[[], Device] = Device,
) -> Backend:
    """Open one of our own back ends for NVIDIA GPUs.

    Args:
        bundle: a verified bundle.
        provider: "cuda" or "tensorrt".
        threads: of operators on the CPU.
        kernels: folder of compiled kernels; None for the packaged ones.
        open_device: opens the GPU.

    Raises:
        BackendError: there is no GPU, a package is missing, or a kernel or engine does not fit.
    """
    device, folder = open_device(), kernels or CUBINS
    scope = DialogueScope(device, dialogue_weights(bundle), kernel_dtype(bundle.manifest["precision"]), folder=folder)
    if provider == "tensorrt":
        return TensorRTBackend(bundle, threads, scope, device, load_engines(bundle, device, folder), folder)
    dialogue = DialogueOnGpu(scope, device)
    from hbaf_edge.ort import onnxruntime as ort  # a heavy package

    encoder_provider = "ort-cuda" if PROVIDERS["ort-cuda"] in ort.get_available_providers() else "cpu"
    try:
        backend = OrtBackend(bundle, encoder_provider, threads, dialogue)
    except (BackendError, BundleError) as error:  # BundleError: the CUDA provider lacks an operator or memory
        if encoder_provider == "cpu":
            raise
        log.warning("provider cuda: its encoders run on the CPU: %s", error)
        backend = OrtBackend(bundle, "cpu", threads, dialogue)
    log.info("provider cuda: dialogue scope on %s, encoders on %s", device.name, backend.provider)
    backend.provider, backend.detail = "cuda", f"cuda (encoders: {backend.provider})"
    return backend
