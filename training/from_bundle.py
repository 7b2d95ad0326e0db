"""Convert a bundle back to a checkpoint, to train the default model further without its original checkpoint.

    python -m training.from_bundle hbaf_edge/models/default --out runs/base

INT8 weights are dequantised. Parts that only training needs (unimodal heads, contrastive projections) are not in a
bundle and are initialised anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hbaf_edge.backends.cuda.weights import group_by_parameter, read_weights, restore_layout
from hbaf_edge.bundle import DEFAULT, GRAPHS, Bundle, load_bundle
from training import checkpoint, encoders
from training.command import cli, emit
from training.config import ModelConfig
from training.errors import TrainingError
from training.model import HBAF

NOT_IN_BUNDLE = re.compile(r"^(unimodal_heads|contrast)\.")
LAYER_MIX = {"audio": "audio.mix.logits", "text": "text.mix.logits"}  # parameter of the model by graph


def restore(bundle: Bundle) -> tuple[HBAF, nn.Module, nn.Module]:
    """Return the model, the text encoder and the audio encoder with the weights of a bundle, in eval mode.

    Raises:
        TrainingError: the bundle lacks a weight of the model.
    """
    try:
        config = ModelConfig.from_json(bundle.manifest["model"])
    except (KeyError, TrainingError) as error:
        raise TrainingError(f"the bundle's model cannot be trained further: {error}") from error
    weights: dict[str, dict[str, NDArray[Any]]] = {"model": {}, "text": {}, "audio": {}}
    for graph in GRAPHS:
        for name, value in read_weights(bundle.graph(graph)).items():
            owner, _, rest = name.partition(".")
            if owner == "model":
                weights["model"][rest] = value
            elif owner == "mix":
                weights["model"][LAYER_MIX[graph] + rest.removeprefix("logits")] = value
            elif owner == "encoder":
                weights[graph][rest] = value
    model = HBAF(config)
    text, audio = encoders.load_text(config.text_encoder), encoders.load_audio(config.audio_encoder)
    load_weights(model, weights["model"], "HBAF")
    load_weights(text, weights["text"], "the text encoder")
    load_weights(audio, weights["audio"], "the audio encoder")
    return model.eval(), text.eval(), audio.eval()


def load_weights(module: nn.Module, weights: dict[str, NDArray[Any]], what: str) -> None:
    """Copy weights into a module, by name and layout (export/to_onnx.py, name_weights)."""
    layouts, state, missing = group_by_parameter(weights), module.state_dict(), []
    for name, tensor in state.items():
        if name in layouts:
            value = torch.from_numpy(np.array(restore_layout(layouts[name], tuple(tensor.shape))))
            tensor.copy_(value.reshape(tensor.shape))
        elif not NOT_IN_BUNDLE.match(name) and name in dict(module.named_parameters()):
            missing.append(name)
    if missing:
        raise TrainingError(
            f"the bundle lacks {len(missing)} weights of {what}, such as {missing[0]}; an old version exported it "
            "without their names: export it again, or give --init a checkpoint"
        )


def save_checkpoint(path: Path, out: Path) -> None:
    """Write the checkpoint of a bundle.

    Args:
        path: folder or .hbaf file of the bundle.
        out: folder of the checkpoint.
    """
    bundle = load_bundle(path)
    model, text, audio = restore(bundle)
    about = {
        "temperatures": bundle.manifest["temperatures"],  # of the same weights; training.evaluate fits them again
        "train": bundle.manifest.get("training", {}),
        "corpora": bundle.manifest.get("corpora", ["unknown"]),
        "tuned": ["text", "audio"],
        "restored_from": bundle.key,
    }
    checkpoint.save(out, model, text, about, audio)


def main(bundle: Path = DEFAULT, /, out: Path = Path("runs/base"), json_output: bool = False) -> None:
    """Convert a bundle.

    Args:
        bundle: folder or .hbaf file.
        out: folder of the checkpoint.
    """
    save_checkpoint(bundle, out)
    emit({"out": str(out)}, json_output, f"checkpoint: {out}")


if __name__ == "__main__":
    cli(main)
