"""Session options and execution providers of ONNX Runtime, shared by the runtime, exports and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError
from hbaf_edge.machine import available_cpus, saturates_here

if TYPE_CHECKING:
    import onnxruntime

# Our names for ONNX Runtime's execution providers.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
GPU_PROVIDERS = ("cuda", "tensorrt")  # our own back ends for NVIDIA GPUs (hbaf_edge/backends/open.py)
INT8 = "int8"  # precision of a bundle whose Q/DQ operators a CPU computes in integers


def default_threads() -> int:
    """Two, or one if this process may use only one core. A turn takes tens of milliseconds; other cores stay free.

    A third thread runs for some milliseconds while text is encoded in parallel with audio.
    """
    return min(2, available_cpus())


def session_options(
    threads: int, use_int8: bool = False, reduce_range: bool = False, is_cpu: bool = True
) -> onnxruntime.SessionOptions:
    """Session options for a shared edge CPU.

    Args:
        threads: of each operator.
        use_int8: compute operators between Q/DQ in INT8. Otherwise Q/DQ runs as written, in float32.
        reduce_range: the weights have 7 bits, so products saturate on no CPU.
        is_cpu: the CPU runs all operators.
    """
    from hbaf_edge.ort import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread takes a core from the other programs of a robot, and triples p50 next to a busy process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights that are stored in INT8 but used in float32 are dequantised once on load, not at every turn.
    options.add_session_config_entry("session.disable_quant_qdq", "0" if use_int8 else "1")
    if is_cpu:  # fused, a sum and its norm take twice as long as separately (in ONNX Runtime 1.32, not yet in 1.23)
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    # x86 without VNNI adds products of unsigned and signed bytes in 16 bits, which saturate with 8-bit weights. That
    # needs ONNX Runtime's exact kernels, which are slower. With VNNI they would be slower and no more accurate.
    exact = use_int8 and not reduce_range and saturates_here()
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    return options


def bundle_options(bundle: Bundle, threads: int, is_cpu: bool = True) -> onnxruntime.SessionOptions:
    """Session options for the precision of a bundle."""
    reduce_range = bool(bundle.manifest.get("quantisation", {}).get("narrow"))
    return session_options(threads, bundle.manifest["precision"] == INT8, reduce_range, is_cpu)


def _gpu_install_hint() -> str:
    from hbaf_edge.ort import installed_builds

    builds = installed_builds()
    if len(builds) > 1:
        return f"{' and '.join(builds)} overwrote each other's files: uninstall them all, then install the one you need"
    return (
        "pip uninstall onnxruntime, then pip install 'hbaf-edge[gpu]' (on a Jetson: NVIDIA's own onnxruntime-gpu wheel)"
    )


def execution_providers(provider: str) -> list[str]:
    """ONNX Runtime's execution providers for one of our provider names, best first.

    Raises:
        BackendError: the name is unknown, or this build of ONNX Runtime lacks the execution provider.
    """
    from hbaf_edge.ort import onnxruntime as ort

    if not isinstance(provider, str) or provider not in PROVIDERS:
        names = ", ".join(map(repr, ("auto", *PROVIDERS, *GPU_PROVIDERS)))
        raise BackendError(f"provider {provider!r} is unknown; valid ones are {names}")
    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise BackendError(
            f"provider {provider!r} needs {name}, which this ONNX Runtime {ort.__version__} was built without; "
            f"{_gpu_install_hint()}, or use provider='cpu'"
        )
    fallbacks = [PROVIDERS["ort-cuda"]] if provider == "ort-tensorrt" else []  # for operators that TensorRT lacks
    fallbacks = [f for f in fallbacks if f in ort.get_available_providers()]
    return list(dict.fromkeys([name, *fallbacks, PROVIDERS["cpu"]]))
