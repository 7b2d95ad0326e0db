"""Run all checks that need an NVIDIA GPU, in eight minutes on a machine without network.

python -m benchmarks.gpu_check prepare        # on this machine: pack missing wheels and the source, print what to run
python -m benchmarks.gpu_check run            # on the GPU machine; the other steps run even if one fails or times out
python -m benchmarks.gpu_check run --rehearse # without a GPU: run the part of each step that a CPU can run

Each step is a process with its own timeout. Its output and result are written to one JSON file when it ends.
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
MAX_PART = 60 << 20  # bytes of each file that is copied to the GPU machine
MAX_OUTPUT = 1 << 20  # bytes at the end of a step's output that are stored
# Dependencies of pycuda, soxr and soundfile except numpy. The GPU machine must have PyTorch, Triton, onnxruntime,
# tokenizers, pytest, hypothesis, rich, typer and cuda-bindings.
WHEELS = ("soxr", "soundfile", "cffi", "pycparser", "pytools", "platformdirs", "siphash24", "mako", "markupsafe")
PYCUDA = "pycuda==2026.1"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64")
INSTRUCTIONS = """
On the machine with the GPU:

    mkdir check && tar xf tree.tar.xz -C check && tar xf wheels.tar -C check
    cd check && python -m pip install --no-index --no-deps wheels/*.whl
    python -m benchmarks.gpu_check run --out results

The step rtx needs tensorrt-rtx on that machine; its libraries are too large for a part."""
PYTEST = ("-m", "pytest", "-vv", "--tb=short", "--noconftest", "--continue-on-collection-errors", "-m")  # + markers
KERNEL_TESTS = tuple(f"tests/kernels/test_{name}.py" for name in ("step", "layer", "node", "sequence"))
LAUNCHER_TESTS = ("tests/hbaf_edge/cuda/test_device.py",)
TEXTS = ("hello there", "i am fine", "no way", "what a day", "yes", "well, i never", "go away", "how lovely")

HELP = (__doc__ or "").replace("\n\npython", "\n\n\b\npython")  # \b preserves line breaks
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=HELP)


@dataclass(frozen=True)
class Step:
    """A check that runs in its own process.

    Attributes:
        name: name of its JSON file, without suffix.
        seconds: timeout. The sum of all steps is at most eight minutes.
        arguments: arguments of the Python interpreter.
        rehearsal: arguments for a run without a GPU; empty if the step cannot run without one.
        tool: program that runs the interpreter, with its options. Without that program the step is skipped.
    """

    name: str
    seconds: int
    arguments: tuple[str, ...]
    rehearsal: tuple[str, ...] = ()
    tool: tuple[str, ...] = ()


def subcommand(name: str, *options: str) -> tuple[str, ...]:
    """Return the arguments that run a step defined in this file."""
    return "-m", "benchmarks.gpu_check", name, *options


KERNELS = (*PYTEST, "not slow and not gpu", *KERNEL_TESTS)
STEPS = (
    Step("environment", 30, subcommand("environment"), subcommand("environment")),
    Step("launcher", 60, (*PYTEST, "gpu", *LAUNCHER_TESTS), (*PYTEST, "gpu", "--collect-only", *LAUNCHER_TESTS)),
    Step("kernels", 150, KERNELS, (*KERNELS, "--collect-only")),
    Step("sanitizer", 60, (*PYTEST, "not slow and not gpu", KERNEL_TESTS[0], "-k", "every_position and 16"),
         tool=("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1", "--target-processes", "all")),
    Step("conversations", 100, subcommand("conversations"),
         subcommand("conversations", "--provider", "cpu", "--count", "2")),
    Step("benchmark", 60, ("-m", "benchmarks.kernels", "--quick", "--json")),
    Step("rtx", 20, subcommand("rtx"), subcommand("rtx", "--build-only")),
)  # fmt: skip


def find_gpu() -> str | None:
    """Return name, driver and memory of the first GPU according to nvidia-smi; None without a GPU."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    process = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return process.stdout.splitlines()[0] if process.returncode == 0 and process.stdout else None


def execute(step: Step, gpu: str | None, seconds: float, rehearse: bool = False) -> dict[str, Any]:
    """Run a step on the GPU of that name with a timeout in seconds; return its status, result and output."""
    record: dict[str, Any] = {"step": step.name, "card": gpu, "rehearsed": rehearse}
    if gpu is None and not (rehearse and step.rehearsal):
        return {**record, "status": "skipped: no GPU"}
    if step.tool and shutil.which(step.tool[0]) is None:
        return {**record, "status": f"skipped: {step.tool[0]} is not installed"}
    command = [*step.tool, sys.executable, *(step.rehearsal if rehearse else step.arguments)]
    extra = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if step.tool else {}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **extra}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as file:
        # A new session, so that a timeout also ends the processes that the step started.
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
    elapsed = round(time.perf_counter() - start, 1)
    return {**record, "status": status, "seconds": elapsed, "result": last_json(output), "output": output.splitlines()}


def last_json(output: str) -> Any:
    """Parse the last line that is a JSON object; return None if there is none.

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
    out: Annotated[Path, typer.Option(help="folder for the results, one JSON file per step")] = OUT / "results",
    minutes: Annotated[float, typer.Option(help="time limit of all steps together")] = 8.0,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="run without a GPU")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON instead of a table")] = False,
) -> None:
    """Run every step."""
    end, gpu = time.monotonic() + 60 * minutes, None if rehearse else find_gpu()
    out.mkdir(parents=True, exist_ok=True)
    statuses: dict[str, str] = {}
    for step in STEPS:
        record = execute(step, gpu, min(step.seconds, end - time.monotonic()), rehearse)
        statuses[step.name] = record["status"]
        (out / f"{step.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        if not as_json:
            print(f"{step.name:14} {record.get('seconds', 0):6.1f} s  {record['status']}", flush=True)
    if as_json:
        print(json.dumps({"card": gpu, "out": str(out), **statuses}))
    else:
        print(f"GPU: {gpu or 'none'}; results: {out}")
    raise typer.Exit(any(status.startswith(("failed", "timeout")) for status in statuses.values()))


@app.command()
def environment() -> None:
    """Step: list versions and the machine, and load pycuda in a process without PyTorch."""
    from importlib import metadata

    from hbaf_edge.machine import machine_info

    names = ("torch", "triton", "numpy", "onnx", "onnxruntime", "pycuda", "cuda-bindings", "tensorrt", "tensorrt-rtx")
    tools = {name: shutil.which(name) for name in ("nvcc", "compute-sanitizer")}
    result: dict[str, Any] = {"machine": machine_info(), "tools": tools}
    for name in names:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            result[name] = None
    try:
        import pycuda.driver as cuda  # type: ignore[import-not-found,unused-ignore]

        cuda.init()
        result["pycuda sees"] = [cuda.Device(i).name() for i in range(cuda.Device.count())]
    except Exception as error:  # no package, driver or GPU; the other steps run anyway
        result["pycuda sees"] = str(error)
    print(json.dumps(result))


def random_turn(seed: int, turn: int) -> dict[str, Any]:
    """Return the arguments of `predict` for a turn with text, a synthetic voice, or both."""
    import numpy as np

    rng = np.random.default_rng((seed, turn))
    t = np.arange(int(16_000 * rng.uniform(0.4, 2.0))) / 16_000
    pitch = 2 * np.pi * (rng.uniform(90, 250) * t + 3 * np.sin(4 * t + seed))
    voice = sum(np.sin(k * pitch) / k for k in range(1, 9)) * (0.5 + 0.5 * np.sin(9 * t))
    audio = (0.1 * voice + 0.003 * rng.standard_normal(len(t))).astype(np.float32)
    arguments: dict[str, Any] = {"speaker": ("anna", "bob", "carla", None)[(seed + turn) % 4]}
    if turn % 3 != 1:
        arguments |= {"audio": audio, "sample_rate": 16_000}
    if turn % 3 != 2:
        arguments["text"] = TEXTS[(seed + turn) % len(TEXTS)]
    return arguments


def providers(only: str | None) -> dict[str, str | None]:
    """Return the providers that can run here with their bundles; HBAF_GPU_BUNDLE names TensorRT's float16 bundle."""
    if only:
        return {only: None}
    bundle = os.environ.get("HBAF_GPU_BUNDLE")
    has_tensorrt = bundle is not None and importlib.util.find_spec("tensorrt") is not None
    return {"cuda": None, **({"tensorrt": bundle} if has_tensorrt else {})}


@app.command()
def conversations(
    provider: Annotated[str | None, typer.Option(help="default: cuda, and tensorrt if it is installed")] = None,
    count: Annotated[int, typer.Option(help="conversations")] = 50,
    length: Annotated[int, typer.Option(help="turns of each conversation but the last, which has 40")] = 8,
) -> None:
    """Step: compare each provider with the CPU, turn by turn: labels, probabilities and milliseconds.

    The last conversation is longer than the window.
    """
    import numpy as np

    from hbaf_edge import HBAFRuntime

    results: dict[str, Any] = {}
    for name, bundle in providers(provider).items():
        gpu, cpu = HBAFRuntime(bundle, provider=name), HBAFRuntime(bundle)
        differences, flips, times = list[float](), 0, list[tuple[float, float]]()
        for seed in range(count):
            pairs = (gpu, gpu.conversation()), (cpu, cpu.conversation())
            for turn in range(40 if seed == count - 1 else length):
                arguments = random_turn(seed, turn)
                a, b = (runtime.predict(**arguments, conversation=conversation) for runtime, conversation in pairs)
                flips += a.label != b.label
                differences.append(max(abs(a.probabilities[k] - b.probabilities[k]) for k in b.probabilities))
                times.append((a.timing["total"], b.timing["total"]))
        p50, p99 = np.percentile(times, (50, 99), axis=0).round(3).tolist()
        results[name] = {
            "turns": len(times), "flips": flips, "largest difference": round(max(differences), 4),
            "p50 ms": {name: p50[0], "CPU": p50[1]}, "p99 ms": {name: p99[0], "CPU": p99[1]},
        }  # fmt: skip
        print(json.dumps(results))
    raise typer.Exit(any(result["flips"] > 0.03 * result["turns"] for result in results.values()))


@app.command()
def rtx(build_only: Annotated[bool, typer.Option("--build-only", help="run without a GPU")] = False) -> None:
    """Step: build an engine with TensorRT-RTX, which is meant for desktop GPUs, and load it."""
    from onnx import TensorProto, helper

    from hbaf_edge.backends.cuda.engines import build_engine, import_library

    shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (16, 16)) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "graph", shape[:1], shape[1:])
    trt = import_library("rtx")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content = build_engine(trt, model.SerializeToString(), {}, "8.6" if build_only else None)
    result: dict[str, Any] = {"version": trt.__version__, "bytes": len(content)}
    if not build_only:
        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(content)
        context = engine.create_execution_context() if engine is not None else None
        result.update(loads=engine is not None, context=context is not None)
    print(json.dumps(result))


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="folder to copy to the GPU machine")] = OUT,
    python: Annotated[str, typer.Option(help="an interpreter of that machine's version; builds pycuda")] = "python3.12",
    cuda: Annotated[Path, typer.Option(help="CUDA toolkit, for its headers")] = Path("/usr/local/cuda"),
) -> None:
    """Write a folder with files of at most 60 MiB, and print what to run on the GPU machine."""
    wheels = out / "wheels"
    try:
        shutil.rmtree(wheels, ignore_errors=True)
        wheels.mkdir(parents=True)
        make_wheels(python, cuda, wheels)
        parts = [pack(out / "tree.tar.xz", source_files()), pack(out / "wheels.tar", wheels.iterdir(), out)]
    except (HBAFError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(str(error)) from error
    for part in parts:
        print(f"{part.stat().st_size / (1 << 20):6.1f} MiB  {part}")
    print(INSTRUCTIONS)


def make_wheels(python: str, cuda: Path, folder: Path) -> None:
    """Download WHEELS, and build pycuda, which the package registry has only as source, without a GPU driver.

    pycuda is built without cuRAND: with it (the default), pycuda loads only after PyTorch has loaded its libraries.

    Raises:
        BackendError: pip failed; the message ends with pip's last lines.
    """
    path = subprocess.check_output([python, "-c", "import sys; print(sys.executable)"], text=True).strip()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "empty.c").write_text("")
        stub = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", f"{name}/libcuda.so", f"{name}/empty.c"]
        subprocess.run(stub, check=True)
        # The stub library defines no symbols. Without --no-as-needed the linker would drop it, and the wheel would not
        # link to the driver library (libcuda.so.1).
        settings = {
            "CUDA_ROOT": str(cuda), "CUDA_ENABLE_CURAND": False, "CUDA_ENABLE_GL": False, "CUDADRV_LIB_DIR": [name],
            "LDFLAGS": ["-Wl,--no-as-needed", f"-L{name}", "-lcuda"],
        }  # fmt: skip
        (home / ".aksetup-defaults.py").write_text("".join(f"{k} = {v!r}\n" for k, v in settings.items()))
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        download = ["download", "--only-binary=:all:", *platforms, "-d", str(folder), *WHEELS]
        for command in (download, ["wheel", "--no-cache-dir", "-w", str(folder), PYCUDA]):
            pip = [path, "-m", "pip", command[0], "-q", "--no-deps", *command[1:]]
            environment = {**os.environ, "HOME": name}  # pycuda's build reads its settings from HOME
            process = subprocess.run(pip, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if process.returncode:
                last = "\n".join(process.stdout.splitlines()[-15:])
                raise BackendError(f"pip {command[0]} failed (--cuda must name the folder of CUDA's headers):\n{last}")


def source_files() -> list[Path]:
    """Return the files of the repository that git does not ignore."""
    output = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    return [path for line in output.splitlines() if (path := ROOT / line).is_file()]


def pack(archive: Path, files: Iterable[Path], root: Path = ROOT) -> Path:
    """Pack files into an archive, with paths relative to `root`.

    Raises:
        BackendError: the archive is larger than `MAX_PART`.
    """
    with tarfile.open(archive, "w:xz" if archive.suffix == ".xz" else "w") as tar:
        for path in sorted(files):
            tar.add(path, path.relative_to(root))
    if (size := archive.stat().st_size) > MAX_PART:
        raise BackendError(f"{archive} has {size / (1 << 20):.0f} MiB; at most {MAX_PART >> 20} MiB are allowed")
    return archive


if __name__ == "__main__":
    app()
