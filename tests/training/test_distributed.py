"""Two processes take the same steps as one process that accumulates two batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]

# Runs in separate processes, as torchrun starts them. No dropout, since each process has its own random numbers.
WORKER = """
import sys
from pathlib import Path
import numpy as np
import training
from training import distributed, loop
from training.config import ModelConfig, TrainConfig
import torch
torch.set_num_threads(1)
out, accumulate = Path(sys.argv[1]), int(sys.argv[2])
device = distributed.Compute("cpu").start()
config = TrainConfig(corpus="features:" + sys.argv[3], fold=0, epochs=int(sys.argv[4]), turns=36, accumulate=accumulate,
                     drop_audio=0.0, drop_text=0.0, hide_speaker=0.0, ema=0.9)
loop.train(config, out, ModelConfig(width=16, heads=2, contrastive_dim=8, dropout=0.0, window=4), device=device)
"""


@pytest.fixture
def features(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    count = 120
    emotion = np.array(["joy", "anger", "fear"])[rng.integers(0, 3, count)]
    np.savez(
        tmp_path / "f.npz",
        text=rng.standard_normal((count, 6)).astype(np.float32),
        audio=rng.standard_normal((count, 5)).astype(np.float32),
        emotion=emotion,
        dialogue_id=np.arange(count) // 4,
        utterance_id=np.arange(count) % 4,
        speaker=np.array(["a", "b"] * (count // 2)),
    )
    return tmp_path / "f.npz"


def start(out, accumulate, features, epochs, rank=None, size=1, port=0):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    if rank is not None:
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port)}  # fmt: skip
    command = [sys.executable, "-c", WORKER, str(out), str(accumulate), str(features), str(epochs)]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output


def run_both(folder, features, epochs):
    """Train in one process and in two. Return the logs and the states of both."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    one = start(folder / "one", 2, features, epochs)
    wait_for(one, *(start(folder / "two", 1, features, epochs, rank, 2, port) for rank in range(2)))
    logs = ((folder / name / "log.jsonl").read_text().splitlines() for name in ("one", "two"))
    states = (load_file(folder / name / "state.safetensors") for name in ("one", "two"))
    return [[json.loads(line) for line in log] for log in logs], list(states)


@pytest.mark.slow
def test_gradients_of_two_processes_equal_those_of_one(tmp_path, features):
    """AdamW's first moment after one step is a tenth of the gradient."""
    (one, two), (a, b) = run_both(tmp_path, features, epochs=1)
    assert len(one) == len(two) == 1, "only the first process writes"
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-6)
    moments = [name for name in a if name.endswith("exp_avg")]
    assert set(a) == set(b)
    assert sum(float(a[name].abs().max()) > 1e-4 for name in moments) > 30
    for name in moments:
        assert torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-8), name


@pytest.mark.slow
def test_weights_of_two_processes_equal_those_of_one(tmp_path, features):
    (one, two), (a, b) = run_both(tmp_path, features, epochs=4)
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)
    weights = [name for name in a if name.startswith(("weight", "average"))]
    assert max(float((a[name] - b[name]).abs().max()) for name in weights) < 1e-3
