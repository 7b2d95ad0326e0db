"""The commands of docs/calibration.md on a tiny model: from a checkpoint to a signed bundle and engines."""

import importlib.util
import json
import subprocess

import pytest

from export import bundle, calibrate, engine, float16, quantize, to_onnx, verify
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import load_bundle
from tests.corpora import write_manifest
from training.command import cli
from training.config import TrainConfig
from training.evaluate import evaluate
from training.loop import train


@pytest.fixture
def run_command(capsys):
    """Run a command with --json and return its result."""

    def run(module, *arguments):
        cli(module.main, [*map(str, arguments), "--json"])
        (line,) = capsys.readouterr().out.splitlines()
        return json.loads(line)

    return run


def key_pair(folder):
    """An Ed25519 key pair as openssl makes it."""
    private, public = folder / "private.pem", folder / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.mark.slow
def test_own_data_become_a_signed_bundle(small_corpora, quantise_small_matrices, run_command):
    corpus, folder = f"manifest:{write_manifest(small_corpora / 'own', 400)}", small_corpora / "run"
    train(TrainConfig(corpus=corpus, epochs=3, turns=16, max_turns=8, learning_rate=3e-3), folder)
    evaluate(folder)

    exported = run_command(to_onnx, folder, "--out", folder / "float32", "--name", "my model")
    assert len(exported["differences"]) == 4
    run_command(float16, folder / "float32", "--out", folder / "float16")
    calibration = folder / "calibration.json"
    ranges = run_command(calibrate, folder / "float32", "--out", calibration, "--threads", 1)
    assert ranges["data"]["turns"] >= 200
    loose = ["--max-f1-drop", 0.05, "--max-flips", 0.1, "--threads", 1]
    result = run_command(quantize, folder / "float32", "--calibration", calibration, "--out", folder / "int8", *loose)
    assert result["steps"][-1]["flip_rate"] <= 0.1
    run_command(quantize, folder / "float32", "--calibration", calibration, "--profile", "tensorrt",
                "--out", folder / "int8-tensorrt", *loose)  # fmt: skip
    precisions = ("float32", "float16", "int8", "int8-tensorrt")
    parity = run_command(verify, folder, *(folder / p for p in precisions), "--on", corpus, "--split", "dev",
                         "--save", folder / "parity.json")  # fmt: skip
    assert [step["name"] for step in parity["steps"]][-4:] == list(precisions)
    private, public = key_pair(small_corpora)
    finished = run_command(bundle, folder / "int8", "--parity", folder / "parity.json", "--sign", private, "--zip",
                           "--out", small_corpora / "bundle")["out"]  # fmt: skip
    with HBAFRuntime(finished, threads=1, public_key=public) as runtime:
        assert runtime.predict(text="wow it is").label in ("pleased", "upset")
    assert "my model" in (small_corpora / "bundle" / "MODEL_CARD.md").read_text()
    quantisation = load_bundle(finished, public).manifest["quantisation"]
    assert quantisation["calibration"] == calibrate.load(calibration).sha256
    if importlib.util.find_spec("tensorrt_rtx"):
        engines = run_command(engine, folder / "int8-tensorrt", "--library", "rtx", "--capability", "8.6", "--batch", 2,
                              "--cache", small_corpora / "engines")  # fmt: skip
        assert len(engines["engines"]) == 4
