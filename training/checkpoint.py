"""A checkpoint is a folder of safetensors and JSON: the model, its encoders, and how they came to be.

hbaf.safetensors     HBAF
text.safetensors     the packaged text encoder, fine-tuned or not
audio.safetensors    the packaged audio encoder, where it was fine-tuned
text_encoder/, audio_encoder/    in their place, an encoder of a local Hugging Face folder
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

NONE = "none"  # in place of an encoder's name: the corpus brings states of its own


class Stored(NamedTuple):
    """What a checkpoint holds, all in eval mode; an encoder is None where the corpus brought states of its own."""

    hbaf: HBAF
    text: nn.Module | None
    audio: nn.Module | None
    about: dict[str, Any]


def save(
    folder: Path, model: HBAF, text: nn.Module | None, about: dict[str, Any], audio: nn.Module | None = None
) -> None:
    """Write the checkpoint; `audio` only if it is not as packaged. config.json comes last: with it, all is there."""
    for role, module in (("hbaf", model), ("text", text), ("audio", audio)):
        if module is None:
            continue
        name = "" if role == "hbaf" else getattr(model.config, f"{role}_encoder")
        if Path(name or NONE).is_dir():
            _save_folder(folder / f"{role}_encoder", module, Path(name))
        else:
            weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            write(folder / f"{role}.safetensors", as_bytes(weights))
    write_json(folder / "config.json", {"model": model.config.to_json(), "about": about}, indent=1)


def _save_folder(target: Path, module: nn.Module, source: Path) -> None:
    """A local encoder with its own config and tokeniser, loadable as any local folder is."""
    model: Any = module.model if isinstance(module, WaveEncoder) else module
    model.save_pretrained(target)
    tokenizer = source / "tokenizer.json"
    if tokenizer.exists() and tokenizer.resolve() != (target / "tokenizer.json").resolve():
        shutil.copy(tokenizer, target)


def load(folder: Path) -> Stored:
    """The checkpoint of a folder.

    Raises:
        TrainingError: where it is none, or one of another version.
    """
    about, config = describe(folder)
    parts: dict[str, nn.Module | None] = {}
    for role, read in (("text", encoders.load_text), ("audio", encoders.load_audio)):
        own = folder / f"{role}_encoder"
        if own.is_dir():
            config = replace(config, **cast(Any, {f"{role}_encoder": str(own)}))
        name = getattr(config, f"{role}_encoder")
        module = parts[role] = None if name == NONE else read(name)
        weights = folder / f"{role}.safetensors"
        if module is not None and weights.exists():
            module.load_state_dict(load_file(weights))
    model = HBAF(config)
    try:
        model.load_state_dict(load_file(folder / "hbaf.safetensors"))
    except RuntimeError as error:
        raise TrainingError(f"{folder}: weights and config.json are not of the same model ({error})") from error
    return Stored(model.eval(), parts["text"], parts["audio"], about)


def describe(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """What a checkpoint says about itself, and its model's config, without loading weights."""
    path = folder / "config.json"
    if not path.is_file():
        raise TrainingError(f"{folder} is not a checkpoint: it holds no config.json (training.train writes one)")
    stored = json.loads(path.read_text())
    try:
        return stored["about"], ModelConfig.from_json(stored["model"])
    except (KeyError, TypeError, TrainingError) as error:
        raise TrainingError(f"{path}: {error}; it is a checkpoint of another version") from error


def amend(folder: Path, **about: Any) -> None:
    """Add to what a checkpoint says about itself, such as its scores."""
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    stored["about"].update(about)
    write_json(path, stored, indent=1)
