"""ONNX Runtime's settings and execution providers, by our names; exports and benchmarks use the same ones."""

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
NATIVE = ("cuda", "tensorrt")  # of our own, for NVIDIA GPUs (hbaf_edge/backends/open.py)
INT8 = "int8"  # the precision of a bundle whose Q/DQ a CPU computes in integers


def default_threads() -> int:
    """Two, or one where this process may use a single core: a turn takes tens of milliseconds, other cores stay free.

    While text is encoded beside audio a third one runs, for some milliseconds.
    """
    return min(2, available_cpus())


def session_options(
    threads: int, integers: bool = False, narrow: bool = False, cpu: bool = True
) -> onnxruntime.SessionOptions:
    """ONNX Runtime's settings for a shared edge CPU; exports and benchmarks are checked under the same ones.

    Args:
        threads: of each operator.
        integers: compute what stands between Q/DQ in INT8. Without it Q/DQ is run as it is written, in float32.
        narrow: its weights have 7 bits, so that no CPU's products saturate.
        cpu: a CPU runs all of it.
    """
    from hbaf_edge.ort import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread takes a core from whatever else the robot runs, and triples p50 beside a busy neighbour.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights that are stored as INT8 and computed in float32 are unpacked once, on load, not at every turn.
    options.add_session_config_entry("session.disable_quant_qdq", "0" if integers else "1")
    if cpu:  # fused, a sum and its norm take twice as long as the two by themselves (ONNX Runtime 1.32, not yet 1.23)
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    # x86 without VNNI adds products of unsigned and signed bytes in 16 bits, which saturate at 8-bit weights: ONNX
    # Runtime's exact kernels are slower, but right. With VNNI they are slower and no better.
    exact = integers and not narrow and saturates_here()
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    return options


def bundle_options(bundle: Bundle, threads: int, cpu: bool = True) -> onnxruntime.SessionOptions:
    """`session_options` as a bundle's precision needs them."""
    narrow = bool(bundle.manifest.get("quantisation", {}).get("narrow"))
    return session_options(threads, bundle.manifest["precision"] == INT8, narrow, cpu)


def _how_to_get_a_gpu_build() -> str:
    from hbaf_edge.ort import installed_builds

    builds = installed_builds()
    if len(builds) > 1:
        return f"{' and '.join(builds)} overwrote each other's files: uninstall them all, then install the one you need"
    return (
        "pip uninstall onnxruntime, then pip install 'hbaf-edge[gpu]' (on a Jetson: NVIDIA's own onnxruntime-gpu wheel)"
    )


def execution_providers(provider: str) -> list[str]:
    """ONNX Runtime's providers for one of ours, best first.

    Raises:
        BackendError: the name is unknown, or this build of ONNX Runtime lacks it.
    """
    from hbaf_edge.ort import onnxruntime as ort

    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise BackendError(
            f"provider {provider!r} is unknown; valid ones are 'auto', {', '.join(map(repr, (*PROVIDERS, *NATIVE)))}"
        )
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise BackendError(
            f"provider {provider!r} needs {wanted}, which this ONNX Runtime {ort.__version__} was built without; "
            f"{_how_to_get_a_gpu_build()}, or use provider='cpu'"
        )
    below = [PROVIDERS["ort-cuda"]] if provider == "ort-tensorrt" else []  # for what TensorRT does not know
    below = [name for name in below if name in ort.get_available_providers()]
    return list(dict.fromkeys([wanted, *below, PROVIDERS["cpu"]]))
