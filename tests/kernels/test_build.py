"""Ahead-of-time compilation: shipped kernels match the source and stay within their resource limits."""

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hbaf_edge.backends.cuda.kernels import CUBINS, choose
from kernels import build
from kernels.shipped import SHIPPED
from tests.kernels.random_inputs import ROOT

REGISTERS, SHARED = 255, 48 << 10
SPILLED = 288  # bytes, of products without tensor cores (float32, Turing); other half precision spills nothing
MANIFEST = json.loads((CUBINS / "manifest.json").read_text())


def run_with_compiler(code):
    """Run Python code in another process, since this one may interpret kernels."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)


def test_shipped_kernels_were_built_from_this_source():
    """If this fails, run python -m kernels.build and commit the result."""
    assert MANIFEST["source_sha256"] == build.source_sha256()
    for entry in MANIFEST["builds"]:
        assert hashlib.sha256((CUBINS / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert {p.name for p in CUBINS.iterdir()} == {"manifest.json", *(b["file"] for b in MANIFEST["builds"])}
    assert {(b["kernel"], b["dtype"], b["capability"]) for b in MANIFEST["builds"] if b["form"] == "cubin"} == {
        (k.name, build.DTYPE_NAMES[d], a) for k in SHIPPED for d in k.dtypes for a in build.ARCHITECTURES
    }
    assert sum(b["bytes"] for b in MANIFEST["builds"]) < 4e6


def assert_within_limits(entry):
    """Check the compiler's report: a block fits every GPU, and almost nothing is spilled."""
    assert entry["registers"] <= REGISTERS
    assert entry["spilled"] <= (0 if entry["dtype"] == "float16" and entry["capability"] >= 80 else SPILLED)
    assert entry["shared"] <= SHARED
    assert entry["registers"] * 32 * entry["warps"] <= 65536, "registers of a multiprocessor"


@pytest.mark.parametrize("entry", MANIFEST["builds"], ids=lambda b: b["file"])
def test_registers_and_shared_memory_are_within_limits(entry):
    assert_within_limits(entry)


def test_every_file_is_loaded_on_some_gpu():
    """A device loads the first kernel of `choose` that its driver accepts."""
    loaded = set()
    for capability in range(75, 130):
        for kernel in SHIPPED:
            for dtype in kernel.dtypes:
                first = choose(kernel.name, capability, build.DTYPE_NAMES[dtype], 32, 4, 64)[0]
                loaded.add((first.name, first.form, first.dtype, first.capability))
    assert loaded == {tuple(b[k] for k in ("kernel", "form", "dtype", "capability")) for b in MANIFEST["builds"]}


def test_ptx_version_is_old_enough_for_older_drivers():
    for entry in MANIFEST["builds"]:
        if entry["form"] == "ptx":
            assert b".version 8.0\n" in (CUBINS / entry["file"]).read_bytes()


def test_no_file_contains_a_path_of_the_building_machine():
    for path in CUBINS.iterdir():
        for path_part in (b"/home/", b"/root/", b"/work/", b"site-packages"):
            assert path_part not in path.read_bytes(), path.name


@pytest.mark.slow
def test_compiling_again_gives_the_same_files(tmp_path):
    """Bit for bit with the Triton version of the shipped files. Another version allocates registers differently: then
    argument layouts must be equal, all architectures of its assembler present, and resources within limits.

    Other models' sizes: tests/hbaf_edge/cuda/test_gpu_backends.py.
    """
    import triton

    lines = [
        "from kernels.build import *",
        f"build(Path({str(tmp_path / 'same')!r}), Sizes(32, 4, 64))",
    ]
    done = run_with_compiler("\n".join(lines))
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "same" / "manifest.json").read_text())
    if triton.__version__ == MANIFEST["triton"]:
        assert manifest == MANIFEST
    supported = {a: build.can_assemble(a) for a in build.ARCHITECTURES}
    assert all(supported[a] for a in build.ARCHITECTURES if a != 110), "only 110 may be missing, as in Triton 3.6"
    shipped = [b["file"] for b in MANIFEST["builds"] if supported[b["capability"]]]
    assert [b["file"] for b in manifest["builds"]] == shipped
    assert manifest["kernels"] == MANIFEST["kernels"]
    for entry in manifest["builds"]:
        assert_within_limits(entry)


def test_an_architecture_without_assembler_support_is_left_out(tmp_path, monkeypatch):
    def load_shipped(kernel, dtype, capability, sizes):
        name = f"{kernel.name}-{build.DTYPE_NAMES[dtype]}"
        cubin, ptx = CUBINS / f"{name}-{capability}.cubin", CUBINS / f"{name}-80.ptx"
        asm = {"cubin": cubin.read_bytes(), "ptx": ptx.read_text()}
        return SimpleNamespace(asm=asm, metadata=SimpleNamespace(num_warps=4, shared=0))

    monkeypatch.setattr(build, "compile_spec", load_shipped)
    assert build.can_assemble(87)
    assert not build.can_assemble(99)
    with pytest.warns(UserWarning, match="cannot assemble for 99: drivers of such GPUs will compile the PTX instead"):
        manifest = build.build(tmp_path / "cubins", build.Sizes(32, 4, 64), (87, 99))
    assert {b["capability"] for b in manifest["builds"]} == {87}
    assert json.loads(json.dumps(manifest["kernels"])) == MANIFEST["kernels"]


# Compiles the kernel that only training uses, since the interpreter accepts code that the compiler rejects.
COMPILE_SEQUENCE_KERNEL = """
import json
from kernels.build import compile_kernel, resources
from kernels.sequence import gate_sequence
reports = []
def compile_(kernel, short, warps, constants, capability):
    types = dict.fromkeys(kernel.arg_names, "i32") | {"scale": "fp32"}
    types |= dict.fromkeys(kernel.arg_names[:15], f"*{short}")
    types |= {name: "*u8" for name in types if name.endswith("_visible")}
    strides = [n for n in kernel.arg_names if n.split("_")[-1] in ("b", "h", "n", "kb", "kh", "km", "vb", "vh", "vm")]
    binary = compile_kernel(kernel, types, constants, capability, warps, strides)
    spilled = resources(binary.asm["cubin"])["spilled"]
    reports.append([kernel.__name__, short, capability, binary.metadata.shared, spilled])
for capability in (75, 86, 87, 90, 120):
    for short, queries in (("fp16", 64), ("fp32", 32)):
        sizes = dict(E=64, BLOCK_N=queries, BLOCK_M=32, BLOCK_E=64, OWN_BIASED=True, OTHER_BIASED=True)
        compile_(gate_sequence, short, 8, sizes, capability)
print(json.dumps(reports))
"""


@pytest.mark.slow
def test_the_sequence_kernel_compiles_within_limits():
    done = run_with_compiler(COMPILE_SEQUENCE_KERNEL)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(done.stdout)
    assert len(reports) == 10
    for name, short, capability, shared, spilled in reports:
        assert shared <= 64 << 10, (name, short, capability)
        if capability > 75:  # on Turing, Triton does not use tensor cores for this kernel
            assert spilled <= SPILLED, (name, short, capability)


def test_compiling_is_an_error_when_kernels_are_interpreted(tmp_path):
    interpret = "import os; os.environ['TRITON_INTERPRET'] = '1'; "
    done = run_with_compiler(
        interpret + "from kernels.build import *; compile_spec(SHIPPED[0], torch.float16, 87, Sizes(32, 4, 64))"
    )
    assert done.returncode == 1
    assert "kernels are interpreted, not compiled; unset it" in done.stderr


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "precious").write_text("x")
    done = run_with_compiler(
        f"import sys; sys.argv = ['build', '--out', {str(tmp_path)!r}]; import typer; from kernels.build import main; "
        "typer.run(main)"
    )
    assert done.returncode == 1
    assert "nothing is replaced" in done.stderr
    assert (tmp_path / "precious").exists()
