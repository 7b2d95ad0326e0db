"""ONNX graph -> engine, strongly typed: precision and Q/DQ are the graph's own. One code for TensorRT and TensorRT-RTX.

TensorRT builds for the GPU it runs on; TensorRT-RTX builds for any capability, without a GPU.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hbaf_edge.errors import BackendError

LIBRARIES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
MEND = {
    "tensorrt": "pip install 'hbaf-edge[tensorrt]' (it fetches NVIDIA's libraries; on a Jetson it comes with JetPack: "
    "use its system Python or a venv with --system-site-packages)",
    "rtx": "pip install 'hbaf-edge[rtx]' (desktop RTX cards, Linux and Windows)",
}
Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]  # smallest, usual and largest of each input
Progress = Callable[[str, int, int], None]  # phase, step, steps
log = logging.getLogger("hbaf_edge")


class Built(NamedTuple):
    """An engine, and what the library learned while timing kernels (empty where it keeps nothing)."""

    engine: bytes
    timing: bytes


def library(name: str) -> Any:
    """The module of "tensorrt" or "rtx".

    Raises:
        BackendError: it is not installed or does not load; says how to get it.
    """
    if name not in LIBRARIES:
        raise BackendError(f"engine library {name!r} is unknown; there are {', '.join(map(repr, LIBRARIES))}")
    try:
        return importlib.import_module(LIBRARIES[name])
    except (ImportError, OSError) as error:
        raise BackendError(f"{LIBRARIES[name]} cannot be imported ({error}); {MEND[name]}") from error


def build(
    trt: Any, graph: bytes, shapes: Shapes, capability: str | None = None, timing: bytes = b"",
    progress: Progress | None = None,
) -> Built:  # fmt: skip
    """Build one engine.

    Args:
        trt: of `library`.
        graph: ONNX.
        shapes: of every input that varies.
        capability: such as "8.6", for TensorRT-RTX; None is the GPU that is there.
        timing: of an earlier build, to go faster.
        progress: told of every step.

    Raises:
        BackendError: the graph cannot be parsed or built, or the capability is unknown; with the library's own words.
    """
    words = _Words(trt)
    builder = trt.Builder(words.logger)
    if builder is None:
        raise BackendError(f"{trt.__name__} {trt.__version__} makes no builder: {words.last('no reason given')}")
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only mode there is from 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, words.logger)
    if not parser.parse(graph):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(min(3, parser.num_errors)))
        raise BackendError(f"{trt.__name__} {trt.__version__} cannot parse the graph: {errors}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of a float32: results would leave those of the CPU
    _aim(trt, config, capability)
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in shapes.items():
        profile.set_shape(name, least, usual, most)
    config.add_optimization_profile(profile)
    cache = config.create_timing_cache(timing)
    if cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=True)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    found = builder.build_serialized_network(network, config)
    if found is None:
        raise BackendError(f"{trt.__name__} {trt.__version__} cannot build the engine: {words.last('no reason given')}")
    learned = config.get_timing_cache() if cache is not None else None
    return Built(bytes(found), b"" if learned is None else bytes(learned.serialize()))


def gpu_here() -> str:
    """Name and capability of the GPU that is there: an engine built for it may not run on another.

    Raises:
        BackendError: there is none, or nobody to ask.
    """
    try:
        import pycuda.driver as cuda  # type: ignore[import-not-found,unused-ignore]

        cuda.init()
        device = cuda.Device(0)
        return "{} {}.{}".format(device.name(), *device.compute_capability())
    except Exception as error:  # no package, no driver, no card: all the same here
        raise BackendError(
            f"there is no GPU to build for ({error}); name a compute capability, which TensorRT-RTX builds for without "
            "one, or build where the card is (pip install 'hbaf-edge[tensorrt]')"
        ) from error


def _aim(trt: Any, config: Any, capability: str | None) -> None:
    """Which GPU to build for."""
    if capability is None:
        return
    known = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise BackendError(
            f"{trt.__name__} builds for the GPU it runs on, not for capability {capability}; leave it out"
        )
    name = "SM" + capability.replace(".", "")
    if not hasattr(known, name):
        there = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in sorted(dir(known)) if n.startswith("SM"))
        raise BackendError(f"{trt.__name__} {trt.__version__} knows no capability {capability!r}; it knows {there}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, name), 0)


class _Words:
    """Keeps a library's last error, which is the reason of a None, and hands warnings to `logging`."""

    def __init__(self, trt: Any) -> None:
        errors: list[str] = []
        severe = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in severe:
                    errors.append(message)
                elif severity == trt.ILogger.Severity.WARNING:
                    log.debug("%s: %s", trt.__name__, message)

        self.logger, self._errors = Logger(), errors

    def last(self, otherwise: str) -> str:
        """The last error."""
        return self._errors[-1] if self._errors else otherwise


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step + 1, self.steps.get(phase, 0))
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase, 0)
            progress(phase, steps, steps)

    return Monitor()
