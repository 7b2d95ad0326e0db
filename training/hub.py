"""Encoders from a local Hugging Face folder: BERT and RoBERTa for text; wav2vec 2.0, HuBERT and WavLM for audio.

Nothing is fetched and nothing is unpickled: the folder holds config.json, model.safetensors and, for text,
tokenizer.json. An audio encoder of this kind reads the waveform; export takes Whisper only and says so.
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
    """model_type of a folder's config.json."""
    if not (folder / "config.json").is_file():
        raise TrainingError(f"{folder} holds no config.json; an encoder is a name or a local Hugging Face folder")
    return str(json.loads((folder / "config.json").read_text()).get("model_type", "unknown"))


def load(folder: Path, kinds: tuple[str, ...], role: str) -> Any:
    """The model of a folder in eval mode, after its kind was checked."""
    kind = kind_of(folder)
    if kind not in kinds:
        raise TrainingError(f"{folder} is a {kind} model; the {role} encoder is one of {', '.join(kinds)}")
    if not (folder / "model.safetensors").is_file():
        raise TrainingError(f"{folder} holds no model.safetensors; save it with save_pretrained (pickles are not read)")
    options = {"add_pooling_layer": False} if kinds == TEXT_KINDS else {}
    return AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options).eval()


def load_text(folder: Path) -> nn.Module:
    """BERT or RoBERTa, ready for `encoders.text_states`."""
    if kind_of(folder) in TEXT_KINDS and not (folder / "tokenizer.json").is_file():
        raise TrainingError(f"{folder} holds no tokenizer.json; save it with the fast tokeniser's save_pretrained")
    return cast(nn.Module, load(folder, TEXT_KINDS, "text"))


def size_of(folder: Path) -> tuple[int, int]:
    """Width and number of states (layers and what they start from)."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return int(config.hidden_size), int(config.num_hidden_layers) + 1


class WaveEncoder(nn.Module):
    """wav2vec 2.0, HuBERT or WavLM: (B, samples) -> (B, frames at 50 Hz, layers + 1, dim)."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = load(folder, AUDIO_KINDS, "audio")
        self.model.config.apply_spec_augment = False  # ours is training/augment.py's

    def prepare(self, samples: Tensor) -> Tensor:
        """(samples,) at 16 kHz -> mean 0 and variance 1, as these models' own feature extractor does."""
        return (samples - samples.mean()) / torch.sqrt(samples.var(correction=0) + 1e-7)

    def frames(self, prepared: int) -> int:
        """How many states that many samples give."""
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride):
            prepared = (prepared - kernel) // stride + 1
        return prepared

    def forward(self, waves: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, samples) where clips of several lengths were padded; these models take it only by themselves.

        Their convolutional front end normalises over time, so a padded clip would not be heard as it is alone: clips
        of a batch go through one after another.
        """
        if mask is None or bool(mask.all()):
            return torch.stack(self.model(waves, output_hidden_states=True).hidden_states, 2)
        each = [self(wave[None, : int(m.sum())])[0] for wave, m in zip(waves, mask)]
        longest = max(len(states) for states in each)
        return torch.stack([nn.functional.pad(s, (0, 0, 0, 0, 0, longest - len(s))) for s in each])
