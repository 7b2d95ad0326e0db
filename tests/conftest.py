"""Fixtures that several packages share: the default runtime, a tiny random model, and speech-like audio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import DEFAULT
from tests.corpora import small_corpora  # noqa: F401 - a fixture for all tests

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "hbaf_edge" / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `data` without the corpora of docs/data.md, and tests marked `gpu` without a GPU.

    Tests that use the tiny model get the marker `exports`, so that `make quick` can leave out its export (30 s).
    """
    import torch

    from training.corpora.records import data_folder

    no_gpu = pytest.mark.skip(reason="PyTorch does not find an NVIDIA GPU")
    no_data = pytest.mark.skip(reason="the corpora of docs/data.md are missing; set HBAF_DATA")
    for item in items:
        if "tiny" in getattr(item, "fixturenames", ()):
            item.add_marker("exports")
        if item.get_closest_marker("data") and not (data_folder() / "meld").is_dir():
            item.add_marker(no_data)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never write to the committed ledger of test scores."""
    monkeypatch.setenv("HBAF_LEDGER", str(tmp_path_factory.mktemp("ledger") / "ledger.jsonl"))


@pytest.fixture(scope="session")
def runtime() -> HBAFRuntime:
    """A runtime with the default model on one thread."""
    return HBAFRuntime(threads=1)


def speech(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Return (samples,) float32 that resembles speech: harmonics of a varying pitch and loudness, and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * t + seed)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t))
    return (0.1 * voice + 0.003 * rng.standard_normal(t.size)).astype(np.float32)


@dataclass
class Tiny:
    """A tiny random model, its encoders, the exported graphs and the bundle."""

    model: Any
    text: Any
    audio: Any
    onnx: Path
    bundle: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An HBAF with d = 32 and a window of 5 on tiny random encoders, exported and bundled by the real code."""
    import shutil

    import torch
    from transformers import BertConfig, BertModel

    from export.bundle import write_bundle
    from export.to_onnx import export
    from training.config import ModelConfig
    from training.model import HBAF
    from training.whisper import WhisperEncoder, WhisperSize

    torch.manual_seed(7)
    config = ModelConfig(audio_dim=16, audio_states=3, text_dim=24, text_states=3, width=32, heads=2, window=5)
    model = HBAF(config)
    for table in [b.table for b in model.bias] + [model.context.bias.table]:
        torch.nn.init.normal_(table)  # they start at zero, and would leave order and speakers untested
    for head in model.head[-1].weight, model.absent:
        torch.nn.init.normal_(head)
    bert = BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    text = BertModel(bert, add_pooling_layer=False)
    audio = WhisperEncoder(WhisperSize(dim=16, heads=2, layers=2))
    for parameter in (p for part in (model, text, audio) for p in part.parameters()):
        if parameter.ndim == 1 or not parameter.any():
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # norms and biases start with equal values
    folder = tmp_path_factory.mktemp("tiny")
    export(model, audio, text, folder / "onnx")
    shutil.copy(DEFAULT / "tokenizer.json", folder / "onnx")
    about = {
        "name": "tiny",
        "precision": "float32",
        "temperatures": {"audio": 1.0, "text": 1.0, "audio+text": 1.0},
        "licence": {"id": "Apache-2.0", "commercial": True, "why": "random weights"},
    }
    bundle = write_bundle(folder / "onnx", folder / "bundle", config, about)
    return Tiny(model.eval(), text.eval(), audio.eval(), folder / "onnx", bundle)


@pytest.fixture
def quantise_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let INT8 conversion treat the small matrices of the tiny model as large ones."""
    for module in ("quantizable_matmuls", "qdq"):
        monkeypatch.setattr(f"export.{module}.SMALLEST", 64)


@pytest.fixture
def dialogues() -> Any:
    """Three conversations of twelve turns on the example's clips and texts."""
    from export.verify import example_dialogue

    return [example_dialogue(12, seed) for seed in range(3)]


@pytest.fixture
def calibrated(tiny: Tiny, dialogues: Any, quantise_small_matrices: None, tmp_path: Path) -> Any:
    """The calibration of the tiny model, also written to tmp_path / "calibration.json"."""
    from export.calibrate import calibrate
    from hbaf_edge.bundle import load_bundle

    return calibrate(load_bundle(tiny.bundle), dialogues, tmp_path / "calibration.json", threads=1)
