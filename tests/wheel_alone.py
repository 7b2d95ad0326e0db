"""Check the installed wheel. .ci/run runs this file in an environment with only the wheel and its dependencies."""

import importlib.util
import subprocess
import sys

import numpy as np

import hbaf_edge
from hbaf_edge import HBAFRuntime
from hbaf_edge.ort import onnxruntime


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `hbaf-edge` with these arguments and capture its output."""
    return subprocess.run([sys.executable, "-m", "hbaf_edge", *arguments], capture_output=True, text=True)


def main() -> None:
    assert importlib.util.find_spec("torch") is None, "torch must not be installed here"
    assert "site-packages" in hbaf_edge.__file__, hbaf_edge.__file__
    runtime = HBAFRuntime()
    conversation = runtime.conversation()
    text = "I got the job! This is the best day of my life!"
    happy = runtime.predict(text=text, speaker="anna", conversation=conversation)
    samples = (0.1 * np.sin(np.arange(48_000) / 20)).astype(np.float32)
    both = runtime.predict(samples, sample_rate=48_000, text="Oh no.", speaker="bob", conversation=conversation)
    assert happy.label == "joy", happy
    assert (both.turn, both.modalities) == (1, ("audio", "text")), both
    demo = run("demo")
    assert demo.returncode == 0, demo.stderr
    assert "8 turns" in demo.stdout, demo.stdout
    advice = run("advise")
    assert advice.returncode == 0, advice.stderr
    assert "HBAFRuntime(" in advice.stdout, advice.stdout
    benchmark = run("benchmark", "--report", "out")
    assert benchmark.returncode == 2, "pictures of a report need matplotlib"
    assert "hbaf-edge[bench]" in benchmark.stderr, benchmark.stderr
    benchmark = run("benchmark", "--quick", "--repeats", "6")
    assert benchmark.returncode == 0, benchmark.stderr
    assert "A turn by stage" in benchmark.stdout
    assert not {"torch", "transformers", "tensorrt"} & set(sys.modules)
    print(f"passed: Python {sys.version.split()[0]}, ONNX Runtime {onnxruntime.__version__}")


if __name__ == "__main__":
    main()
