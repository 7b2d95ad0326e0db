"""Encoders from a local Hugging Face folder: BERT and RoBERTa for text; wav2vec 2.0, HuBERT and WavLM for audio.

The folder contains config.json, model.safetensors and, for text, tokenizer.json. Nothing is downloaded or unpickled.
Audio encoders of this kind read the waveform. Export supports only Whisper and raises an error for them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from training.errors import TrainingError

TEXT_KINDS = ("bert", "roberta")
AUDIO_KINDS = ("wav2vec2", "hubert", "wavlm")


def kind_of(folder: Path) -> str:
    """The model_type in a folder's config.json."""
    if not (folder / "config.json").is_file():
        raise TrainingError(
            f"{folder} contains no config.json; give the name of an encoder or a local Hugging Face folder"
        )
    return str(json.loads((folder / "config.json").read_text()).get("model_type", "unknown"))


def load(folder: Path, kinds: tuple[str, ...], role: str) -> Any:
    """Load the model of a folder in eval mode. Raise TrainingError unless its kind is one of `kinds`."""
    kind = kind_of(folder)
    if kind not in kinds:
        raise TrainingError(f"{folder} is a {kind} model; the {role} encoder must be one of {', '.join(kinds)}")
    if not (folder / "model.safetensors").is_file():
        raise TrainingError(
            f"{folder} contains no model.safetensors; save it with save_pretrained (pickles are not read)"
        )
    options = {"add_pooling_layer": False} if kinds == TEXT_KINDS else {}
    return AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options).eval()


def load_text(folder: Path) -> nn.Module:
    """Load BERT or RoBERTa for `encoders.text_states`."""
    if kind_of(folder) in TEXT_KINDS and not (folder / "tokenizer.json").is_file():
        raise TrainingError(f"{folder} contains no tokenizer.json; save it with the fast tokeniser's save_pretrained")
    return cast(nn.Module, load(folder, TEXT_KINDS, "text"))


def size_of(folder: Path) -> tuple[int, int]:
    """Width and number of states (embedding and layers)."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return int(config.hidden_size), int(config.num_hidden_layers) + 1


class WaveEncoder(nn.Module):
    """wav2vec 2.0, HuBERT or WavLM: (B, samples) -> (B, frames at 50 Hz, layers + 1, dim)."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = load(folder, AUDIO_KINDS, "audio")
        self.model.config.apply_spec_augment = False  # training/augment.py does it

    def prepare(self, samples: Tensor) -> Tensor:
        """Normalise (samples,) at 16 kHz to mean 0 and variance 1, as these models' feature extractor does."""
        return (samples - samples.mean()) / torch.sqrt(samples.var(correction=0) + 1e-7)

    def frames(self, prepared: int) -> int:
        """Number of states for this number of samples."""
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride):
            prepared = (prepared - kernel) // stride + 1
        return prepared

    def forward(self, waves: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode waveforms; `mask` (B, samples) marks padding.

        The convolutional front end normalises over time, so padding would change the states of a clip. Clips of
        different lengths are therefore encoded one by one.
        """
        if mask is None or bool(mask.all()):
            return torch.stack(self.model(waves, output_hidden_states=True).hidden_states, 2)
        each = [self(wave[None, : int(m.sum())])[0] for wave, m in zip(waves, mask)]
        longest = max(len(states) for states in each)
        return torch.stack([nn.functional.pad(s, (0, 0, 0, 0, 0, longest - len(s))) for s in each])
