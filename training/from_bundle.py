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

from hbaf_edge.bundle import DEFAULT, GRAPHS, Bundle, load_bundle
from training import checkpoint, encoders
from training.command import cli
from training.config import ModelConfig
from training.model import HBAF

NOT_SHIPPED = re.compile(r"^(unimodal_heads|contrast)\.")
MIXES = {"audio": "audio.mix.logits", "text": "text.mix.logits"}


def restore(bundle: Bundle) -> tuple[HBAF, nn.Module, nn.Module]:
    """Model, text encoder and audio encoder with a bundle's weights.

    Raises:
        SystemExit: where a weight of the model is not in the bundle.
    """
    try:
        config = ModelConfig.from_json(bundle.manifest["model"])
    except (KeyError, ValueError) as error:
        raise SystemExit(f"the bundle's model cannot be trained on: {error}") from error
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


def weights(graph: bytes) -> dict[str, NDArray[Any]]:
    """Named weights of an ONNX file, INT8 ones multiplied out."""
    try:
        import onnx
    except ImportError as error:
        raise SystemExit("reading a bundle's weights needs onnx: pip install 'hbaf-edge[train]'") from error
    model = onnx.load_from_string(graph)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    channels = {
        n.input[0]: n.attribute[0].i for n in model.graph.node if n.op_type == "DequantizeLinear" and n.attribute
    }
    for name in [n for n in found if n.endswith("_int8")]:
        whole = name.removesuffix("_int8")
        integers, scale = found.pop(name), found.pop(f"{whole}_scale")
        axis = channels.get(name, 0)  # an embedding's rows are looked up first and scaled then
        spread = scale if scale.ndim == integers.ndim else _along(scale, axis, integers.ndim)
        found[whole] = integers * spread
    for weight, divisors in _divided(model, found).items():
        found[weight] = found[weight] * divisors[:, None]
    return found


def _along(scale: NDArray[Any], axis: int, ndim: int) -> NDArray[Any]:
    """(channels,) along one of several axes."""
    return np.expand_dims(scale.ravel(), [i for i in range(ndim) if i != axis])


def _divided(model: Any, found: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Weights whose input a multiplication divides by channel (export/migrate.py), and by what each was multiplied."""
    makers = {out: node for node in model.graph.node for out in node.output}
    divided = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in found:
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear"):
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type == "Mul" and maker.input[1].endswith("_inverse"):
            divided[node.input[1]] = found[maker.input[1]]
    return divided


def fill(module: nn.Module, found: dict[str, NDArray[Any]], what: str) -> None:
    """Load weights by name and layout (export/to_onnx.py, name_weights) into a module."""
    by_name: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in found.items():
        whole, _, layout = name.partition("|")
        by_name.setdefault(whole, {})[layout] = value
    state, missing = module.state_dict(), []
    for name, tensor in state.items():
        if name in by_name:
            laid_out = torch.from_numpy(np.array(_laid_out(by_name[name], tuple(tensor.shape))))
            tensor.copy_(laid_out.reshape(tensor.shape))
        elif not NOT_SHIPPED.match(name) and name in dict(module.named_parameters()):
            missing.append(name)
    if missing:
        few = f"{len(missing)} weights of {what}, such as {missing[0]}"
        why = "it was exported before weights carried their names"
        raise SystemExit(f"the bundle lacks {few}; {why}: export it anew, or give --init a checkpoint")


def _laid_out(layouts: dict[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
    """A parameter from what a file holds of it."""
    if "softmax" in layouts:
        return np.asarray(np.log(layouts["softmax"]))
    for whole in ("", "T"):
        if whole in layouts:
            value = layouts[whole]
            return value if not whole else value.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)
    parts = [(layouts.get(f"{m}"), layouts.get(f"{m}T")) for m in (0, 1)]
    return np.stack([plain if plain is not None else _untransposed(t, shape) for plain, t in parts])


def _untransposed(value: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[Any]:
    assert value is not None
    return value.T.reshape(shape[1:])


def lineage(bundle: Bundle) -> list[str]:
    """Corpora the bundle's weights have seen; of a bundle that does not say, its data by their names."""
    named = [str(d["name"]).split()[0].lower() for d in bundle.manifest.get("data", [])]
    return list(bundle.manifest.get("corpora") or named or ["unknown"])


def main(bundle: Path = DEFAULT, /, out: Path = Path("runs/base")) -> None:
    """Make a checkpoint.

    Args:
        bundle: folder or .hbaf file.
        out: the checkpoint's folder.
    """
    found = load_bundle(bundle)
    model, text, audio = restore(found)
    about = {"train": found.manifest.get("training", {}), "corpora": lineage(found), "tuned": ["text", "audio"]}
    checkpoint.save(out, model, text, about, audio)
    print(out)


if __name__ == "__main__":
    cli(main, __doc__)
