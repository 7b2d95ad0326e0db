"""Checkpoint -> float32 bundle: four ONNX files (opset 20), each compared with PyTorch.

    python -m export.to_onnx runs/mine --out runs/mine/float32

Fails if a graph differs from its module by more than the tolerance. Calibration, quantisation and all comparisons start
from this bundle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertModel

from export import metadata
from export.atomic_replace import check_output, work_folder
from export.bundle import about_checkpoint, write_bundle
from export.compare import largest_difference, random_inputs, run_once
from export.gate_function import BATCH, add_function, export_module
from export.graphs import Graph, graphs
from export.rewrite import mix_layers
from hbaf_edge.errors import BundleError, InputError
from training import checkpoint as checkpoints
from training.command import cli, emit
from training.config import ModelConfig
from training.model import HBAF
from training.whisper import WhisperEncoder

OPSET = 20
IR_VERSION = 10  # that ONNX Runtime 1.23 and TensorRT 10.3 can read
TOLERANCE = 1e-4  # largest difference from PyTorch, relative to the largest value of an output (at least 1)


def export(model: HBAF, audio: nn.Module | None, text: nn.Module | None, out: Path) -> dict[str, float]:
    """Write the four graphs as `{name}.onnx` to `out`.

    Returns:
        the largest difference from PyTorch of each graph.

    Raises:
        BundleError: a difference is larger than TOLERANCE.
        InputError: the runtime cannot run encoders of this kind.
    """
    if not isinstance(audio, WhisperEncoder) or not isinstance(text, BertModel):
        kinds = " and ".join(type(part).__name__ for part in (audio, text))
        raise InputError(f"the runtime needs a Whisper audio encoder and a BERT text encoder; this model has {kinds}")
    out.mkdir(parents=True, exist_ok=True)
    differences = {}
    sha256 = metadata.model_hash(model, audio, text)
    for name, graph in graphs(model.eval(), audio.eval(), text.eval()).items():
        path = out / f"{name}.onnx"
        _write(name, graph, path, model.config, sha256)
        differences[name] = compare(graph, path)
        if not differences[name] <= TOLERANCE:
            raise BundleError(f"{path}: differs from PyTorch by {differences[name]:.1e}, {TOLERANCE:.0e} is allowed")
    return differences


def _write(name: str, graph: Graph, path: Path, config: ModelConfig, sha256: str) -> None:
    """Export one graph, clean up its names and metadata, and save it."""
    shapes = {tensor: {0: BATCH, **graph.dynamic_axes.get(tensor, {})} for tensor in graph.inputs}
    settings = {"kwargs": graph.inputs, "dynamic_shapes": shapes, "input_names": list(graph.inputs)}
    proto = export_module(graph.module, graph.outputs, OPSET, **settings)
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version, proto.doc_string = "hbaf-edge", "", ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
    name_weights(proto, graph.module)
    proto = mix_layers(proto)
    add_function(proto, name, config, OPSET)
    del proto.graph.metadata_props[:]
    metadata.describe_exported(proto, name, config.labels, sha256)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def name_weights(proto: onnx.ModelProto, module: nn.Module) -> None:
    """Rename initializers that the exporter folded and numbered to the parameters that they hold.

    The checkpoint can then be restored from the file (training/from_bundle.py). The part after the last | tells the
    layout: T means that the last two axes are swapped, 0 or 1 that it is one modality's part, softmax that it is
    normalised. Example: "model.head.1.weight" (7, 256), stored transposed, becomes "model.head.1.weight|T" (256, 7).
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
        matches = (name for name, array in layouts.get(value.size, ()) if np.allclose(array, value, rtol=0, atol=1e-7))
        match = next((name for name in matches if name not in renamed.values()), None)
        if match and value.size > 1:
            renamed[tensor.name] = match
    for tensor in proto.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    for value_info in proto.graph.value_info:
        value_info.name = renamed.get(value_info.name, value_info.name)


def _layouts(name: str, value: NDArray[np.float32]) -> list[tuple[str, NDArray[np.float32]]]:
    """Every layout in which the exporter may store a parameter, with its name."""
    layouts = [(f"{name}|", value)]
    if value.ndim > 1:
        layouts.append((f"{name}|T", value.swapaxes(-1, -2)))
    if value.ndim > 1 and len(value) == 2:  # one part per modality: absent codes, tables of the order bias
        layouts += [(f"{name}|{m}", part) for m, part in enumerate(value)]
        layouts += [(f"{name}|{m}T", part.reshape(len(part), -1).T) for m, part in enumerate(value)]
    if name.endswith("mix.logits"):
        layouts.append((f"{name}|softmax", torch.softmax(torch.from_numpy(value), 0).numpy()))
    return layouts


def compare(graph: Graph, path: Path, seed: int = 0) -> float:
    """Largest difference between an ONNX file and its module, on another batch size and lengths than in the export."""
    inputs = random_inputs(onnx.load(path), seed=seed)
    with torch.inference_mode():
        expected = graph.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    expected = (expected,) if isinstance(expected, Tensor) else expected
    return largest_difference(run_once(path, inputs), [tensor.numpy() for tensor in expected])


def main(checkpoint: Path, /, out: Path, name: str = "hbaf-edge model", json_output: bool = False) -> None:
    """Export a checkpoint.

    Args:
        checkpoint: written by training.train and scored by training.evaluate.
        out: folder of the bundle.
        name: of the model, for its card.
    """
    check_output(out)
    stored = checkpoints.load(checkpoint)
    config = stored.hbaf.config
    about = about_checkpoint(stored.about, config, name, "float32")
    with work_folder(out) as folder:
        differences = export(stored.hbaf, stored.audio, stored.text, folder)
        write_bundle(folder, out, config, about)
    megabytes = {graph: (out / f"{graph}.onnx").stat().st_size / 1e6 for graph in differences}
    emit(
        {"out": str(out), "differences": differences, "megabytes": megabytes},
        json_output,
        *(f"{graph:10} {megabytes[graph]:6.1f} MB  largest difference from PyTorch {difference:.1e}"
          for graph, difference in differences.items()),
    )  # fmt: skip


if __name__ == "__main__":
    cli(main)
