"""Checkpoint -> float32 bundle: four ONNX files (opset 20), each checked against PyTorch.

    python -m export.to_onnx runs/mine --out runs/mine/float32

Exits non-zero where a graph differs from its module by more than the tolerance. The bundle runs, and it is what
calibration, quantisation and all comparisons start from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from transformers import BertModel

from export import metadata
from export.bundle import about_checkpoint, write_bundle
from export.compare import largest_difference, random_inputs, run_once
from export.gate_function import BATCH, add_function, traced
from export.graphs import Graph, graphs
from export.place import check_place, workplace
from export.rewrite import mix_layers
from hbaf_edge.errors import BundleError, InputError
from training import checkpoint as checkpoints
from training.command import cli
from training.config import ModelConfig
from training.model import HBAF
from training.whisper import WhisperEncoder

OPSET = 20
IR_VERSION = 10  # what ONNX Runtime 1.23 and TensorRT 10.3 read
TOLERANCE = 1e-4  # largest difference from PyTorch, relative to the largest value of an output (at least 1)


def export(model: HBAF, audio: nn.Module | None, text: nn.Module | None, out: Path) -> dict[str, float]:
    """Write `{name}.onnx` for the four graphs into `out`; returns each one's difference from PyTorch."""
    if not isinstance(audio, WhisperEncoder) or not isinstance(text, BertModel):
        kinds = " and ".join(type(part).__name__ for part in (audio, text))
        raise InputError(f"the runtime hears through Whisper and reads through BERT; this model has {kinds}")
    out.mkdir(parents=True, exist_ok=True)
    differences = {}
    sha256 = metadata.identity(model, audio, text)
    for name, graph in graphs(model.eval(), audio.eval(), text.eval()).items():
        path = out / f"{name}.onnx"
        _write(name, graph, path, model.config, sha256)
        differences[name] = compare(graph, path)
        if not differences[name] <= TOLERANCE:
            raise BundleError(f"{path}: differs from PyTorch by {differences[name]:.1e}, {TOLERANCE:.0e} is allowed")
    return differences


def _write(scope: str, graph: Graph, path: Path, config: ModelConfig, sha256: str) -> None:
    shapes = {name: {0: BATCH, **graph.varying.get(name, {})} for name in graph.inputs}
    settings = {"kwargs": graph.inputs, "dynamic_shapes": shapes, "input_names": list(graph.inputs)}
    proto = traced(graph.module, graph.outputs, OPSET, **settings)
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version, proto.doc_string = "hbaf-edge", "", ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
    name_weights(proto, graph.module)
    proto = mix_layers(proto)
    add_function(proto, scope, config, OPSET)
    del proto.graph.metadata_props[:]
    metadata.describe(proto, scope, config.labels, sha256)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def name_weights(proto: onnx.ModelProto, module: nn.Module) -> None:
    """Give weights that the exporter folded and numbered the names of the parameters they are.

    A file is then readable, and a checkpoint can be had back from it (training/from_bundle.py). What stands behind the
    last | says how the parameter lies there: T with its last two axes changed places, 0 or 1 one modality's part of it,
    softmax normalised.
    """
    known = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    layouts: dict[int, list[tuple[str, NDArray[np.float32]]]] = {}
    standard = ((name, buffer) for name, buffer in module.named_buffers() if ".standardise." in name)
    for name, parameter in (*module.named_parameters(), *standard):
        for layout, array in _layouts(name, parameter.detach().numpy()):
            layouts.setdefault(array.size, []).append((layout, array.ravel()))
    renamed: dict[str, str] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in known or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        value = onnx.numpy_helper.to_array(tensor).ravel()
        fit = (name for name, array in layouts.get(value.size, ()) if np.allclose(array, value, rtol=0, atol=1e-7))
        found = next((name for name in fit if name not in renamed.values()), None)
        if found and value.size > 1:
            renamed[tensor.name] = found
    for tensor in proto.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    for value_info in proto.graph.value_info:
        value_info.name = renamed.get(value_info.name, value_info.name)


def _layouts(name: str, value: NDArray[np.float32]) -> list[tuple[str, NDArray[np.float32]]]:
    """Every way in which a folded parameter may lie in a file, with its name for it."""
    found = [(f"{name}|", value)]
    if value.ndim > 1:
        found.append((f"{name}|T", value.swapaxes(-1, -2)))
    if value.ndim > 1 and len(value) == 2:  # one for each modality: absent codes, tables of the order bias
        found += [(f"{name}|{m}", part) for m, part in enumerate(value)]
        found += [(f"{name}|{m}T", part.reshape(len(part), -1).T) for m, part in enumerate(value)]
    if name.endswith("mix.logits"):
        found.append((f"{name}|softmax", torch.softmax(torch.from_numpy(value), 0).numpy()))
    return found


def compare(graph: Graph, path: Path, seed: int = 0) -> float:
    """Largest difference between an ONNX file and its module, at a batch and lengths other than the exported ones."""
    inputs = random_inputs(onnx.load(path), seed=seed)
    with torch.inference_mode():
        expected = graph.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    expected = (expected,) if isinstance(expected, Tensor) else expected
    return largest_difference(run_once(path, inputs), [tensor.numpy() for tensor in expected])


def main(checkpoint: Path, /, out: Path, name: str = "hbaf-edge model") -> None:
    """Export.

    Args:
        checkpoint: that training.train wrote and training.evaluate scored.
        out: the bundle's folder.
        name: of the model, for its card.
    """
    check_place(out)
    stored = checkpoints.load(checkpoint)
    config = stored.hbaf.config
    described = about_checkpoint(stored.about, config, name, "float32")
    with workplace(out) as folder:
        differences = export(stored.hbaf, stored.audio, stored.text, folder)
        write_bundle(folder, out, config, described)
    for graph, difference in differences.items():
        size = (out / f"{graph}.onnx").stat().st_size / 1e6
        Console().print(f"{graph:10} {size:6.1f} MB  largest difference from PyTorch {difference:.1e}")


if __name__ == "__main__":
    cli(main)
