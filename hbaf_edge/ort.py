"""Load the installed build of ONNX Runtime: `from hbaf_edge.ort import onnxruntime`.

ONNX Runtime is not a dependency of this package. Its builds are packages with different names that overwrite each
other's files, so installing hbaf-edge must never install the CPU build over one for a GPU.
"""

from __future__ import annotations

from importlib import metadata

from hbaf_edge.errors import BackendError

BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")

try:
    import onnxruntime
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise BackendError(f"ONNX Runtime is installed but cannot be loaded: {error}; reinstall it") from error
    raise BackendError(
        "ONNX Runtime is not installed, and hbaf-edge does not choose a build for you: "
        "pip install 'hbaf-edge[cpu]', on an NVIDIA GPU pip install 'hbaf-edge[gpu]', "
        "or on a Jetson NVIDIA's own onnxruntime-gpu wheel"
    ) from None
except ImportError as error:
    raise BackendError(
        f"ONNX Runtime is installed but cannot be loaded: {error}; the CPU build has no such "
        "requirements: pip uninstall the installed build, then pip install 'hbaf-edge[cpu]'"
    ) from error

if not hasattr(onnxruntime, "InferenceSession"):  # left over after uninstalling one of two builds
    raise BackendError(
        f"ONNX Runtime is damaged: {', '.join(onnxruntime.__path__)} has only a part of it; delete that folder, then "
        "pip install --force-reinstall 'hbaf-edge[cpu]' (or the build for this machine)"
    )

__all__ = ["installed_builds", "onnxruntime"]


def installed_builds() -> list[str]:
    """Names of the installed ONNX Runtime packages. Several of them have overwritten each other's files."""
    installed = []
    for name in BUILDS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        installed.append(name)
    return installed
