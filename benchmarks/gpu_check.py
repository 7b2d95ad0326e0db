"""Everything that has to be proven on an NVIDIA GPU, in eight minutes on a machine without network.

python -m benchmarks.gpu_check prepare        # here: what that machine lacks, as wheels, and the tree; says what to run
python -m benchmarks.gpu_check run            # there; a step that fails or takes too long does not stop the others
python -m benchmarks.gpu_check run --rehearse # without a GPU: every step as far as a CPU takes it

Each step is a process with a timeout of its own. Its output and result are in one JSON file as soon as it ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hbaf_edge.errors import BackendError, HBAFError

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "runs" / "gpu-check"
MAX_PART = 60 << 20  # bytes of each file that is carried there
MAX_OUTPUT = 1 << 20  # bytes of a step's output that are kept, from its end
# What pycuda, soxr and soundfile need beside numpy. PyTorch, Triton, onnxruntime, tokenizers, pytest, hypothesis, rich,
# typer and cuda-bindings are expected there.
WHEELS = ("soxr", "soundfile", "cffi", "pycparser", "pytools", "platformdirs", "siphash24", "mako", "markupsafe")
PYCUDA = "pycuda==2026.1"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64")
THERE = """
On the machine with the GPU:

    mkdir check && tar xf tree.tar.xz -C check && tar xf wheels.tar -C check
    cd check && python -m pip install --no-index --no-deps wheels/*.whl
    python -m benchmarks.gpu_check run --out results

The step rtx needs tensorrt-rtx there, whose libraries are larger than a part may be."""
PYTEST = ("-m", "pytest", "-vv", "--tb=short", "--noconftest", "--continue-on-collection-errors", "-m")  # which marks
KERNEL_TESTS = tuple(f"tests/kernels/test_{name}.py" for name in ("step", "layer", "node", "sequence"))
LAUNCHER_TESTS = ("tests/hbaf_edge/cuda/test_device.py",)
TEXTS = ("hello there", "i am fine", "no way", "what a day", "yes", "well, i never", "go away", "how lovely")

HELP = (__doc__ or "").replace("\n\npython", "\n\n\b\npython")  # \b keeps lines as they are
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=HELP)


@dataclass(frozen=True)
class Step:
    """A process.

    Attributes:
        name: of its JSON file.
        seconds: it may take; all steps together take eight minutes at most.
        arguments: of this Python.
        rehearsal: arguments without a GPU; empty where there is nothing to rehearse.
        tool: that runs this Python, with its options; the step is skipped where it is not installed.
    """

    name: str
    seconds: int
    arguments: tuple[str, ...]
    rehearsal: tuple[str, ...] = ()
    tool: tuple[str, ...] = ()


def own(name: str, *options: str) -> tuple[str, ...]:
    """Arguments of one of this file's own steps."""
    return "-m", "benchmarks.gpu_check", name, *options


KERNELS = (*PYTEST, "not slow and not gpu", *KERNEL_TESTS)
STEPS = (
    Step("environment", 30, own("environment"), own("environment")),
    Step("launcher", 60, (*PYTEST, "gpu", *LAUNCHER_TESTS), (*PYTEST, "gpu", "--collect-only", *LAUNCHER_TESTS)),
    Step("kernels", 150, KERNELS, (*KERNELS, "--collect-only")),
    Step("sanitizer", 60, (*PYTEST, "not slow and not gpu", KERNEL_TESTS[0], "-k", "every_place and 16"),
         tool=("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1", "--target-processes", "all")),
    Step("conversations", 100, own("conversations"), own("conversations", "--provider", "cpu", "--count", "2")),
    Step("benchmark", 60, ("-m", "benchmarks.kernels", "--quick")),
    Step("rtx", 20, own("rtx"), own("rtx", "--build-only")),
)  # fmt: skip


def card() -> str | None:
    """Name, driver and memory of the first GPU, as NVIDIA's own tool has them; None without one."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def execute(step: Step, gpu: str | None, seconds: float, rehearse: bool = False) -> dict[str, Any]:
    """Run a step; its output is kept whatever becomes of it."""
    record: dict[str, Any] = {"step": step.name, "card": gpu, "rehearsed": rehearse}
    if gpu is None and not (rehearse and step.rehearsal):
        return {**record, "status": "skipped: no GPU"}
    if step.tool and shutil.which(step.tool[0]) is None:
        return {**record, "status": f"skipped: {step.tool[0]} is not installed"}
    command = [*step.tool, sys.executable, *(step.rehearsal if rehearse else step.arguments)]
    more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if step.tool else {}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **more}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as file:
        # A session of its own, so that a timeout ends what the step has started, too.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(max(seconds, 0.0))
            status = {0: "ok"}.get(code, f"failed: exit code {code}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"timeout after {seconds:.0f} s"
        file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_OUTPUT))
        output = file.read().decode(errors="replace")
    took = round(time.perf_counter() - start, 1)
    return {**record, "status": status, "seconds": took, "result": last_json(output), "output": output.splitlines()}


def last_json(output: str) -> Any:
    """The last line that is a JSON object; None where there is none.

    >>> last_json('a table' + chr(10) + '{"a": 1}' + chr(10) + 'a warning')
    {'a': 1}
    """
    for line in reversed(output.splitlines()):
        with suppress(json.JSONDecodeError):
            if line.startswith("{"):
                return json.loads(line)
    return None


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="folder of the results, one JSON file a step")] = OUT / "results",
    minutes: Annotated[float, typer.Option(help="all steps together")] = 8.0,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="without a GPU")] = False,
) -> None:
    """Run every step."""
    end, gpu = time.monotonic() + 60 * minutes, None if rehearse else card()
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for step in STEPS:
        records.append(record := execute(step, gpu, min(step.seconds, end - time.monotonic()), rehearse))
        (out / f"{step.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{step.name:14} {record.get('seconds', 0):6.1f} s  {record['status']}", flush=True)
    print(json.dumps({"card": gpu, "out": str(out), **{r["step"]: r["status"] for r in records}}))
    raise typer.Exit(any(r["status"].startswith(("failed", "timeout")) for r in records))


@app.command()
def environment() -> None:
    """Step: versions, the machine, and pycuda in a process without PyTorch."""
    from importlib import metadata

    from hbaf_edge.machine import machine

    names = ("torch", "triton", "numpy", "onnx", "onnxruntime", "pycuda", "cuda-bindings", "tensorrt", "tensorrt-rtx")
    found: dict[str, Any] = {"machine": machine(), "tools": {t: shutil.which(t) for t in ("nvcc", "compute-sanitizer")}}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    try:
        import pycuda.driver as cuda  # type: ignore[import-not-found,unused-ignore]

        cuda.init()
        found["pycuda sees"] = [cuda.Device(i).name() for i in range(cuda.Device.count())]
    except Exception as error:  # no package, no driver, no card: other steps run all the same
        found["pycuda sees"] = str(error)
    print(json.dumps(found))


def made_turn(seed: int, turn: int) -> dict[str, Any]:
    """A turn: text, a synthetic voice, or both."""
    import numpy as np

    rng = np.random.default_rng((seed, turn))
    t = np.arange(int(16_000 * rng.uniform(0.4, 2.0))) / 16_000
    pitch = 2 * np.pi * (rng.uniform(90, 250) * t + 3 * np.sin(4 * t + seed))
    voice = sum(np.sin(k * pitch) / k for k in range(1, 9)) * (0.5 + 0.5 * np.sin(9 * t))
    audio = (0.1 * voice + 0.003 * rng.standard_normal(len(t))).astype(np.float32)
    given: dict[str, Any] = {"speaker": ("anna", "bob", "carla", None)[(seed + turn) % 4]}
    if turn % 3 != 1:
        given |= {"audio": audio, "sample_rate": 16_000}
    if turn % 3 != 2:
        given["text"] = TEXTS[(seed + turn) % len(TEXTS)]
    return given


def providers(asked: str | None) -> dict[str, str | None]:
    """Each back end that can run here, with the bundle it takes: TensorRT's is float16, named by HBAF_GPU_BUNDLE."""
    if asked:
        return {asked: None}
    bundle = os.environ.get("HBAF_GPU_BUNDLE")
    tensorrt = bundle is not None and importlib.util.find_spec("tensorrt") is not None
    return {"cuda": None, **({"tensorrt": bundle} if tensorrt else {})}


@app.command()
def conversations(
    provider: Annotated[str | None, typer.Option(help="default: cuda, and tensorrt where it is installed")] = None,
    count: int = 50,
    length: int = 8,
) -> None:
    """Step: the back ends against the CPU, turn by turn: labels, probabilities and milliseconds.

    The last conversation is longer than the window.
    """
    import numpy as np

    from hbaf_edge import HBAFRuntime

    found: dict[str, Any] = {}
    for name, bundle in providers(provider).items():
        fast, plain = HBAFRuntime(bundle, provider=name), HBAFRuntime(bundle)
        differences, flips, times = list[float](), 0, list[tuple[float, float]]()
        for seed in range(count):
            ours, theirs = fast.conversation(), plain.conversation()
            for turn in range(40 if seed == count - 1 else length):
                given = made_turn(seed, turn)
                a, b = (r.predict(**given, conversation=c) for r, c in ((fast, ours), (plain, theirs)))
                flips += a.label != b.label
                differences.append(max(abs(a.probabilities[k] - b.probabilities[k]) for k in b.probabilities))
                times.append((a.timing["total"], b.timing["total"]))
        p50, p99 = np.percentile(times, (50, 99), axis=0).round(3).tolist()
        found[name] = {
            "turns": len(times), "flips": flips, "largest difference": round(max(differences), 4),
            "p50 ms": {name: p50[0], "CPU": p50[1]}, "p99 ms": {name: p99[0], "CPU": p99[1]},
        }  # fmt: skip
        print(json.dumps(found))
    raise typer.Exit(any(f["flips"] > 0.03 * f["turns"] for f in found.values()))


@app.command()
def rtx(build_only: Annotated[bool, typer.Option("--build-only", help="without a GPU")] = False) -> None:
    """Step: whether an engine of TensorRT-RTX, which is made for desktop cards, is built and loads here."""
    from hbaf_edge.backends.cuda.build import build, library
    from onnx import TensorProto, helper

    shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (16, 16)) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "graph", shape[:1], shape[1:])
    trt = library("rtx")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    built = build(trt, model.SerializeToString(), {}, "8.6" if build_only else None)
    result: dict[str, Any] = {"version": trt.__version__, "bytes": len(built.engine)}
    if not build_only:
        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(built.engine)
        context = engine.create_execution_context() if engine is not None else None
        result.update(loads=engine is not None, context=context is not None)
    print(json.dumps(result))


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="folder to be carried there")] = OUT,
    python: Annotated[str, typer.Option(help="of that machine's version, to build pycuda with")] = "python3.12",
    cuda: Annotated[Path, typer.Option(help="CUDA's folder, for its headers")] = Path("/usr/local/cuda"),
) -> None:
    """Make the folder, in parts of at most 60 MiB, and print what to run there."""
    wheels = out / "wheels"
    try:
        shutil.rmtree(wheels, ignore_errors=True)
        wheels.mkdir(parents=True)
        make_wheels(python, cuda, wheels)
        parts = [pack(out / "tree.tar.xz", tracked()), pack(out / "wheels.tar", wheels.iterdir(), out)]
    except (HBAFError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(str(error)) from error
    for part in parts:
        print(f"{part.stat().st_size / (1 << 20):6.1f} MiB  {part}")
    print(THERE)


def make_wheels(python: str, cuda: Path, folder: Path) -> None:
    """Wheels of WHEELS, and of pycuda, which the registry has as source alone: built without a driver, without cuRAND.

    With cuRAND, its default, it would not load in a process that has not loaded PyTorch's libraries before.

    Raises:
        BackendError: pip failed; with its last words.
    """
    path = subprocess.check_output([python, "-c", "import sys; print(sys.executable)"], text=True).strip()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "empty.c").write_text("")
        stub = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", f"{name}/libcuda.so", f"{name}/empty.c"]
        subprocess.run(stub, check=True)
        # The stub defines nothing: a linker that drops what is not needed would not name the driver in the wheel.
        settings = {
            "CUDA_ROOT": str(cuda), "CUDA_ENABLE_CURAND": False, "CUDA_ENABLE_GL": False, "CUDADRV_LIB_DIR": [name],
            "LDFLAGS": ["-Wl,--no-as-needed", f"-L{name}", "-lcuda"],
        }  # fmt: skip
        (home / ".aksetup-defaults.py").write_text("".join(f"{k} = {v!r}\n" for k, v in settings.items()))
        ready = ("download", "--only-binary=:all:", *(f"--platform={p}" for p in PLATFORMS), "-d", str(folder), *WHEELS)
        for command in (ready, ("wheel", "--no-cache-dir", "-w", str(folder), PYCUDA)):
            whole = [path, "-m", "pip", command[0], "-q", "--no-deps", *command[1:]]
            at_home = {**os.environ, "HOME": name}
            done = subprocess.run(whole, env=at_home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                last = "\n".join(done.stdout.splitlines()[-15:])
                raise BackendError(f"pip {command[0]} failed (CUDA's headers are looked for in --cuda):\n{last}")


def tracked() -> list[Path]:
    """Files of the tree that git does not ignore."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    return [path for line in listed.splitlines() if (path := ROOT / line).is_file()]


def pack(archive: Path, files: Iterable[Path], top: Path = ROOT) -> Path:
    """One part, with names below `top`.

    Raises:
        BackendError: it is too large to be carried.
    """
    with tarfile.open(archive, "w:xz" if archive.suffix == ".xz" else "w") as packed:
        for path in sorted(files):
            packed.add(path, path.relative_to(top))
    if (size := archive.stat().st_size) > MAX_PART:
        raise BackendError(f"{archive} has {size / (1 << 20):.0f} MiB; {MAX_PART >> 20} can be carried")
    return archive


if __name__ == "__main__":
    app()
