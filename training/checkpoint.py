"""A checkpoint is a folder: hbaf.safetensors, text.safetensors (the text encoder, fine-tuned or not), config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertModel

from training import encoders
from training.config import ModelConfig
from training.model import HBAF


def save(folder: Path, model: HBAF, text: nn.Module, about: dict[str, Any]) -> None:
    """Write the checkpoint; `about` says how it came to be (training config, scores, temperatures)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("hbaf", model), ("text", text)):
        partial = folder / f"{name}.partial"
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, partial)
        partial.rename(folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps({"model": model.config.to_json(), "about": about}, indent=1))


def load(folder: Path) -> tuple[HBAF, BertModel, dict[str, Any]]:
    """Model and text encoder in eval mode, and what `save` was told about them."""
    stored = json.loads((folder / "config.json").read_text())
    model = HBAF(ModelConfig.from_json(stored["model"]))
    model.load_state_dict(load_file(folder / "hbaf.safetensors"))
    text = encoders.load_text()
    text.load_state_dict(load_file(folder / "text.safetensors"))
    return model.eval(), text.eval(), stored["about"]


def amend(folder: Path, **about: Any) -> None:
    """Add to what a checkpoint says about itself, such as its scores."""
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    stored["about"].update(about)
    path.write_text(json.dumps(stored, indent=1))
