"""Compile the runtime's kernels ahead of time, for devices without PyTorch and Triton. Needs no GPU.

    python -m kernels.build                                     # the default model's sizes, into the package
    python -m kernels.build --bundle runs/mine/float16 --out runs/mine/cubins

Writes one machine code file per kernel, architecture and dtype, one PTX file per kernel and dtype, which a driver
compiles for GPUs that are newer than the list, and manifest.json: hashes, registers and shared memory as the compiler
reports them, warps and argument layout. The last line of output is JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import torch
import triton
import typer
from rich.progress import track
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import BackendError, HBAFError
from kernels import common, layer, step
from kernels.shipped import SHIPPED, SOURCES, TRITON_DTYPES, KernelSpec, Sizes

FORMAT = 2
# Turing, Ampere, RTX 30, Orin, RTX 40, Hopper, Thor, RTX 50. Code for 8.6 also runs on 8.7, 8.8 and 8.9.
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 110, 120)
PTX_CAPABILITY = 80  # its PTX is shipped too, for GPUs that are newer than the list; none is between 7.5 and 8.0
DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in TRITON_DTYPES}
OUT = Path(__file__).resolve().parents[1] / "hbaf_edge" / "backends" / "cuda" / "cubins"
MULTIPLES_OF_16 = ("step_row",)  # without this promise the compiler would read a ring element by element
PTX_VERSION = 80  # PTX 8.0, which drivers of CUDA 12.0 read
CODES = {"i32": "i", "i64": "q", "fp32": "f"}  # of the module `struct`; pointers are P
PARAMETERS = {"P": "u64", "q": "u64", "i": "u32", "f": "f32"}  # the compiler's names for them
SCRATCH = ("global_scratch", "profile_scratch")  # pointers that Triton appends; these kernels do not use them


def source_sha256() -> str:
    """Hash of the kernels' source files. If it differs from the manifest's, the shipped kernels are out of date."""
    files = [Path(str(module.__file__)) for module in SOURCES]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def can_assemble(capability: int) -> bool:
    """Whether this Triton's assembler supports a compute capability; that of Triton 3.6 lacks 110."""
    options = subprocess.run([get_ptxas(capability).path, "--help"], check=True, capture_output=True, text=True).stdout  # noqa: S603
    return f"'sm_{capability}'" in options


def compile_spec(kernel: KernelSpec, dtype: torch.dtype, capability: int, sizes: Sizes) -> Any:
    """Compile a shipped kernel for one compute capability, such as 87."""
    constants = kernel.constants(sizes, dtype)
    return compile_kernel(kernel.function, kernel.types(dtype), constants, capability, kernel.warps(dtype, capability))


def compile_kernel(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int,
    multiples_of_16: Collection[str] = MULTIPLES_OF_16,
) -> Any:  # fmt: skip
    """Compile a kernel with pointers aligned to 16 bytes; returns Triton's result.

    Args:
        kernel: a function decorated with `triton.jit`.
        types: Triton's type of each argument.
        constants: arguments that are compile-time constants.
        capability: such as 87.
        warps: of a program.
        multiples_of_16: integer arguments that are multiples of 16.

    Raises:
        BackendError: TRITON_INTERPRET is set.
    """
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise BackendError("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else types[name] for name in names}
    divisible = [i for i, n in enumerate(names) if types[n].startswith("*") or n in multiples_of_16]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    source = ASTSource(kernel, types, constants, attributes)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), triton.knobs.compilation.scope():
        warnings.simplefilter("ignore")
        triton.knobs.compilation.disable_line_info = True  # it would name folders of the building machine
        options = {"num_warps": warps, **({"ptx_version": PTX_VERSION} if capability == PTX_CAPABILITY else {})}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def launch_arguments(kernel: KernelSpec, constants: Collection[str], ptx: str) -> list[list[str]]:
    """Name and `struct` code of each launch argument, checked against the compiled PTX.

    Raises:
        BackendError: this Triton uses another argument layout.
    """
    names = [n for n in kernel.function.arg_names if n not in constants]
    types = kernel.types(kernel.dtypes[0])
    expected = [[n, CODES.get(types[n], "P")] for n in names] + [[n, "P"] for n in SCRATCH]
    entry = re.search(rf"\.entry {kernel.name}\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    parameters = re.findall(r"\.param \.(\w+)", entry.group(1))
    if [PARAMETERS[code] for _, code in expected] != parameters:
        raise BackendError(
            f"this Triton {triton.__version__} lays {kernel.name}'s arguments out as {parameters}; the launcher "
            f"passes {expected}"
        )
    return expected


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread and spilled bytes of one kernel's machine code, as cuobjdump reports them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        output = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout  # noqa: S603
    match = re.search(r"REG:(\d+) STACK:(\d+)", output)
    assert match is not None, output
    return {"registers": int(match.group(1)), "spilled": int(match.group(2))}


def build(out: Path, sizes: Sizes, architectures: tuple[int, ...] = ARCHITECTURES) -> dict[str, Any]:
    """Compile all kernels and replace the folder, completely or not at all; returns the manifest.

    Architectures that this Triton's assembler does not support are left out, with a warning.

    Raises:
        BackendError: the kernels do not support the model's sizes, or the folder holds other files.
    """
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise BackendError(f"{out} exists and holds no kernels, so nothing is replaced; give another folder as --out")
    max_head = min(common.MAX_HEAD_WIDTH.values())
    fits = sizes.window <= step.MAX_WINDOW and sizes.e <= max_head and sizes.d <= layer.MAX_WIDTH
    if not fits or 2 * sizes.window * sizes.d % 16:
        raise BackendError(f"the model has a window of {sizes.window} and {sizes.heads} heads of {sizes.e}; the "
                           f"kernels take {step.LIMITS}, and models up to {layer.MAX_WIDTH} wide")  # fmt: skip
    known = tuple(a for a in architectures if can_assemble(a))
    if known != architectures:
        unknown = ", ".join(str(a) for a in architectures if a not in known)
        warnings.warn(f"Triton {triton.__version__} cannot assemble for {unknown}: drivers of such GPUs will compile "
                      "the PTX instead; a later Triton adds machine code", stacklevel=2)  # fmt: skip
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    builds, kernels = [], {}
    jobs = [(k, d, a) for k in SHIPPED for d in k.dtypes for a in known]
    for kernel, dtype, capability in track(jobs, description="compiling"):
        binary = compile_spec(kernel, dtype, capability, sizes)
        constants = kernel.constants(sizes, dtype)
        layout = launch_arguments(kernel, constants, binary.asm["ptx"])
        kernels[kernel.name] = {
            "arguments": layout, "multiples_of_16": [n for n, _ in layout if n in MULTIPLES_OF_16]
        }  # fmt: skip
        builds += _write(work, kernel.name, DTYPE_NAMES[dtype], capability, binary)
    manifest = {
        "format": FORMAT, "source_sha256": source_sha256(), "triton": triton.__version__, "window": sizes.window,
        "heads": sizes.heads, "head_width": sizes.e, "labels": layer.MAX_LABELS, "alignment": 16,
        "kernels": kernels, "builds": builds,
    }  # fmt: skip
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)
    return manifest


def _write(folder: Path, kernel: str, dtype: str, capability: int, binary: Any) -> list[dict[str, Any]]:
    """Write machine code, and PTX for PTX_CAPABILITY; returns the manifest's entries."""
    forms = {"cubin": binary.asm["cubin"]}
    if capability == PTX_CAPABILITY:
        forms["ptx"] = binary.asm["ptx"].encode()
    entries, used = [], resources(binary.asm["cubin"])
    for form, content in forms.items():
        name = f"{kernel}-{dtype}-{capability}.{form}"
        (folder / name).write_bytes(content)
        entries.append({
            "file": name, "kernel": kernel, "form": form, "dtype": dtype, "capability": capability,
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "warps": binary.metadata.num_warps,
            "shared": binary.metadata.shared, **used,
        })  # fmt: skip
    return entries


def main(
    bundle: Annotated[
        Path | None, typer.Option(help="take the sizes of this bundle; default: the packaged model")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to replace")] = OUT,
) -> None:
    """Compile the runtime's kernels ahead of time."""
    try:
        model = load_bundle(bundle).manifest["model"]
        manifest = build(out, Sizes(model["window"], model["heads"], model["width"] // model["heads"]))
    except HBAFError as error:
        raise SystemExit(str(error)) from error
    print(f"{out}: {len(manifest['builds'])} kernels, {sum(b['bytes'] for b in manifest['builds']) / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
