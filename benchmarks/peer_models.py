"""Build the models that benchmarks/peers.py compares with, and cache them. The first run takes a few minutes.

The usual encoders of the field have their published sizes and random weights, because latency does not depend on the
weights' values and no package distributes the trained ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from training.encoders import SOURCES, fetch
from training.files import cache_folder


def cached(name: str, build: Callable[[Path], object]) -> Path:
    """Return a folder of the cache. `build` fills it the first time; a failed build leaves no folder."""
    target = cache_folder() / "peers" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            folder = Path(work) / "complete"
            folder.mkdir()
            build(folder)
            folder.rename(target)
    return target


def usual_encoders() -> Path:
    """Return a folder with roberta.onnx and wav2vec2.onnx, and with -int8 and -uint8 of either.

    The INT8 files quantize MatMul dynamically, with signed or unsigned weights; which is faster depends on the
    processor. Static INT8 of the complete encoder costs accuracy. Embedding table and convolutions stay in float32.
    """

    def build(folder: Path) -> None:  # in its own process, so that the memory of the exports is freed
        subprocess.run([sys.executable, "-m", "benchmarks.peer_models", str(folder)], check=True)

    return cached("usual-2", build)


def whisper() -> Path:
    """Return Whisper tiny.en for speech recognition in CTranslate2's format; our audio encoder is part of it."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            weights = fetch(SOURCES["audio"], Path(work)) / SOURCES["audio"].weights[0]
            shutil.copytree(weights.parent, folder, dirs_exist_ok=True)

    return cached("whisper", build)


def export_usual_encoders(folder: Path) -> None:
    """Export both usual encoders to a folder, in float32 and in INT8."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import RobertaConfig, RobertaModel, Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    sizes = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1)
    models = {
        "roberta": (RobertaModel(sizes, add_pooling_layer=False), torch.randint(5, 100, (2, 17)), "tokens"),
        "wav2vec2": (Wav2Vec2Model(Wav2Vec2Config()), torch.randn(2, 48_000), "samples"),
    }
    for name, (model, example, axis) in models.items():
        full = folder / f"{name}.onnx"
        dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
        model.config.return_dict = False
        torch.onnx.export(model.eval(), (example,), full, dynamo=True, external_data=False, opset_version=18,
                          input_names=[axis], output_names=["states"], dynamic_shapes=(dims,))  # fmt: skip
        for suffix, kind in (("int8", QuantType.QInt8), ("uint8", QuantType.QUInt8)):
            int8 = folder / f"{name}-{suffix}.onnx"
            quantize_dynamic(full, int8, per_channel=True, weight_type=kind, op_types_to_quantize=["MatMul"])


if __name__ == "__main__":
    export_usual_encoders(Path(sys.argv[1]))
