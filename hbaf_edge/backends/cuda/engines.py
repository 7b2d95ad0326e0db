"""Engines of a bundle, built where they are missing and kept in the user's cache folder.

A file is named by the hash of all that an engine depends on: ONNX, precision, shapes, library and its version, plugin,
compute capability. It carries its own hash: one that was cut short or altered is deleted and built again. Files come
into place whole, so two processes that build at once do not meet.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbaf_edge.backends.cuda.build import Progress, Shape, Shapes, build, gpu_here, library
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.backends.cuda.plugin import IDENTITY, has_gate, register, with_plugin
from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError
from hbaf_edge.files import write_atomically

MAGIC = b"HBAFENG1"
MAX_HEADER = 1 << 16
MAX_ENGINE = 1 << 31
ENGINE_PRECISIONS = ("float32", "float16", "int8-tensorrt")
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
    progress: Progress | None = None,
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
        progress: of a build.
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
        "graph": graph,
        "onnx": hashlib.sha256(content).hexdigest(),
        "precision": precision,
        "shapes": json.loads(json.dumps(sizes)),
        "library": f"{trt.__name__} {trt.__version__}",
        "plugin": IDENTITY if plugin else "none",
        "capability": capability or gpu_here(),
    }
    if plugin:
        model = bundle.manifest["model"]
        register(trt, model["heads"], model["width"] // model["heads"], model["window"], kernels)
    folder = cache or cache_folder()
    path = folder / f"{graph}-{_key(parts)}.engine"
    found = read(path)
    if found is not None:
        return found
    _say_why(folder, parts)
    timing = folder / f"timing-{_key({k: parts[k] for k in ('library', 'capability')})}"
    made = build(trt, with_plugin(content) if plugin else content, sizes, capability, read(timing) or b"", progress)
    write(path, parts, made.engine)
    if made.timing:
        write(timing, {k: parts[k] for k in ("library", "capability")}, made.timing)
    return made.engine


def cache_folder() -> Path:
    """Where engines are kept: HBAF_CACHE, or the user's cache folder."""
    if os.environ.get("HBAF_CACHE"):
        return Path(os.environ["HBAF_CACHE"]) / "engines"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "hbaf-edge" / "engines"


def write(path: Path, parts: dict[str, Any], content: bytes) -> None:
    """An engine and what it depends on, whole or not at all."""
    header = {**parts, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    packed = json.dumps(header).encode()
    _replace(path, MAGIC + struct.pack("<I", len(packed)) + packed + content)


def read(path: Path) -> bytes | None:
    """What `write` wrote; None where there is nothing, or where it was damaged and had to be deleted."""
    try:
        with path.open("rb") as file:
            header = _header(file)
            size = int(header["bytes"])
            if not 0 < size <= MAX_ENGINE:
                raise ValueError(f"{size} bytes")
            content = file.read(size + 1)
        if len(content) != size or hashlib.sha256(content).hexdigest() != header["sha256"]:
            raise ValueError("its content is not what its header says")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        log.warning("the cached %s is damaged (%s); it is deleted and built again", path, error)
        path.unlink(missing_ok=True)
        return None
    return content


def _header(file: Any) -> dict[str, Any]:
    """What stands before an engine."""
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("no engine of ours")
    (length,) = struct.unpack("<I", file.read(4))
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    return header


def _say_why(folder: Path, parts: dict[str, Any]) -> None:
    """Which of the things an engine depends on have changed since the last one of this graph for this GPU."""
    older = (
        sorted(folder.glob(f"{parts['graph']}-*.engine"), key=lambda p: p.stat().st_mtime) if folder.is_dir() else []
    )
    for path in reversed(older):
        try:
            with path.open("rb") as file:
                was = _header(file)
        except (OSError, ValueError, TypeError, struct.error):
            continue
        if was.get("capability") != parts["capability"]:
            continue
        changed = [f"{k} (was {was.get(k)})" for k in ("library", "precision", "plugin") if was.get(k) != parts[k]]
        changed += [k for k in ("onnx", "shapes") if was.get(k) != parts[k]]
        log.warning("building the %s engine again: other %s", parts["graph"], ", ".join(changed) or "settings")
        return
    log.info("building the %s engine for %s on %s", parts["graph"], parts["capability"], parts["library"])


def _sizes(dim: int | str, reach: Reach, stack: int) -> tuple[int, int, int]:
    """Smallest, usual and largest of one dimension: a number, a name, or so many times a name."""
    if isinstance(dim, int):
        return dim, dim, dim
    factor, _, name = dim.rpartition("*")
    least, usual, most = reach.of(name, stack)
    times = int(factor or 1)
    return times * least, times * usual, times * most


def _key(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
