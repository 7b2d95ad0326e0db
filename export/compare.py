"""How far results are from a reference: the measures that every command of export reports and judges by.

Turns are compared by their probabilities as a user sees them and by their fused vectors, tensors by `snr_db` and
`largest_difference`.
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

from export.conversations import talk
from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.backends.settings import default_threads, session_options
from hbaf_edge.bundle import Bundle
from hbaf_edge.ort import onnxruntime as ort
from training.corpora.records import UNLABELLED, Dialogue
from training.metrics import scores

Array = NDArray[Any]
See = Callable[[str, dict[str, NDArray[Any]]], None]
LEAST = 1e-12  # probabilities and shares of noise below it count as this much


@dataclass(frozen=True)
class Outcome:
    """What one side says of U turns: probabilities (U, labels), embeddings (U, 2d), median milliseconds of a turn."""

    probabilities: Array
    embeddings: Array
    milliseconds: float = float("nan")

    @classmethod
    def of(cls, found: Sequence[Prediction]) -> Outcome:
        """A runtime's predictions."""
        probabilities = np.array([list(p.probabilities.values()) for p in found])
        milliseconds = float(np.median([p.timing["total"] for p in found]))
        return cls(probabilities, np.array([p.embedding for p in found]), milliseconds)


def predictions(runtime: HBAFRuntime, dialogues: Sequence[Dialogue]) -> list[Prediction]:
    """Every turn of every dialogue, each dialogue a conversation of its own."""
    return [p for dialogue in dialogues for p in talk(runtime, dialogue)]


def watched(bundle: Bundle, tensors: Mapping[str, Sequence[str]], see: See, threads: int = 1) -> HBAFRuntime:
    """A runtime of the bundle, on the CPU, that calls `see` after every run of a graph with its `tensors`."""
    files = dict(bundle.files)
    for graph, names in tensors.items():
        model = onnx.load_from_string(bundle.graph(graph))
        outputs = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
        files[bundle.manifest["graphs"][graph]["file"]] = model.SerializeToString()
    runtime = HBAFRuntime(replace(bundle, files=files), threads=threads)

    def tap(graph: str, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None:
        if graph in tensors:
            see(graph, {name: ({**outputs, **inputs})[name] for name in tensors[graph]})

    runtime.engine.backend.set_tap(tap)
    return runtime


def in_runtime(path: str | Path, dialogues: Sequence[Dialogue], threads: int) -> Outcome:
    """A bundle in the runtime, turn by turn."""
    with HBAFRuntime(path, threads=threads) as runtime:
        return Outcome.of(predictions(runtime, dialogues))


def measures(found: Outcome, reference: Outcome) -> dict[str, float]:
    """Flipped labels, Kullback-Leibler divergence and SNR of the logits, cosines of the fused vector, and differences.

    Returns:
        turns, label_flips, flip_rate, kl_divergence (nats, mean over turns), snr_db (of the logits up to a constant,
        which softmax does not see), cosine_mean, cosine_min (over turns), difference_mean, difference_max (of a
        probability).
    """
    p, q = reference.probabilities, found.probabilities
    log_p, log_q = (np.log(np.maximum(side, LEAST)) for side in (p, q))
    flips = int((p.argmax(1) != q.argmax(1)).sum())
    near = cosines(reference.embeddings, found.embeddings)
    return {
        "turns": len(p),
        "label_flips": flips,
        "flip_rate": flips / len(p),
        "kl_divergence": float((p * (log_p - log_q)).sum(1).mean()),
        "snr_db": snr_db(*(logs - logs.mean(1, keepdims=True) for logs in (log_p, log_q))),
        "cosine_mean": float(near.mean()),
        "cosine_min": float(near.min()),
        "difference_mean": float(np.abs(p - q).mean()),
        "difference_max": float(np.abs(p - q).max()),
    }


def drift(found: Sequence[Prediction], reference: Sequence[Prediction]) -> dict[str, float]:
    """`measures` of two runtimes' predictions, rounded for a manifest."""
    return {name: round(value, 6) for name, value in measures(Outcome.of(found), Outcome.of(reference)).items()}


def snr_db(reference: Array, found: Array) -> float:
    """Signal-to-noise ratio of a tensor; 120 where the two are the same.

    >>> round(snr_db(np.array([1.0, -1.0]), np.array([1.1, -0.9])))
    20
    """
    noise = float(np.square(reference - found).sum()) / max(float(np.square(reference).sum()), LEAST)
    return float(-10 * np.log10(max(noise, LEAST)))


def cosines(a: Array, b: Array) -> Array:
    """Of each row of (U, d) with the other's; of two vectors (d,) one number.

    >>> cosines(np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.maximum(lengths, 1e-30))


def random_inputs(model: ModelProto, length: int = 16, seed: int = 0) -> dict[str, Array]:
    """Inputs of a graph at batch three and `length` per free axis.

    Texts are of three lengths; of other masks some places are out, and in the last row all.
    """
    rng = np.random.default_rng(seed)
    return {value.name: _random(value, length, rng) for value in model.graph.input}


def _random(value: ValueInfoProto, length: int, rng: np.random.Generator) -> Array:
    kind = value.type.tensor_type
    sizes = {d.dim_param: int(d.dim_param.rpartition("*")[0] or 1) * length for d in kind.shape.dim} | {"batch": 3}
    shape = [d.dim_value or sizes[d.dim_param] for d in kind.shape.dim]
    if kind.elem_type == TensorProto.FLOAT:
        return rng.standard_normal(shape).astype(np.float32)
    if kind.elem_type == TensorProto.BOOL:
        mask = rng.random(shape) > 0.3
        mask[-1] = False
        return mask
    if value.name == "token_mask":
        return (np.arange(shape[1]) < np.array([[shape[1]], [shape[1] // 2], [1]])).astype(np.int64)
    low, high = {"tokens": (1, 100), "distance": (1, shape[-1] + 1)}.get(value.name, (0, 3))
    return rng.integers(low, high, shape)


def run_once(model: ModelProto | Path, inputs: Mapping[str, Array]) -> list[Array]:
    """All outputs of a graph on the CPU."""
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    settings = session_options(default_threads())
    found: list[Array] = ort.InferenceSession(content, settings, providers=["CPUExecutionProvider"]).run(None, inputs)
    return found


def largest_difference(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Of any value of several tensors, relative to a tensor's largest value (at least 1).

    >>> largest_difference([np.array([11.0])], [np.array([10.0])])
    0.1
    """
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(a - b).max() / max(1.0, float(np.abs(b).max()))) for a, b in pairs)


def labels_of(dialogues: Sequence[Dialogue]) -> list[int]:
    """Of every turn."""
    return [u.label for d in dialogues for u in d.turns]


def judged(found: Outcome, labels: Sequence[int], names: Sequence[str]) -> dict[str, Any] | None:
    """Scores of the labelled turns (training/metrics.py) and F1 of each label among them; None where there is none."""
    truth = torch.tensor(labels)
    known = truth != UNLABELLED
    if not known.any():
        return None
    logits = torch.from_numpy(found.probabilities).clamp(min=LEAST).log()
    result = scores(logits[known], truth[known], names)
    pairs = {name: (result["precision"][name], recall) for name, recall in result["recall"].items()}
    return result | {"f1": {name: 2 * a * b / (a + b) if a + b else 0.0 for name, (a, b) in pairs.items()}}
