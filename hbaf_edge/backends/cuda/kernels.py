"""Select the shipped kernels for a GPU, verify their hashes and order their launch arguments. Needs no GPU.

`python -m kernels.build` wrote the folder `cubins/`: machine code for each architecture, PTX for newer GPUs, and a
manifest with argument layouts and launch sizes.
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
MANIFEST_FIELDS = {"window", "heads", "head_width", "labels", "kernels", "builds", "alignment"}
MIN_CAPABILITY = 75  # Turing


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and how it is launched.

    Attributes:
        name: name of its function.
        content: cubin, or PTX text.
        form: "cubin" or "ptx".
        dtype: float16 or float32, of queries, rings and weights.
        capability: compute capability that it was compiled for, such as 87.
        threads: threads per block.
        shared: bytes of dynamic shared memory per block.
        arguments: name and `struct` code of each argument, in order.
        alignment: of every pointer, in bytes.
        multiples_of_16: integer arguments that must be multiples of 16.
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
    multiples_of_16: tuple[str, ...]

    def launch_arguments(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Order the arguments `values` for a launch; scratch pointers are null.

        Raises:
            BackendError: an argument is missing or unknown, or a pointer is not aligned.
        """
        names = [name for name, _ in self.arguments if not name.endswith("_scratch")]
        if set(values) != set(names):
            raise BackendError(f"{self.name} takes {', '.join(names)}, not {', '.join(values)}")
        for name in self.multiples_of_16:
            if int(values[name]) % 16:
                raise BackendError(f"{name} is {values[name]}; {self.name} takes multiples of 16")
        for name, code in self.arguments:
            if code == "P" and int(values.get(name, 0)) % self.alignment:
                raise BackendError(
                    f"{name} is at {int(values[name]):#x}; {self.name} reads {self.alignment} bytes at once and "
                    f"takes addresses that are multiples of {self.alignment}"
                )
        return tuple(values.get(name, 0) for name, _ in self.arguments)


def choose(
    name: str, capability: int, dtype: str, window: int, heads: int, e: int, folder: Path = CUBINS
) -> tuple[Kernel, ...]:
    """Choose the builds of a kernel that run on a GPU, best first: machine code, then PTX, which the driver compiles.

    A driver may reject a file that a newer compiler wrote. `Device.load` then tries the next one.

    Args:
        name: kernel name, such as gate_step.
        capability: compute capability of the GPU, such as 87 for 8.7.
        dtype: float16 or float32.
        window, heads, e: sizes of the model; `e` is the width of a head.
        folder: output of `python -m kernels.build`.

    Raises:
        BackendError: no build fits, or a file was altered.
    """
    manifest = _read_manifest(folder)
    sizes = (manifest["window"], manifest["heads"], manifest["head_width"])
    if sizes != (window, heads, e):
        raise BackendError(
            f"{folder} holds kernels for a window of {sizes[0]} and {sizes[1]} heads of {sizes[2]}, the model has "
            f"{window} and {heads} of {e}; build its own with python -m kernels.build --bundle BUNDLE --out FOLDER and "
            "give HBAFRuntime that folder as `kernels`"
        )
    builds = [b for b in manifest["builds"] if b["kernel"] == name]
    if dtype not in {b["dtype"] for b in builds}:
        dtypes = ", ".join(sorted({b["dtype"] for b in builds})) or "no"
        raise BackendError(f"{folder} holds {dtypes} {name}, not {dtype}")
    matching = [b for b in builds if b["dtype"] == dtype and _runs_on(b, capability)]
    if not matching:
        raise BackendError(
            f"a GPU of compute capability {capability // 10}.{capability % 10} cannot run the kernels in {folder}; "
            f"they need {MIN_CAPABILITY // 10}.{MIN_CAPABILITY % 10} or later (Turing): use provider='cpu'"
        )
    matching.sort(key=lambda b: (b["form"] == "cubin", b["capability"]), reverse=True)
    return tuple(_load_verified(folder, manifest, build) for build in matching)


def max_labels(folder: Path = CUBINS) -> int:
    """The largest number of labels that the kernel `head` supports.

    Raises:
        BackendError: the folder contains no kernels.
    """
    return int(_read_manifest(folder)["labels"])


def _load_verified(folder: Path, manifest: Mapping[str, Any], build: Mapping[str, Any]) -> Kernel:
    content = _read(folder / build["file"])
    if hashlib.sha256(content).hexdigest() != build["sha256"]:
        raise BackendError(
            f"{folder / build['file']} was altered or damaged: its SHA-256 is not the manifest's; install hbaf-edge "
            "again, or run python -m kernels.build"
        )
    launch = manifest["kernels"][build["kernel"]]
    arguments = tuple((str(name), str(code)) for name, code in launch["arguments"])
    return Kernel(
        build["kernel"], content, build["form"], build["dtype"], build["capability"], 32 * build["warps"],
        build["shared"], arguments, manifest["alignment"], tuple(launch["multiples_of_16"]),
    )  # fmt: skip


def _runs_on(build: Mapping[str, Any], capability: int) -> bool:
    """Whether a build runs on a compute capability.

    PTX runs on its own capability and all later ones. Machine code runs on its own and later ones of the same major
    version (8.6 on 8.9). From 9.0 on, Triton compiles for the variant "a" (9.0a), which runs only on that capability.
    """
    target = build["capability"]
    if build["form"] == "ptx":
        return bool(target <= capability)
    return bool(target == capability if target >= 90 else target <= capability and target // 10 == capability // 10)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = dict(json.loads(_read(folder / "manifest.json")))
        if manifest["format"] != FORMAT:
            raise BackendError(f"{folder} has format {manifest['format']}, this version reads {FORMAT}; build it again")
        if missing := MANIFEST_FIELDS - set(manifest):
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
