"""Opens the back end that a runtime is asked for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hbaf_edge.backends.base import Backend
from hbaf_edge.backends.cuda.native import open_native
from hbaf_edge.backends.onnxruntime import OrtBackend
from hbaf_edge.backends.settings import NATIVE
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
