"""Run by .ci/run inside of an environment that holds the wheel and nothing else of ours: a prediction, no torch."""

import importlib.util
import json
import subprocess
import sys

import numpy as np

import hbaf_edge
from hbaf_edge import HBAFRuntime
from hbaf_edge.ort import onnxruntime


def main() -> None:
    assert importlib.util.find_spec("torch") is None, "torch must not be installed here"
    assert "site-packages" in hbaf_edge.__file__, hbaf_edge.__file__
    runtime = HBAFRuntime()
    chat = runtime.conversation()
    happy = runtime.predict(text="I got the job! This is the best day of my life!", speaker="anna", conversation=chat)
    samples = (0.1 * np.sin(np.arange(48_000) / 20)).astype(np.float32)
    both = runtime.predict(samples, sample_rate=48_000, text="Oh no.", speaker="bob", conversation=chat)
    assert happy.label == "joy", happy
    assert (both.turn, both.modalities) == (1, ("audio", "text")), both
    command = [sys.executable, "-m", "hbaf_edge", "demo"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "8 turns" in shown, shown
    advised = subprocess.run(
        [*command[:-1], "advise", "--as-recorded"], check=True, capture_output=True, text=True
    ).stdout
    assert "HBAFRuntime(" in advised, advised
    refused = subprocess.run([*command[:-1], "benchmark", "--report", "out"], capture_output=True, text=True)
    assert refused.returncode == 2, "a report's pictures need matplotlib"
    assert "hbaf-edge[bench]" in refused.stderr, refused.stderr
    measured = subprocess.run([*command[:-1], "benchmark", "--quick", "--repeats", "6"], capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    assert "A turn, stage by stage" in measured.stdout
    assert not {"torch", "transformers", "tensorrt"} & set(sys.modules)
    versions = {"python": sys.version.split()[0], "onnxruntime": onnxruntime.__version__}
    print(json.dumps({**versions, "label": happy.label}))


if __name__ == "__main__":
    main()
