"""The five commands of export/WORKFLOW.md, from a checkpoint to a signed bundle and engines, on a tiny model."""

import importlib.util
import json
import subprocess

import pytest

from export import bundle, calibrate, engine, half, quantize, to_onnx, verify
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from tests.training.test_commands import mine
from training.command import cli
from training.config import TrainConfig
from training.evaluate import evaluate
from training.loop import train


@pytest.fixture
def command(capsys):
    """Runs a verb with its arguments; the JSON of its last line where it has one."""

    def run(verb, *arguments):
        cli(verb.main, list(map(str, arguments)))
        last = capsys.readouterr().out.strip().splitlines()[-1]
        return json.loads(last) if last.startswith("{") else last

    return run


def keys(folder):
    """An Ed25519 key pair as openssl makes it."""
    private, public = folder / "private.pem", folder / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.mark.slow
def test_from_own_data_to_a_signed_bundle(small, small_counts, command):
    own = mine(small / "own", 400)
    data, run = f"manifest:{own}", small / "run"
    train(TrainConfig(corpus=data, epochs=3, turns=16, max_turns=8, learning_rate=3e-3), run)
    evaluate(run)

    command(to_onnx, run, "--out", run / "float32", "--name", "my model")
    command(half, run / "float32", "--out", run / "float16")
    ranges = command(calibrate, run / "float32", "--out", run / "calibration.json", "--threads", 1)
    assert ranges["data"]["turns"] >= 200
    found = command(quantize, run / "float32", "--calibration", run / "calibration.json", "--out", run / "int8",
                    "--max-f1-drop", 0.05, "--max-flips", 0.1, "--threads", 1)  # fmt: skip
    assert found["steps"][-1]["flip_rate"] <= 0.1
    command(quantize, run / "float32", "--calibration", run / "calibration.json", "--profile", "tensorrt",
            "--out", run / "int8-tensorrt", "--max-f1-drop", 0.05, "--max-flips", 0.1, "--threads", 1)  # fmt: skip
    precisions = ("float32", "float16", "int8", "int8-tensorrt")
    parity = command(verify, run, *(run / p for p in precisions), "--on", data, "--split", "test",
                     "--save", run / "parity.json")  # fmt: skip
    assert [step["name"] for step in parity["steps"]][-4:] == list(precisions)
    private, public = keys(small)
    made = command(bundle, run / "int8", "--parity", run / "parity.json", "--sign", private, "--zip",
                   "--out", small / "bundle")  # fmt: skip
    with HBAFRuntime(made, threads=1, public_key=public) as runtime:
        assert runtime.predict(text="wow it is").label in ("pleased", "upset")
    assert "my model" in (small / "bundle" / "MODEL_CARD.md").read_text()
    assert load_bundle(made, public).manifest["quantisation"]["calibration"] == ranges_sha(run)
    if importlib.util.find_spec("tensorrt_rtx"):
        engines = command(engine, run / "int8-tensorrt", "--library", "rtx", "--capability", "8.6", "--batch", 2,
                          "--cache", small / "engines")  # fmt: skip
        assert len(engines["engines"]) == 4


def ranges_sha(run):
    """Of the calibration file."""
    return calibrate.load(run / "calibration.json").sha256
