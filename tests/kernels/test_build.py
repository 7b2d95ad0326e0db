"""Ahead-of-time compilation: what is shipped is of this source, and the compiler's report keeps its budget."""

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
from tests.kernels.made import ROOT

REGISTERS, SHARED = 255, 48 << 10
SPILLED = 288  # of products without tensor cores, in float32 and on Turing; half precision elsewhere spills nothing
MANIFEST = json.loads((CUBINS / "manifest.json").read_text())


def compiling(code):
    """In a process of its own, since this one may interpret kernels."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)


def test_what_ships_was_built_from_this_source():
    """If this fails: python -m kernels.build, and commit what it writes."""
    assert MANIFEST["source_sha256"] == build.source_sha256()
    for entry in MANIFEST["builds"]:
        assert hashlib.sha256((CUBINS / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert {p.name for p in CUBINS.iterdir()} == {"manifest.json", *(b["file"] for b in MANIFEST["builds"])}
    assert {(b["kernel"], b["dtype"], b["capability"]) for b in MANIFEST["builds"] if b["form"] == "cubin"} == {
        (k.name, build.DTYPE_NAMES[d], a) for k in SHIPPED for d in k.dtypes for a in build.ARCHITECTURES
    }
    assert sum(b["bytes"] for b in MANIFEST["builds"]) < 4e6


def keeps_its_budget(entry):
    """As the compiler reported it: a block fits every GPU, and next to nothing is spilled."""
    assert entry["registers"] <= REGISTERS
    assert entry["spilled"] <= (0 if entry["dtype"] == "float16" and entry["capability"] >= 80 else SPILLED)
    assert entry["shared"] <= SHARED
    assert entry["registers"] * 32 * entry["warps"] <= 65536, "registers of a multiprocessor"


@pytest.mark.parametrize("entry", MANIFEST["builds"], ids=lambda b: b["file"])
def test_registers_and_shared_memory_keep_their_budget(entry):
    keeps_its_budget(entry)


def test_every_file_is_what_some_gpu_loads():
    """Whatever a backend asks for: the dialogue scope in either dtype, the context ring in
    float32 and the plugin's gate. On a driver that takes it, the first of what `choose` returns is loaded."""
    loaded = set()
    for capability in range(75, 130):
        for kernel in SHIPPED:
            for dtype in kernel.dtypes:
                first = choose(kernel.name, capability, build.DTYPE_NAMES[dtype], 32, 4, 64)[0]
                loaded.add((first.name, first.form, first.dtype, first.capability))
    assert loaded == {tuple(b[k] for k in ("kernel", "form", "dtype", "capability")) for b in MANIFEST["builds"]}


def test_portable_code_is_for_older_drivers():
    for entry in MANIFEST["builds"]:
        if entry["form"] == "ptx":
            assert b".version 8.0\n" in (CUBINS / entry["file"]).read_bytes()


def test_no_file_names_a_folder_of_the_machine():
    for path in CUBINS.iterdir():
        for word in (b"/home/", b"/root/", b"/work/", b"site-packages"):
            assert word not in path.read_bytes(), path.name


@pytest.mark.slow
def test_every_architecture_compiles_again_to_the_same_code(tmp_path):
    """With the Triton of what ships, to the last bit. Another one allocates registers in its own way: then the same
    kernels are launched alike, every architecture that its assembler knows is there, and each keeps its budget.

    Other models' sizes: tests/hbaf_edge/cuda/test_native.py.
    """
    import triton

    lines = [
        "from kernels.build import *",
        f"build(Path({str(tmp_path / 'same')!r}), Sizes(32, 4, 64))",
    ]
    done = compiling("\n".join(lines))
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads((tmp_path / "same" / "manifest.json").read_text())
    if triton.__version__ == MANIFEST["triton"]:
        assert made == MANIFEST
    known = {a: build.assembles(a) for a in build.ARCHITECTURES}
    assert all(known[a] for a in build.ARCHITECTURES if a != 110), "Triton 3.6 lacks 110, and no other is excused"
    shipped = [b["file"] for b in MANIFEST["builds"] if known[b["capability"]]]
    assert [b["file"] for b in made["builds"]] == shipped
    assert made["kernels"] == MANIFEST["kernels"]
    for entry in made["builds"]:
        keeps_its_budget(entry)


def test_an_architecture_that_the_assembler_does_not_know_is_left_out(tmp_path, monkeypatch):
    def shipped(kernel, dtype, capability, sizes):
        name = f"{kernel.name}-{build.DTYPE_NAMES[dtype]}"
        cubin, ptx = CUBINS / f"{name}-{capability}.cubin", CUBINS / f"{name}-80.ptx"
        asm = {"cubin": cubin.read_bytes(), "ptx": ptx.read_text()}
        return SimpleNamespace(asm=asm, metadata=SimpleNamespace(num_warps=4, shared=0))

    monkeypatch.setattr(build, "compiled", shipped)
    assert build.assembles(87)
    assert not build.assembles(99)
    with pytest.warns(UserWarning, match="cannot assemble for 99: GPUs of that kind will compile the PTX themselves"):
        made = build.build(tmp_path / "cubins", build.Sizes(32, 4, 64), (87, 99))
    assert {b["capability"] for b in made["builds"]} == {87}
    assert json.loads(json.dumps(made["kernels"])) == MANIFEST["kernels"]


# The kernel that training alone runs; the interpreter takes things that the compiler does not.
OTHERS = """
import json
from kernels.build import compile_kernel, resources
from kernels.sequence import gate_sequence
found = []
def compile_(kernel, short, warps, constants, capability):
    types = dict.fromkeys(kernel.arg_names, "i32") | {"scale": "fp32"}
    types |= dict.fromkeys(kernel.arg_names[:15], f"*{short}")
    types |= {name: "*u8" for name in types if name.endswith("_visible")}
    strides = [n for n in kernel.arg_names if n.split("_")[-1] in ("b", "h", "n", "kb", "kh", "km", "vb", "vh", "vm")]
    made = compile_kernel(kernel, types, constants, capability, warps, strides)
    found.append([kernel.__name__, short, capability, made.metadata.shared, resources(made.asm["cubin"])["spilled"]])
for capability in (75, 86, 87, 90, 120):
    for short, queries in (("fp16", 64), ("fp32", 32)):
        sizes = dict(E=64, BLOCK_N=queries, BLOCK_M=32, BLOCK_E=64, OWN_BIASED=True, OTHER_BIASED=True)
        compile_(gate_sequence, short, 8, sizes, capability)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_kernel_of_whole_sequences_compiles_and_keeps_its_budget():
    done = compiling(OTHERS)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 10
    for name, short, capability, shared, spilled in found:
        assert shared <= 64 << 10, (name, short, capability)
        if capability > 75:  # Triton has no tensor cores of Turing for whole sequences
            assert spilled <= SPILLED, (name, short, capability)


def test_interpreted_kernels_cannot_be_compiled(tmp_path):
    interpret = "import os; os.environ['TRITON_INTERPRET'] = '1'; "
    done = compiling(
        interpret + "from kernels.build import *; compiled(SHIPPED[0], torch.float16, 87, Sizes(32, 4, 64))"
    )
    assert done.returncode == 1
    assert "kernels are interpreted, not compiled; unset it" in done.stderr


def test_other_folders_are_not_replaced(tmp_path):
    (tmp_path / "precious").write_text("x")
    done = compiling(
        f"import sys; sys.argv = ['build', '--out', {str(tmp_path)!r}]; import typer; from kernels.build import main; "
        "typer.run(main)"
    )
    assert done.returncode == 1
    assert "nothing is replaced" in done.stderr
    assert (tmp_path / "precious").exists()
