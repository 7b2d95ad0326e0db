"""Compare results with a reference. All commands of export report and decide by these measures.

Turns are compared by their probabilities and embeddings, tensors by `snr_db` and `largest_difference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto

from export.conversations import predict_dialogue
from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.backends.settings import default_threads, session_options
from hbaf_edge.bundle import Bundle
from hbaf_edge.ort import onnxruntime as ort
from training.corpora.records import UNLABELLED, Dialogue
from training.metrics import scores

Array = NDArray[Any]
TensorCallback = Callable[[str, dict[str, NDArray[Any]]], None]  # called with the graph's name and tensors by name
EPSILON = 1e-12  # smallest probability and smallest share of noise that is told apart from zero


@dataclass(frozen=True)
class ModelOutputs:
    """A model's results for U turns: probabilities (U, labels), embeddings (U, 2d), median milliseconds per turn."""

    probabilities: Array
    embeddings: Array
    milliseconds: float = float("nan")

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> ModelOutputs:
        """The results in a runtime's predictions."""
        probabilities = np.array([list(p.probabilities.values()) for p in predictions])
        milliseconds = float(np.median([p.timing["total"] for p in predictions]))
        return cls(probabilities, np.array([p.embedding for p in predictions]), milliseconds)


def predictions(runtime: HBAFRuntime, dialogues: Sequence[Dialogue]) -> list[Prediction]:
    """Predict every turn of every dialogue, each dialogue in its own conversation."""
    return [p for dialogue in dialogues for p in predict_dialogue(runtime, dialogue)]


def tapped_runtime(
    bundle: Bundle, tensors: Mapping[str, Sequence[str]], callback: TensorCallback, threads: int = 1
) -> HBAFRuntime:
    """A runtime on the CPU that calls `callback` with inner tensors after each run of a graph.

    Args:
        bundle: the model.
        tensors: names of the tensors to pass, by graph. They become outputs of the graph.
        callback: receives the graph's name and the tensors by name.
        threads: of the runtime.
    """
    files = dict(bundle.files)
    for graph, names in tensors.items():
        model = onnx.load_from_string(bundle.graph(graph))
        outputs = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
        files[bundle.manifest["graphs"][graph]["file"]] = model.SerializeToString()
    runtime = HBAFRuntime(replace(bundle, files=files), threads=threads)

    def tap(graph: str, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None:
        if graph in tensors:
            callback(graph, {name: ({**outputs, **inputs})[name] for name in tensors[graph]})

    runtime.engine.backend.set_tap(tap)
    return runtime


def run_in_runtime(path: str | Path, dialogues: Sequence[Dialogue], threads: int) -> ModelOutputs:
    """Run a bundle in the runtime, turn by turn."""
    with HBAFRuntime(path, threads=threads) as runtime:
        return ModelOutputs.of(predictions(runtime, dialogues))


def measures(outputs: ModelOutputs, reference: ModelOutputs) -> dict[str, float]:
    """Differences between the results of a model and those of a reference.

    Returns:
        turns; label_flips and flip_rate; kl_divergence (nats, mean over turns); snr_db (of the logits without their
        mean, which softmax ignores); cosine_mean and cosine_min (of the embeddings, over turns); difference_mean and
        difference_max (of the probabilities).
    """
    p, q = reference.probabilities, outputs.probabilities
    log_p, log_q = (np.log(np.maximum(probabilities, EPSILON)) for probabilities in (p, q))
    flips = int((p.argmax(1) != q.argmax(1)).sum())
    similarity = cosines(reference.embeddings, outputs.embeddings)
    return {
        "turns": len(p),
        "label_flips": flips,
        "flip_rate": flips / len(p),
        "kl_divergence": float((p * (log_p - log_q)).sum(1).mean()),
        "snr_db": snr_db(*(logs - logs.mean(1, keepdims=True) for logs in (log_p, log_q))),
        "cosine_mean": float(similarity.mean()),
        "cosine_min": float(similarity.min()),
        "difference_mean": float(np.abs(p - q).mean()),
        "difference_max": float(np.abs(p - q).max()),
    }


def drift(predictions: Sequence[Prediction], reference: Sequence[Prediction]) -> dict[str, float]:
    """`measures` of two runtimes' predictions, rounded for a manifest."""
    differences = measures(ModelOutputs.of(predictions), ModelOutputs.of(reference))
    return {name: round(value, 6) for name, value in differences.items()}


def snr_db(reference: Array, actual: Array) -> float:
    """Signal-to-noise ratio of a tensor in dB; 120 if the tensors are equal.

    >>> round(snr_db(np.array([1.0, -1.0]), np.array([1.1, -0.9])))
    20
    """
    noise = float(np.square(reference - actual).sum()) / max(float(np.square(reference).sum()), EPSILON)
    return float(-10 * np.log10(max(noise, EPSILON)))


def cosines(a: Array, b: Array) -> Array:
    """Cosine similarity of matching rows, (U, d) -> (U,), or of two vectors, (d,) -> ().

    >>> cosines(np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.maximum(lengths, 1e-30))


def random_inputs(model: ModelProto, length: int = 16, seed: int = 0) -> dict[str, Array]:
    """Random inputs of a graph: a batch of three, and `length` for every other free axis.

    Token masks have three lengths. Other masks have random gaps, and their last row is completely masked.
    """
    rng = np.random.default_rng(seed)
    return {value.name: _random_input(value, length, rng) for value in model.graph.input}


def _random_input(value: ValueInfoProto, length: int, rng: np.random.Generator) -> Array:
    tensor = value.type.tensor_type
    # A free axis is named "tokens_count", or "4*stacks" if its size is a multiple of 4.
    sizes = {d.dim_param: int(d.dim_param.rpartition("*")[0] or 1) * length for d in tensor.shape.dim} | {"batch": 3}
    shape = [d.dim_value or sizes[d.dim_param] for d in tensor.shape.dim]
    if tensor.elem_type == TensorProto.FLOAT:
        return rng.standard_normal(shape).astype(np.float32)
    if tensor.elem_type == TensorProto.BOOL:
        mask = rng.random(shape) > 0.3
        mask[-1] = False
        return mask
    if value.name == "token_mask":
        return (np.arange(shape[1]) < np.array([[shape[1]], [shape[1] // 2], [1]])).astype(np.int64)
    low, high = {"tokens": (1, 100), "distance": (1, shape[-1] + 1)}.get(value.name, (0, 3))
    return rng.integers(low, high, shape)


def run_once(model: ModelProto | Path, inputs: Mapping[str, Array]) -> list[Array]:
    """Run a graph on the CPU and return all its outputs."""
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = session_options(default_threads())
    outputs: list[Array] = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, inputs)
    return outputs


def largest_difference(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """Largest difference over several tensors, relative to each tensor's largest value (at least 1).

    >>> largest_difference([np.array([11.0])], [np.array([10.0])])
    0.1
    """
    pairs = zip(actual, expected, strict=True)
    return max(float(np.abs(a - b).max() / max(1.0, float(np.abs(b).max()))) for a, b in pairs)


def labels_of(dialogues: Sequence[Dialogue]) -> list[int]:
    """The label of every turn."""
    return [utterance.label for dialogue in dialogues for utterance in dialogue.turns]


def score_turns(outputs: ModelOutputs, labels: Sequence[int], names: Sequence[str]) -> dict[str, Any] | None:
    """Scores of the labelled turns (training/metrics.py) and F1 of each label; None if no turn has a label."""
    truth = torch.tensor(labels)
    is_labelled = truth != UNLABELLED
    if not is_labelled.any():
        return None
    logits = torch.from_numpy(outputs.probabilities).clamp(min=EPSILON).log()
    result = scores(logits[is_labelled], truth[is_labelled], names)
    pairs = {name: (result["precision"][name], recall) for name, recall in result["recall"].items()}
    return result | {"f1": {name: 2 * a * b / (a + b) if a + b else 0.0 for name, (a, b) in pairs.items()}}
