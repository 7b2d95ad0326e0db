"""A checkpoint is a folder of safetensors and JSON files: the model, its encoders, and how they were trained.

hbaf.safetensors     HBAF
text.safetensors     the packaged text encoder, fine-tuned or not
audio.safetensors    the packaged audio encoder, if it was fine-tuned
text_encoder/, audio_encoder/    instead of these, an encoder from a local Hugging Face folder
config.json          model: sizes and flags; about: training config, corpora, scores, temperatures
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import nn

from training import encoders
from training.config import ModelConfig
from training.errors import TrainingError
from training.files import write, write_json
from training.hub import WaveEncoder
from training.model import HBAF

NO_ENCODER = "none"  # encoder name of a model that is trained on pre-extracted vectors


class Checkpoint(NamedTuple):
    """The modules of a checkpoint in eval mode; the encoders are None for a model of pre-extracted vectors."""

    hbaf: HBAF
    text: nn.Module | None
    audio: nn.Module | None
    about: dict[str, Any]


def save(
    folder: Path, model: HBAF, text: nn.Module | None, about: dict[str, Any], audio: nn.Module | None = None
) -> None:
    """Write a checkpoint; pass `audio` only if it was fine-tuned. config.json is last and marks it as complete."""
    for role, module in (("hbaf", model), ("text", text), ("audio", audio)):
        if module is None:
            continue
        name = "" if role == "hbaf" else getattr(model.config, f"{role}_encoder")
        if Path(name or NO_ENCODER).is_dir():
            _save_local_encoder(folder / f"{role}_encoder", module, Path(name))
        else:
            weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            write(folder / f"{role}.safetensors", as_bytes(weights))
    write_json(folder / "config.json", {"model": model.config.to_json(), "about": about}, indent=1)


def _save_local_encoder(target: Path, module: nn.Module, source: Path) -> None:
    """Save an encoder from a local folder with its config and tokeniser, as another local folder."""
    model: Any = module.model if isinstance(module, WaveEncoder) else module
    model.save_pretrained(target)
    tokenizer = source / "tokenizer.json"
    if tokenizer.exists() and tokenizer.resolve() != (target / "tokenizer.json").resolve():
        shutil.copy(tokenizer, target)


def load(folder: Path) -> Checkpoint:
    """Load a checkpoint.

    Raises:
        TrainingError: the folder is not a checkpoint, or another version wrote it.
    """
    about, config = describe(folder)
    loaded: dict[str, nn.Module | None] = {}
    for role, load_encoder in (("text", encoders.load_text), ("audio", encoders.load_audio)):
        local = folder / f"{role}_encoder"
        if local.is_dir():
            config = replace(config, **cast(Any, {f"{role}_encoder": str(local)}))
        name = getattr(config, f"{role}_encoder")
        module = loaded[role] = None if name == NO_ENCODER else load_encoder(name)
        weights = folder / f"{role}.safetensors"
        if module is not None and weights.exists():
            module.load_state_dict(load_file(weights))
    model = HBAF(config)
    try:
        model.load_state_dict(load_file(folder / "hbaf.safetensors"))
    except RuntimeError as error:
        raise TrainingError(f"{folder}: weights and config.json belong to different models ({error})") from error
    return Checkpoint(model.eval(), loaded["text"], loaded["audio"], about)


def describe(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Read `about` and the model config of a checkpoint without loading weights."""
    path = folder / "config.json"
    if not path.is_file():
        raise TrainingError(f"{folder} is not a checkpoint: it has no config.json (training.train writes one)")
    stored = json.loads(path.read_text())
    try:
        return stored["about"], ModelConfig.from_json(stored["model"])
    except (KeyError, TypeError, TrainingError) as error:
        raise TrainingError(f"{path}: {error}; another version wrote this checkpoint") from error


def update_about(folder: Path, **about: Any) -> None:
    """Add entries, such as scores, to `about` in a checkpoint's config.json."""
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    stored["about"].update(about)
    write_json(path, stored, indent=1)
