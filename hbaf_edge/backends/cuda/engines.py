"""Build the engines of a bundle, and cache them in the user's cache folder.

The same code serves TensorRT, which builds for the GPU it runs on, and TensorRT-RTX, which builds for any compute
capability without a GPU. Engines are strongly typed: precision and Q/DQ come from the graph.

A file name contains the hash of everything an engine depends on: ONNX, precision, shapes, library and its version,
plugin, compute capability. A file starts with the hash of its content, so a truncated or altered one is deleted and
built again. Files are written atomically, so two processes may build at the same time.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbaf_edge.backends.cuda.driver import Driver
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.backends.cuda.plugin import IDENTITY, contains_gate, register, replace_gates_by_plugin
from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError
from hbaf_edge.files import write_atomically

LIBRARIES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
INSTALL_HINTS = {
    "tensorrt": "pip install 'hbaf-edge[tensorrt]' (it fetches NVIDIA's libraries; on a Jetson it comes with JetPack: "
    "use its system Python or a venv with --system-site-packages)",
    "rtx": "pip install 'hbaf-edge[rtx]' (desktop RTX cards, Linux and Windows)",
}
ENGINE_PRECISIONS = ("float32", "float16", "int8-tensorrt")
Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]  # smallest, usual and largest shape of each input
log = logging.getLogger("hbaf_edge")


@dataclass(frozen=True)
class OptimizationProfile:
    """Smallest, usual and largest size of each dynamic dimension.

    Attributes:
        batch: conversations.
        mel_frames: frames of 10 ms; the model takes at most 20 s of audio.
        tokens: tokens of the text.
    """

    batch: tuple[int, int, int] = (1, 1, 8)
    mel_frames: tuple[int, int, int] = (8, 300, 2000)
    tokens: tuple[int, int, int] = (1, 16, 64)

    def sizes_of(self, name: str, stack: int) -> tuple[int, int, int]:
        """Sizes of a dimension by its name in the manifest: `batch`, `mel_frames`, `tokens_count` or `stacks`.

        A stack is a number of encoder frames, which come at 50 Hz: 300 mel frames are 150 frames, or 38 stacks of 4.

        >>> OptimizationProfile().sizes_of("stacks", 4)
        (1, 38, 250)
        """
        sizes = {"batch": self.batch, "mel_frames": self.mel_frames, "tokens_count": self.tokens}
        if name in sizes:
            return sizes[name]
        if name == "stacks":
            least, usual, most = (-(-n // (2 * stack)) for n in self.mel_frames)
            return least, usual, most
        raise BackendError(
            f"the bundle's graphs have an unknown dimension {name!r}; update hbaf-edge or export the bundle again"
        )


def input_shapes(bundle: Bundle, graph: str, profile: OptimizationProfile) -> Shapes:
    """Shapes of every input of a graph, from the manifest."""
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, description in bundle.manifest["graphs"][graph]["inputs"].items():
        sizes = [_dimension_sizes(dim, profile, int(bundle.manifest["stack"])) for dim in description["shape"]]
        least, usual, most = (tuple(size[k] for size in sizes) for k in range(3))
        shapes[name] = (least, usual, most)
    return shapes


def load_or_build_engine(
    bundle: Bundle,
    graph: str,
    library_name: str = "tensorrt",
    capability: str | None = None,
    profile: OptimizationProfile = OptimizationProfile(),
    cache: Path | None = None,
    kernels: Path = CUBINS,
) -> bytes:
    """Load a graph's engine from the cache, or build it and log that.

    With TensorRT, gates are our plugin. It is registered for the process first, since engines load only with it.
    TensorRT-RTX runs no plugins written in Python; there the gate's function in the graph is built.

    Args:
        bundle: of precision float32, float16 or int8-tensorrt.
        graph: audio, text, utterance or dialogue.
        library_name: "tensorrt" or "rtx".
        capability: compute capability, such as "8.6"; None for this machine's GPU.
        profile: sizes of dynamic dimensions.
        cache: folder; None for the user's cache folder.
        kernels: folder of compiled kernels, for the plugin.

    Raises:
        BackendError: the engine cannot be built, the bundle has another precision, or no kernel fits.
    """
    precision = bundle.manifest["precision"]
    if precision not in ENGINE_PRECISIONS:
        raise BackendError(
            f"{bundle.path} has {precision} graphs, made for CPUs; engines are built from "
            f"{', '.join(ENGINE_PRECISIONS)} (python -m export.quantize --profile tensorrt, python -m export.float16)"
        )
    trt = import_library(library_name)
    shapes, content = input_shapes(bundle, graph, profile), bundle.graph(graph)
    has_plugin = contains_gate(content) and library_name == "tensorrt"
    parts = {
        "onnx": hashlib.sha256(content).hexdigest(),
        "precision": precision,
        "shapes": shapes,
        "library": f"{trt.__name__} {trt.__version__}",
        "plugin": IDENTITY if has_plugin else "none",
        "capability": capability or describe_gpu(),
    }
    if has_plugin:
        model = bundle.manifest["model"]
        register(trt, model["heads"], model["width"] // model["heads"], model["window"], kernels)
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = (cache or cache_folder()) / f"{graph}-{key}.engine"
    cached = read_engine(path)
    if cached is not None:
        return cached
    log.warning("building the %s engine for %s with %s", graph, parts["capability"], parts["library"])
    engine = build_engine(trt, replace_gates_by_plugin(content) if has_plugin else content, shapes, capability)
    write_engine(path, engine)
    return engine


def import_library(name: str) -> Any:
    """Import the module for "tensorrt" or "rtx".

    Raises:
        BackendError: it is not installed or does not load; the message says how to install it.
    """
    if name not in LIBRARIES:
        raise BackendError(f"engine library {name!r} is unknown; valid ones are {', '.join(map(repr, LIBRARIES))}")
    try:
        return importlib.import_module(LIBRARIES[name])
    except (ImportError, OSError) as error:
        raise BackendError(f"{LIBRARIES[name]} cannot be imported ({error}); {INSTALL_HINTS[name]}") from error


def describe_gpu() -> str:
    """Name and compute capability of this machine's GPU; its engines may not run on another GPU.

    Raises:
        BackendError: there is no GPU.
    """
    try:
        gpu = Driver()
    except BackendError as error:
        raise BackendError(f"{error}; without a GPU, name a compute capability and use TensorRT-RTX") from error
    return f"{gpu.name} {gpu.capability / 10}"


def build_engine(trt: Any, graph: bytes, shapes: Shapes, capability: str | None = None) -> bytes:
    """Build one engine.

    Args:
        trt: module of the library.
        graph: ONNX.
        shapes: of every input with a dynamic dimension.
        capability: compute capability such as "8.6", for TensorRT-RTX; None for this machine's GPU.

    Raises:
        BackendError: the graph cannot be parsed or built, or the capability is unknown. The message contains the
            library's error.
    """
    name, errors = f"{trt.__name__} {trt.__version__}", ["no reason given"]
    logger = _logger(trt, errors)
    builder = trt.Builder(logger)
    if builder is None:
        raise BackendError(f"{name} cannot create a builder: {errors[-1]}")
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only mode from TensorRT 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(min(3, parser.num_errors)))
        raise BackendError(f"{name} cannot parse the graph: {reasons}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 has a mantissa of ten bits: results would differ from the CPU's
    if capability is not None:
        _set_target(trt, config, capability)
    profile = builder.create_optimization_profile()
    for tensor, (least, usual, most) in shapes.items():
        profile.set_shape(tensor, least, usual, most)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BackendError(f"{name} cannot build the engine: {errors[-1]}")
    return bytes(engine)


def _set_target(trt: Any, config: Any, capability: str) -> None:
    """Set the compute capability to build for."""
    known = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise BackendError(
            f"{trt.__name__} builds only for this machine's GPU, not for capability {capability}; leave it out"
        )
    name = "SM" + capability.replace(".", "")
    if not hasattr(known, name):
        supported = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in sorted(dir(known)) if n.startswith("SM"))
        raise BackendError(
            f"{trt.__name__} {trt.__version__} does not support capability {capability!r}; valid ones are {supported}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, name), 0)


def _logger(trt: Any, errors: list[str]) -> Any:
    """A logger that appends errors to a list. If a call of the library returns None, the last one is the reason."""
    severe = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                errors.append(message)

    return Logger()


def cache_folder() -> Path:
    """Folder of cached engines, in HBAF_CACHE or in the user's cache folder."""
    if os.environ.get("HBAF_CACHE"):
        return Path(os.environ["HBAF_CACHE"]) / "engines"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "hbaf-edge" / "engines"


def write_engine(path: Path, content: bytes) -> None:
    """Write the hash of an engine and the engine, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(content).digest() + content)


def read_engine(path: Path) -> bytes | None:
    """Read an engine. Returns None if there is no file, or if it is damaged, in which case the file is deleted."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() == digest:
        return content
    log.warning("the cached engine %s is damaged: deleting it and building it again", path)
    path.unlink(missing_ok=True)
    return None


def _dimension_sizes(dim: int | str, profile: OptimizationProfile, stack: int) -> tuple[int, int, int]:
    """Smallest, usual and largest size of a dimension: a number, a name, or a multiple of a name such as `4*stacks`."""
    if isinstance(dim, int):
        return dim, dim, dim
    factor, _, name = dim.rpartition("*")
    least, usual, most = profile.sizes_of(name, stack)
    times = int(factor or 1)
    return times * least, times * usual, times * most
