"""Opens the back end that a runtime is asked for: ONNX Runtime's, or one of our own for NVIDIA GPUs.

"cuda"       the encoders and the utterance scope on ONNX Runtime (its CUDA provider where it is there, else the
             CPU), the dialogue scope by our kernels, with the rings on the GPU
"tensorrt"   the first three as TensorRT engines too (cuda/engine_backend.py): everything stays on the GPU
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from hbaf_edge.backends.base import Backend
from hbaf_edge.backends.cuda.device import Device
from hbaf_edge.backends.cuda.dialogue import DialogueOnGpu, DialogueScope, dtype_of
from hbaf_edge.backends.cuda.engine_backend import EngineBackend, engines_of
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.backends.cuda.weights import dialogue_weights
from hbaf_edge.backends.onnxruntime import OrtBackend
from hbaf_edge.backends.settings import NATIVE, PROVIDERS
from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError, BundleError

FASTER = ("ort-tensorrt", "ort-cuda")  # than the CPU, best first; ours have not been measured on a card yet
log = logging.getLogger("hbaf_edge")


def open_backend(bundle: Bundle, provider: str, threads: int, kernels: str | os.PathLike[str] | None = None) -> Backend:
    """The back end asked for; with "auto" the best that works here, which is logged and which it names.

    Args:
        bundle: a verified bundle.
        provider: name.
        threads: of each operator.
        kernels: folder of the GPU's kernels, of the native back ends; None for the packaged ones.

    Raises:
        BackendError: the one asked for by name cannot run; nothing else is taken in its place.
    """
    if provider in NATIVE:
        return open_native(bundle, provider, threads, Path(kernels) if kernels is not None else None)
    if kernels is not None:
        raise BackendError(f"kernels are for the providers {' and '.join(map(repr, NATIVE))}, not for {provider!r}")
    if provider != "auto":
        return OrtBackend(bundle, provider, threads)
    for name in FASTER:
        try:
            backend = OrtBackend(bundle, name, threads)
        except (BackendError, BundleError) as error:
            log.info("provider auto: not %s (%s)", name, error)
        else:
            log.info("provider auto: %s", name)
            return backend
    log.info("provider auto: cpu")
    return OrtBackend(bundle, "cpu", threads)


def open_native(
    bundle: Bundle, provider: str, threads: int, kernels: Path | None = None, device: Callable[[], Device] = Device
) -> Backend:
    """The back end of that name, on a device that is opened when it is needed.

    Args:
        bundle: a verified bundle.
        provider: "cuda" or "tensorrt".
        threads: of what runs on the CPU.
        kernels: their folder; None for the packaged ones.
        device: opens the GPU.

    Raises:
        BackendError: there is no GPU, a package is missing, or a kernel or engine does not fit.
    """
    opened, folder = device(), kernels or CUBINS
    scope = DialogueScope(opened, dialogue_weights(bundle), dtype_of(bundle.manifest["precision"]), folder=folder)
    if provider == "tensorrt":
        return EngineBackend(bundle, threads, scope, opened, engines_of(bundle, opened, folder), folder)
    on_gpu = DialogueOnGpu(scope, opened)
    from hbaf_edge.ort import onnxruntime as ort  # a heavy package

    below = "ort-cuda" if PROVIDERS["ort-cuda"] in ort.get_available_providers() else "cpu"
    try:
        made = OrtBackend(bundle, below, threads, on_gpu)
    except (BackendError, BundleError) as error:  # the latter where CUDA's provider lacks an operator or memory
        if below == "cpu":
            raise
        log.warning("provider cuda: its encoders run on the CPU: %s", error)
        made = OrtBackend(bundle, "cpu", threads, on_gpu)
    log.info("provider cuda: dialogue scope on %s, encoders on %s", opened.name, made.provider)
    made.provider, made.detail = "cuda", f"cuda (encoders: {made.provider})"
    return made
