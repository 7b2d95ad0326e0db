"""A bundle back into a checkpoint: the default model is there to be trained on, without a checkpoint at hand.

    python -m training.from_bundle hbaf_edge/models/default --out runs/base

INT8 weights come back as what they are multiplied out. What only training needs (uni-modal heads, contrastive
projections) is not in a bundle and starts afresh.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hbaf_edge.backends.cuda.weights import by_name, laid_out, weights
from hbaf_edge.bundle import DEFAULT, GRAPHS, Bundle, load_bundle
from training import checkpoint, encoders
from training.command import cli
from training.config import ModelConfig
from training.errors import TrainingError
from training.model import HBAF

NOT_SHIPPED = re.compile(r"^(unimodal_heads|contrast)\.")
MIXES = {"audio": "audio.mix.logits", "text": "text.mix.logits"}


def restore(bundle: Bundle) -> tuple[HBAF, nn.Module, nn.Module]:
    """Model, text encoder and audio encoder with a bundle's weights.

    Raises:
        TrainingError: where a weight of the model is not in the bundle.
    """
    try:
        config = ModelConfig.from_json(bundle.manifest["model"])
    except (KeyError, TrainingError) as error:
        raise TrainingError(f"the bundle's model cannot be trained on: {error}") from error
    parts: dict[str, dict[str, NDArray[Any]]] = {"model": {}, "text": {}, "audio": {}}
    for graph in GRAPHS:
        for name, value in weights(bundle.graph(graph)).items():
            owner, _, rest = name.partition(".")
            if owner == "model":
                parts["model"][rest] = value
            elif owner == "mix":
                parts["model"][MIXES[graph] + rest.removeprefix("logits")] = value
            elif owner == "encoder":
                parts[graph][rest] = value
    model, text, audio = (
        HBAF(config),
        encoders.load_text(config.text_encoder),
        encoders.load_audio(config.audio_encoder),
    )
    fill(model, parts["model"], "HBAF")
    fill(text, parts["text"], "the text encoder")
    fill(audio, parts["audio"], "the audio encoder")
    return model.eval(), text.eval(), audio.eval()


def fill(module: nn.Module, found: dict[str, NDArray[Any]], what: str) -> None:
    """Load weights by name and layout (export/to_onnx.py, name_weights) into a module."""
    layouts, state, missing = by_name(found), module.state_dict(), []
    for name, tensor in state.items():
        if name in layouts:
            value = torch.from_numpy(np.array(laid_out(layouts[name], tuple(tensor.shape))))
            tensor.copy_(value.reshape(tensor.shape))
        elif not NOT_SHIPPED.match(name) and name in dict(module.named_parameters()):
            missing.append(name)
    if missing:
        few = f"{len(missing)} weights of {what}, such as {missing[0]}"
        why = "it was exported before weights carried their names"
        raise TrainingError(f"the bundle lacks {few}; {why}: export it anew, or give --init a checkpoint")


def main(bundle: Path = DEFAULT, /, out: Path = Path("runs/base")) -> None:
    """Make a checkpoint.

    Args:
        bundle: folder or .hbaf file.
        out: the checkpoint's folder.
    """
    found = load_bundle(bundle)
    model, text, audio = restore(found)
    kept = {"temperatures": found.manifest["temperatures"]}  # of the same weights; evaluating it fits them anew
    about = {
        **kept,
        "train": found.manifest.get("training", {}),
        "corpora": found.manifest.get("corpora", ["unknown"]),
        "tuned": ["text", "audio"],
    }
    checkpoint.save(out, model, text, about, audio)
    print(out)


if __name__ == "__main__":
    cli(main)
