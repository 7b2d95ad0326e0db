"""Which of the shipped kernels fits a GPU, verified by hash, and the order of its launch arguments. Needs no GPU.

`cubins/` beside this file is what `python -m kernels.build` wrote: machine code for each architecture, PTX for what
comes later, and a manifest that says how each is launched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbaf_edge.errors import BackendError

CUBINS = Path(__file__).parent / "cubins"
FORMAT = 2
FIELDS = {"window", "heads", "head_width", "labels", "kernels", "builds", "alignment"}  # of a manifest
LEAST = 75  # Turing


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and how it is launched.

    Attributes:
        name: of the function inside.
        content: cubin, or PTX text.
        form: "cubin" or "ptx".
        dtype: float16 or float32; of queries, rings and weights.
        capability: it was compiled for, such as 87.
        threads: of a block.
        shared: bytes of dynamic shared memory of a block.
        arguments: name and `struct` code of each, in order.
        alignment: of every pointer, bytes.
        sixteens: arguments that are multiples of 16.
    """

    name: str
    content: bytes
    form: str
    dtype: str
    capability: int
    threads: int
    shared: int
    arguments: tuple[tuple[str, str], ...]
    alignment: int
    sixteens: tuple[str, ...]

    def ordered(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Launch arguments in the kernel's order; scratch pointers are null.

        Raises:
            BackendError: one is missing or unknown, or a pointer is not aligned.
        """
        names = [name for name, _ in self.arguments if not name.endswith("_scratch")]
        if set(values) != set(names):
            raise BackendError(f"{self.name} takes {', '.join(names)}; given were {', '.join(values)}")
        for name in self.sixteens:
            if int(values[name]) % 16:
                raise BackendError(f"{name} is {values[name]}; {self.name} takes multiples of 16")
        for name, code in self.arguments:
            if code == "P" and int(values.get(name, 0)) % self.alignment:
                raise BackendError(
                    f"{name} lies at {int(values[name]):#x}; {self.name} reads {self.alignment} bytes at once and "
                    f"takes pointers to multiples of {self.alignment}"
                )
        return tuple(values.get(name, 0) for name, _ in self.arguments)


def choose(
    name: str, capability: int, dtype: str, window: int, heads: int, e: int, folder: Path = CUBINS
) -> tuple[Kernel, ...]:
    """A kernel's builds for a GPU, the best first: machine code where there is some, then PTX for drivers to compile.

    A driver that is older than a file's compiler refuses the file: the next one is then taken.

    Args:
        name: of the kernel, such as gate_step.
        capability: of the GPU, such as 87 for 8.7.
        dtype: float16 or float32.
        window, heads, e: of the model; `e` is the width of a head.
        folder: of `python -m kernels.build`.

    Raises:
        BackendError: none fits, or what fits was altered.
    """
    manifest = _manifest(folder)
    sizes = (manifest["window"], manifest["heads"], manifest["head_width"])
    if sizes != (window, heads, e):
        raise BackendError(
            f"{folder} holds kernels for a window of {sizes[0]} and {sizes[1]} heads of {sizes[2]}, the model has "
            f"{window} and {heads} of {e}; build its own with python -m kernels.build --bundle BUNDLE --out FOLDER and "
            "give HBAFRuntime that folder as `kernels`"
        )
    builds = [b for b in manifest["builds"] if b["kernel"] == name]
    if dtype not in {b["dtype"] for b in builds}:
        there = ", ".join(sorted({b["dtype"] for b in builds})) or "no"
        raise BackendError(f"{folder} holds {there} {name}, not {dtype}")
    fitting = [b for b in builds if b["dtype"] == dtype and _runs(b, capability)]
    if not fitting:
        raise BackendError(
            f"a GPU of compute capability {capability // 10}.{capability % 10} cannot run the kernels in {folder}; "
            f"they need {LEAST // 10}.{LEAST % 10} or later (Turing): use provider='cpu'"
        )
    fitting.sort(key=lambda b: (b["form"] == "cubin", b["capability"]), reverse=True)
    return tuple(_verified(folder, manifest, build) for build in fitting)


def most_labels(folder: Path = CUBINS) -> int:
    """The most labels that the kernel `head` computes.

    Raises:
        BackendError: the folder holds no kernels.
    """
    return int(_manifest(folder)["labels"])


def _verified(folder: Path, manifest: Mapping[str, Any], build: Mapping[str, Any]) -> Kernel:
    content = _read(folder / build["file"])
    if hashlib.sha256(content).hexdigest() != build["sha256"]:
        raise BackendError(
            f"{folder / build['file']} was altered or damaged: its SHA-256 is not the manifest's; install hbaf-edge "
            "again, or run python -m kernels.build"
        )
    launched = manifest["kernels"][build["kernel"]]
    arguments = tuple((str(name), str(code)) for name, code in launched["arguments"])
    return Kernel(
        build["kernel"], content, build["form"], build["dtype"], build["capability"], 32 * build["warps"],
        build["shared"], arguments, manifest["alignment"], tuple(launched["multiples_of_16"]),
    )  # fmt: skip


def _runs(build: Mapping[str, Any], capability: int) -> bool:
    """PTX runs on all that is later; machine code within its generation; from 9.0 on, compiled as 9.0a, there alone."""
    built = build["capability"]
    if build["form"] == "ptx":
        return bool(built <= capability)
    return bool(built == capability if built >= 90 else built <= capability and built // 10 == capability // 10)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = dict(json.loads(_read(folder / "manifest.json")))
        if manifest["format"] != FORMAT:
            raise BackendError(f"{folder} has format {manifest['format']}, this version reads {FORMAT}; build it again")
        if missing := FIELDS - set(manifest):
            raise ValueError(f"{', '.join(sorted(missing))} missing")
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"{folder} holds no kernels ({error}); install hbaf-edge again, or run python -m kernels.build"
        ) from None
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path} cannot be read ({error.strerror}); install hbaf-edge again") from None
