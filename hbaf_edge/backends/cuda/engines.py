"""Engines of a bundle, built where they are missing and kept in the user's cache folder.

One code for TensorRT, which builds for the GPU it runs on, and TensorRT-RTX, which builds for any capability without a
GPU. Engines are strongly typed: precision and Q/DQ are the graph's own.

A file is named by the hash of all that an engine depends on: ONNX, precision, shapes, library and its version, plugin,
compute capability. It begins with its content's hash: one that was cut short or altered is deleted and built again.
Files come into place whole, so two processes that build at once do not meet.
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
from hbaf_edge.backends.cuda.plugin import IDENTITY, has_gate, register, with_plugin
from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError
from hbaf_edge.files import write_atomically

LIBRARIES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
MEND = {
    "tensorrt": "pip install 'hbaf-edge[tensorrt]' (it fetches NVIDIA's libraries; on a Jetson it comes with JetPack: "
    "use its system Python or a venv with --system-site-packages)",
    "rtx": "pip install 'hbaf-edge[rtx]' (desktop RTX cards, Linux and Windows)",
}
ENGINE_PRECISIONS = ("float32", "float16", "int8-tensorrt")
Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]  # smallest, usual and largest of each input
log = logging.getLogger("hbaf_edge")


@dataclass(frozen=True)
class Reach:
    """Smallest, usual and largest size of what varies.

    Attributes:
        batch: conversations at once.
        mel_frames: of 10 ms each; 20 s are the most that is heard.
        tokens: words and pieces of words.
    """

    batch: tuple[int, int, int] = (1, 1, 8)
    mel_frames: tuple[int, int, int] = (8, 300, 2000)
    tokens: tuple[int, int, int] = (1, 16, 64)

    def of(self, name: str, stack: int) -> tuple[int, int, int]:
        """Of a dimension as the manifest names it: `batch`, `mel_frames`, `tokens_count`, or `stacks`.

        >>> Reach().of("stacks", 4)
        (1, 38, 250)
        """
        sizes = {"batch": self.batch, "mel_frames": self.mel_frames, "tokens_count": self.tokens}
        if name in sizes:
            return sizes[name]
        if name == "stacks":  # frames at 50 Hz, so many of them stacked
            least, usual, most = (-(-n // (2 * stack)) for n in self.mel_frames)
            return least, usual, most
        raise BackendError(f"the bundle's graphs have a dimension {name!r} that this version does not know")


def shapes(bundle: Bundle, graph: str, reach: Reach) -> Shapes:
    """Of every input of a graph, by the manifest."""
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, described in bundle.manifest["graphs"][graph]["inputs"].items():
        sizes = [_sizes(dim, reach, int(bundle.manifest["stack"])) for dim in described["shape"]]
        least, usual, most = (tuple(size[k] for size in sizes) for k in range(3))
        found[name] = (least, usual, most)
    return found


def engine(
    bundle: Bundle,
    graph: str,
    library_name: str = "tensorrt",
    capability: str | None = None,
    reach: Reach = Reach(),
    cache: Path | None = None,
    kernels: Path = CUBINS,
) -> bytes:
    """A graph's engine, from the cache or built now, which is said.

    With TensorRT a gate is our plugin, which is registered for the process: an engine that holds it loads only then.
    TensorRT-RTX runs no plugins written in Python; there a gate is its function.

    Args:
        bundle: float32, float16 or int8-tensorrt.
        graph: audio, text, utterance or dialogue.
        library_name: "tensorrt" or "rtx".
        capability: such as "8.6"; None is the GPU that is there.
        reach: of what varies.
        cache: folder in place of the user's.
        kernels: folder of the plugin's.

    Raises:
        BackendError: it cannot be built, the bundle is of another precision, or no kernel fits.
    """
    precision = bundle.manifest["precision"]
    if precision not in ENGINE_PRECISIONS:
        raise BackendError(
            f"{bundle.path} has {precision} graphs, made for CPUs; engines are built from "
            f"{', '.join(ENGINE_PRECISIONS)} (python -m export.quantize --profile tensorrt, python -m export.half)"
        )
    trt = library(library_name)
    sizes, content = shapes(bundle, graph, reach), bundle.graph(graph)
    plugin = has_gate(content) and library_name == "tensorrt"
    parts = {
        "onnx": hashlib.sha256(content).hexdigest(),
        "precision": precision,
        "shapes": sizes,
        "library": f"{trt.__name__} {trt.__version__}",
        "plugin": IDENTITY if plugin else "none",
        "capability": capability or gpu_here(),
    }
    if plugin:
        model = bundle.manifest["model"]
        register(trt, model["heads"], model["width"] // model["heads"], model["window"], kernels)
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = (cache or cache_folder()) / f"{graph}-{key}.engine"
    found = read(path)
    if found is not None:
        return found
    log.warning("building the %s engine for %s with %s", graph, parts["capability"], parts["library"])
    made = build(trt, with_plugin(content) if plugin else content, sizes, capability)
    write(path, made)
    return made


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


def gpu_here() -> str:
    """Name and capability of the GPU that is there: an engine built for it may not run on another.

    Raises:
        BackendError: there is none.
    """
    try:
        gpu = Driver()
    except BackendError as error:
        raise BackendError(f"{error}; without one, name a compute capability, which TensorRT-RTX builds for") from error
    return f"{gpu.name} {gpu.capability / 10}"


def build(trt: Any, graph: bytes, shapes: Shapes, capability: str | None = None) -> bytes:
    """Build one engine.

    Args:
        trt: of `library`.
        graph: ONNX.
        shapes: of every input that varies.
        capability: such as "8.6", for TensorRT-RTX; None is the GPU that is there.

    Raises:
        BackendError: the graph cannot be parsed or built, or the capability is unknown; with the library's own words.
    """
    name, errors = f"{trt.__name__} {trt.__version__}", ["no reason given"]
    logger = _logger(trt, errors)
    builder = trt.Builder(logger)
    if builder is None:
        raise BackendError(f"{name} makes no builder: {errors[-1]}")
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only mode there is from 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        found = "; ".join(str(parser.get_error(i).desc()) for i in range(min(3, parser.num_errors)))
        raise BackendError(f"{name} cannot parse the graph: {found}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of a float32: results would leave those of the CPU
    if capability is not None:
        _aim(trt, config, capability)
    profile = builder.create_optimization_profile()
    for tensor, (least, usual, most) in shapes.items():
        profile.set_shape(tensor, least, usual, most)
    config.add_optimization_profile(profile)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise BackendError(f"{name} cannot build the engine: {errors[-1]}")
    return bytes(made)


def _aim(trt: Any, config: Any, capability: str) -> None:
    """Which GPU to build for."""
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


def _logger(trt: Any, errors: list[str]) -> Any:
    """Appends a library's errors, the last of which is the reason of a None."""
    severe = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                errors.append(message)

    return Logger()


def cache_folder() -> Path:
    """Where engines are kept: HBAF_CACHE, or the user's cache folder."""
    if os.environ.get("HBAF_CACHE"):
        return Path(os.environ["HBAF_CACHE"]) / "engines"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "hbaf-edge" / "engines"


def write(path: Path, content: bytes) -> None:
    """An engine behind its hash, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(content).digest() + content)


def read(path: Path) -> bytes | None:
    """What `write` wrote; None where there is nothing, or where it was damaged and had to be deleted."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = whole[:32], whole[32:]
    if hashlib.sha256(content).digest() == digest:
        return content
    log.warning("the cached %s is damaged; it is deleted and built again", path)
    path.unlink(missing_ok=True)
    return None


def _sizes(dim: int | str, reach: Reach, stack: int) -> tuple[int, int, int]:
    """Smallest, usual and largest of one dimension: a number, a name, or so many times a name."""
    if isinstance(dim, int):
        return dim, dim, dim
    factor, _, name = dim.rpartition("*")
    least, usual, most = reach.of(name, stack)
    times = int(factor or 1)
    return times * least, times * usual, times * most
