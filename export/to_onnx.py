"""Checkpoint -> four float32 ONNX files (opset 20), each checked against PyTorch.

    python -m export.to_onnx runs/default --out runs/onnx

Exits non-zero where a graph differs from its module by more than the tolerance.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from rich.console import Console
from torch import Tensor, nn

from export.graphs import Graph, graphs
from training import checkpoint, encoders
from training.model import HBAF

OPSET = 20
IR_VERSION = 10  # what ONNX Runtime 1.23 and TensorRT 10.3 read
TOLERANCE = 1e-4  # largest difference from PyTorch, relative to the largest value of an output (at least 1)


def export(model: HBAF, audio: nn.Module, text: nn.Module, out: Path) -> dict[str, float]:
    """Write `{name}.onnx` for the four graphs into `out`; returns each one's difference from PyTorch."""
    out.mkdir(parents=True, exist_ok=True)
    differences = {}
    for name, graph in graphs(model.eval(), audio.eval(), text.eval()).items():
        path = out / f"{name}.onnx"
        _write(graph, path)
        differences[name] = compare(graph, path)
        if not differences[name] <= TOLERANCE:
            raise SystemExit(f"{path}: differs from PyTorch by {differences[name]:.1e}, {TOLERANCE:.0e} is allowed")
    return differences


def _write(graph: Graph, path: Path) -> None:
    graph.module.eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    dims: dict[str, Any] = {}
    for name, tensor in graph.inputs.items():
        axes = {0: batch}
        for axis, size in graph.varying.get(name, {}).items():
            factor, _, root = size.rpartition("*")
            limit = 3000 if root == "mel_frames" else 512
            dim = dims.setdefault(root, torch.export.Dim(root, min=1, max=limit))
            axes[axis] = int(factor) * dim if factor else dim
        dims[f"input {name}"] = {axis: axes[axis] for axis in axes if axis < tensor.ndim}
    shapes = {name: dims[f"input {name}"] for name in graph.inputs}
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.module,
            kwargs=graph.inputs,
            dynamic_shapes=shapes,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version, proto.doc_string = "hbaf-edge", "", ""
    for node in proto.graph.node:  # stack traces of the exporting machine: no use at run time, and they name its paths
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def compare(graph: Graph, path: Path, seed: int = 0) -> float:
    """Largest difference between an ONNX file and its module, at a batch and lengths other than the exported ones."""
    torch.manual_seed(seed)
    inputs = {name: _resized(name, tensor, graph) for name, tensor in graph.inputs.items()}
    with torch.inference_mode():
        expected = graph.module(**inputs)
    expected = (expected,) if isinstance(expected, Tensor) else expected
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(list(graph.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
    return max(
        float(np.abs(a - b.numpy()).max() / max(1.0, float(b.abs().max())))
        for a, b in zip(found, expected, strict=True)
    )


def _resized(name: str, tensor: Tensor, graph: Graph) -> Tensor:
    """The example at batch three and twice its length, with new values; in masks some are out, in the last row all."""
    shape = [3, *tensor.shape[1:]]
    for axis in graph.varying.get(name, {}):
        shape[axis] = 2 * shape[axis]
    if tensor.is_floating_point():
        return torch.randn(shape)
    if tensor.dtype == torch.bool:
        mask = torch.rand(shape) > 0.3
        mask[-1] = False
        return mask
    if name == "token_mask":
        return (torch.arange(shape[1]) < torch.tensor([[shape[1]], [3], [1]])).long()
    highest = {"tokens": 100, "distance": tensor.shape[-1] + 1}.get(name, 3)
    return torch.randint(1 if name == "distance" else 0, highest, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model, text, _ = checkpoint.load(given.checkpoint)
    differences = export(model, encoders.load_audio(model.config.audio_encoder), text, given.out)
    for name, difference in differences.items():
        size = (given.out / f"{name}.onnx").stat().st_size / 1e6
        Console().print(f"{name:10} {size:6.1f} MB  largest difference from PyTorch {difference:.1e}")


if __name__ == "__main__":
    main()
