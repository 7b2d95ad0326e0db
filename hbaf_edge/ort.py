"""ONNX Runtime, whichever build this machine has: `from hbaf_edge.ort import onnxruntime`.

It is not a dependency of the package, because its builds are packages of different names that overwrite each other's
files: installing hbaf-edge must never put the CPU build over one for a GPU. Importing this module loads it.
"""

from __future__ import annotations

from importlib import metadata

from hbaf_edge.errors import BackendError

BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")

try:
    import onnxruntime
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise BackendError(f"ONNX Runtime is installed but cannot be loaded: {error}; install it again") from error
    raise BackendError(
        "ONNX Runtime is not installed, and hbaf-edge leaves the choice of its build to you: "
        "pip install 'hbaf-edge[cpu]', on an NVIDIA GPU pip install 'hbaf-edge[gpu]', "
        "or on a Jetson NVIDIA's own onnxruntime-gpu wheel"
    ) from None
except ImportError as error:
    raise BackendError(
        f"ONNX Runtime is installed but cannot be loaded: {error}; the CPU build always can: "
        "pip uninstall the present one, then pip install 'hbaf-edge[cpu]'"
    ) from error

if not hasattr(onnxruntime, "InferenceSession"):  # what is left where builds that overwrote each other were removed
    raise BackendError(
        f"ONNX Runtime is damaged: {', '.join(onnxruntime.__path__)} holds only a part of it; delete that folder, then "
        "pip install --force-reinstall 'hbaf-edge[cpu]' (or the build that this machine needs)"
    )

__all__ = ["installed_builds", "onnxruntime"]


def installed_builds() -> list[str]:
    """Names of the ONNX Runtime packages installed here; more than one means that they overwrote each other's files."""
    found = []
    for name in BUILDS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found
