"""The runtime's kernels compiled ahead of time, for devices that have neither PyTorch nor Triton; needs no GPU.

    python -m kernels.build                                     # the default model's sizes, into the package
    python -m kernels.build --bundle runs/mine/float16 --out runs/mine/cubins

One machine code file for each architecture and dtype that a backend can ask for, and one PTX, which a driver compiles
for GPUs that came later; beside them manifest.json: hashes, registers and shared memory as the compiler reports them,
launch grid and argument layout. The last line is JSON.
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
from kernels import layer, parts, step
from kernels.shipped import SHIPPED, SHORT, SOURCES, Shipped, Sizes

FORMAT = 2
# Turing, Ampere, RTX 30, Orin, RTX 40, Hopper, Thor, RTX 50. A file of 8.6 also runs on what is later within 8.
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 110, 120)
PORTABLE = 80  # whose PTX is kept, for what is later than the list; there is nothing between 7.5 and 8.0
DTYPE_NAMES = {kind: str(kind).removeprefix("torch.") for kind in SHORT}
OUT = Path(__file__).resolve().parents[1] / "hbaf_edge" / "backends" / "cuda" / "cubins"
SIXTEENS = ("step_row",)  # multiples of 16, without which a ring would be read element by element
OLDEST_PTX = 80  # what drivers of CUDA 12.0 read
CODES = {"i32": "i", "i64": "q", "fp32": "f"}  # of `struct`; pointers are P
PARAMETERS = {"P": "u64", "q": "u64", "i": "u32", "f": "f32"}  # the compiler's names for them
SCRATCH = ("global_scratch", "profile_scratch")  # pointers that Triton appends; these kernels use neither


def source_sha256() -> str:
    """Of the code that the kernels are made of: what is shipped belongs to it or is out of date."""
    files = [Path(str(module.__file__)) for module in SOURCES]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def assembles(capability: int) -> bool:
    """Whether this Triton's assembler knows an architecture; that of Triton 3.6 does not know 110."""
    listed = subprocess.run([get_ptxas(capability).path, "--help"], check=True, capture_output=True, text=True).stdout  # noqa: S603
    return f"'sm_{capability}'" in listed


def compiled(kernel: Shipped, dtype: torch.dtype, capability: int, sizes: Sizes) -> Any:
    """A kernel for one architecture, such as 87."""
    constants = kernel.constants(sizes, dtype)
    return compile_kernel(kernel.function, kernel.types(dtype), constants, capability, kernel.warps(dtype, capability))


def compile_kernel(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int,
    sixteens: Collection[str] = SIXTEENS,
) -> Any:  # fmt: skip
    """Triton's result for a kernel, its pointers aligned to 16 bytes.

    Args:
        kernel: a function under `triton.jit`.
        types: Triton's name of each argument's type.
        constants: the arguments that are known now.
        capability: such as 87.
        warps: of a program.
        sixteens: arguments that are multiples of 16.

    Raises:
        BackendError: Triton was told to interpret kernels.
    """
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise BackendError("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else types[name] for name in names}
    whole = [i for i, n in enumerate(names) if types[n].startswith("*") or n in sixteens]
    aligned = {(i,): [["tt.divisibility", 16]] for i in whole}
    source = ASTSource(kernel, types, constants, aligned)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), triton.knobs.compilation.scope():
        warnings.simplefilter("ignore")
        triton.knobs.compilation.disable_line_info = True  # they name folders of the machine that compiled
        options = {"num_warps": warps, **({"ptx_version": OLDEST_PTX} if capability == PORTABLE else {})}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def arguments(kernel: Shipped, constants: Collection[str], ptx: str) -> list[list[str]]:
    """Name and `struct` code of each launch argument, checked against what the compiler made of them.

    Raises:
        BackendError: this Triton lays them out in another way.
    """
    names = [n for n in kernel.function.arg_names if n not in constants]
    types = kernel.types(kernel.dtypes[0])
    wanted = [[n, CODES.get(types[n], "P")] for n in names] + [[n, "P"] for n in SCRATCH]
    entry = re.search(rf"\.entry {kernel.name}\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    found = re.findall(r"\.param \.(\w+)", entry.group(1))
    if [PARAMETERS[code] for _, code in wanted] != found:
        raise BackendError(
            f"this Triton {triton.__version__} lays {kernel.name}'s arguments out as {found}; the launcher gives "
            f"{wanted}"
        )
    return wanted


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes spilled, as the compiler's own tool reads them from machine code of one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout  # noqa: S603
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return {"registers": int(found.group(1)), "spilled": int(found.group(2))}


def build(out: Path, sizes: Sizes, architectures: tuple[int, ...] = ARCHITECTURES) -> dict[str, Any]:
    """Compile everything and write the folder, whole or not at all; returns the manifest.

    Architectures that this Triton's assembler does not know are left out, with a warning.

    Raises:
        BackendError: the kernels do not take the model's sizes, or the folder holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise BackendError(f"{out} is there and holds no kernels; nothing is replaced: give --out another place")
    fits = sizes.window <= step.LONGEST and sizes.e <= min(parts.WIDEST.values()) and sizes.d <= layer.WIDEST
    if not fits or 2 * sizes.window * sizes.d % 16:
        raise BackendError(f"a window of {sizes.window} and {sizes.heads} heads of {sizes.e} came; the kernels take "
                           f"{step.LIMITS}, and models up to {layer.WIDEST} wide")  # fmt: skip
    known = tuple(a for a in architectures if assembles(a))
    if known != architectures:
        unknown = ", ".join(str(a) for a in architectures if a not in known)
        warnings.warn(f"Triton {triton.__version__} cannot assemble for {unknown}: GPUs of that kind will compile the "
                      "PTX themselves; a later Triton brings machine code", stacklevel=2)  # fmt: skip
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    builds, kernels = [], {}
    jobs = [(k, d, a) for k in SHIPPED for d in k.dtypes for a in known]
    for kernel, dtype, capability in track(jobs, description="compiling"):
        made = compiled(kernel, dtype, capability, sizes)
        constants = kernel.constants(sizes, dtype)
        layout = arguments(kernel, constants, made.asm["ptx"])
        kernels[kernel.name] = {
            "arguments": layout, "multiples_of_16": [n for n, _ in layout if n in SIXTEENS]
        }  # fmt: skip
        builds += _write(work, kernel.name, DTYPE_NAMES[dtype], capability, made)
    manifest = {
        "format": FORMAT, "source_sha256": source_sha256(), "triton": triton.__version__, "window": sizes.window,
        "heads": sizes.heads, "head_width": sizes.e, "labels": layer.MOST_LABELS, "alignment": 16,
        "kernels": kernels, "builds": builds,
    }  # fmt: skip
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)
    return manifest


def _write(folder: Path, kernel: str, dtype: str, capability: int, made: Any) -> list[dict[str, Any]]:
    """One architecture's machine code, and its PTX where that is kept; what the manifest says of them."""
    forms = {"cubin": made.asm["cubin"]}
    if capability == PORTABLE:
        forms["ptx"] = made.asm["ptx"].encode()
    found, used = [], resources(made.asm["cubin"])
    for form, content in forms.items():
        name = f"{kernel}-{dtype}-{capability}.{form}"
        (folder / name).write_bytes(content)
        found.append({
            "file": name, "kernel": kernel, "form": form, "dtype": dtype, "capability": capability,
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "warps": made.metadata.num_warps,
            "shared": made.metadata.shared, **used,
        })  # fmt: skip
    return found


def main(
    bundle: Annotated[Path | None, typer.Option(help="whose sizes to take; without it the default model's")] = None,
    out: Annotated[Path, typer.Option(help="folder, which is replaced")] = OUT,
) -> None:
    """Compile the runtime's kernels ahead of time."""
    try:
        model = load_bundle(bundle).manifest["model"]
        made = build(out, Sizes(model["window"], model["heads"], model["width"] // model["heads"]))
    except HBAFError as error:
        raise SystemExit(str(error)) from error
    print(json.dumps({"out": str(out), "bytes": sum(b["bytes"] for b in made["builds"])}))


if __name__ == "__main__":
    typer.run(main)
