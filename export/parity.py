"""One conversation set through every step of the export: where, and by how much, results leave PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.table import Table

from export.compare import predictions, snr_db
from export.watch import watched
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from training.config import TrainConfig
from training.corpora.records import UNLABELLED, Dialogue
from training.learner import Learner
from training.material import Material
from training.metrics import scores
from training.stages import predict

Array = NDArray[Any]


@dataclass(frozen=True)
class Outcome:
    """What a step says of U turns: probabilities (U, labels) as a user sees them, embeddings (U, 2d), ms per turn."""

    probabilities: Array
    embeddings: Array
    milliseconds: float
    megabytes: float


@dataclass(frozen=True)
class Limits:
    """What a step may differ by. None: not judged.

    Attributes:
        probability: largest difference of a probability from PyTorch's.
        flip_rate: share of labels that differ.
        cosine: of the fused vector, mean over turns, at least.
        f1_drop: of weighted F1.
        snr_db: of the logits, at least.
    """

    probability: float | None = None
    flip_rate: float | None = None
    cosine: float | None = None
    f1_drop: float | None = None
    snr_db: float | None = None


LIMITS = {
    "float32": Limits(probability=1e-4, flip_rate=0.0),
    "float16": Limits(flip_rate=0.002, cosine=0.999),
    "int8-weights": Limits(flip_rate=0.02, cosine=0.995),
    "int8": Limits(flip_rate=0.02, cosine=0.995, f1_drop=0.005),
    "int8-tensorrt": Limits(flip_rate=0.02, snr_db=30.0),
}


@dataclass(frozen=True)
class Step:
    """A bundle held against PyTorch.

    Attributes:
        name: of the precision.
        key: of the bundle.
        broken: which limits it breaks; empty where it keeps them all.
        difference_max, difference_mean: of probabilities.
        flip_rate: share of labels that differ.
        cosine_mean, cosine_min: of the fused vector.
        snr_db: of the logits (up to a constant, which softmax does not see).
        weighted_f1, f1_drop, f1_by_label: on labelled turns; None without any.
        milliseconds: median of a turn on this machine.
        megabytes: of the bundle.
        layers: cosine of each residual sum with float32's, by name.
    """

    name: str
    key: str
    broken: tuple[str, ...]
    difference_max: float
    difference_mean: float
    flip_rate: float
    cosine_mean: float
    cosine_min: float
    snr_db: float
    weighted_f1: float | None
    f1_drop: float | None
    f1_by_label: dict[str, float]
    milliseconds: float
    megabytes: float
    layers: dict[str, float]


def in_torch(learner: Learner, dialogues: Sequence[Dialogue], temperatures: dict[str, float]) -> Outcome:
    """PyTorch in float32, the whole causal pass over each dialogue."""
    found = predict(learner, Material(learner, TrainConfig(), cached=False), dialogues, "audio+text")
    scaled = found.logits.double() / torch.tensor([temperatures[kind] for kind in found.shown])[:, None]
    return Outcome(torch.softmax(scaled, -1).numpy(), found.embedding.numpy(), float("nan"), float("nan"))


def in_runtime(bundle: Bundle, dialogues: Sequence[Dialogue], threads: int) -> Outcome:
    """A bundle in the runtime, turn by turn."""
    with HBAFRuntime(bundle.path, threads=threads) as runtime:
        found = predictions(runtime, dialogues)
    return Outcome(
        np.array([list(p.probabilities.values()) for p in found]),
        np.array([p.embedding for p in found]),
        float(np.median([p.timing["total"] for p in found])),
        bundle.megabytes,
    )


def compared(
    bundle: Bundle,
    found: Outcome,
    reference: Outcome,
    labels: Sequence[int],
    names: Sequence[str],
    layers: dict[str, float],
) -> Step:
    """One step against PyTorch, judged by the limits of its precision."""
    a, b = reference.probabilities, found.probabilities
    cosines = (reference.embeddings * found.embeddings).sum(1) / (
        np.linalg.norm(reference.embeddings, axis=1) * np.linalg.norm(found.embeddings, axis=1)
    )
    scored = [_f1(one.probabilities, labels, names) for one in (reference, found)]
    measured: dict[str, Any] = {
        "difference_max": float(np.abs(a - b).max()),
        "difference_mean": float(np.abs(a - b).mean()),
        "flip_rate": float((a.argmax(1) != b.argmax(1)).mean()),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "snr_db": snr_db(a, b),
        "weighted_f1": scored[1][0],
        "f1_drop": None if scored[0][0] is None or scored[1][0] is None else scored[0][0] - scored[1][0],
        "f1_by_label": scored[1][1],
        "milliseconds": found.milliseconds,
        "megabytes": found.megabytes,
    }
    name = bundle.manifest["precision"]
    return Step(name, bundle.key, broken(LIMITS[name], measured), **measured, layers=layers)


def broken(limits: Limits, measured: dict[str, Any]) -> tuple[str, ...]:
    """The limits that a measurement breaks, in words.

    >>> found = {"flip_rate": 0.03, "snr_db": 35.0, "difference_max": 0.1, "cosine_mean": 1.0, "f1_drop": None}
    >>> broken(Limits(flip_rate=0.02, snr_db=30), found)
    ('flip_rate 0.03, allowed 0.02',)
    """
    keys = {"probability": "difference_max", "cosine": "cosine_mean"}
    found = []
    for name, limit in asdict(limits).items():
        value = measured[keys.get(name, name)]
        if limit is None or value is None:  # nothing was labelled
            continue
        kept = value >= limit if name in ("cosine", "snr_db") else value <= limit
        if not kept:  # NaN keeps nothing
            found.append(f"{name} {value:.5g}, {'at least' if name in ('cosine', 'snr_db') else 'allowed'} {limit:g}")
    return tuple(found)


def layer_cosines(reference: Bundle, bundle: Bundle, dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Cosine of every residual sum (what a LayerNorm reads) with float32's, over all turns; the least of each tensor's.

    Scale migration and Q/DQ leave these tensors their names and their meaning.
    """
    wanted = {graph: _sums(reference, bundle, graph) for graph in GRAPHS}
    sides = []
    for one in (reference, bundle):
        kept: dict[str, list[Array]] = {}

        def see(graph: str, tensors: dict[str, Array], kept: dict[str, list[Array]] = kept) -> None:
            for name, value in tensors.items():
                kept.setdefault(f"{graph}/{name}", []).append(value.astype(np.float32).ravel())

        with watched(one, {g: names for g, names in wanted.items() if names}, see) as runtime:
            predictions(runtime, dialogues)
        sides.append(kept)
    return {name: min(_cosine(a, b) for a, b in zip(sides[0][name], sides[1][name])) for name in sides[0]}


def _sums(reference: Bundle, bundle: Bundle, graph: str) -> list[str]:
    ours, theirs = (onnx.load_from_string(one.graph(graph)).graph for one in (reference, bundle))
    there = {name for node in theirs.node for name in node.output}
    found = [n.input[0] for n in ours.node if n.op_type == "LayerNormalization" and n.input[0] in there]
    return list(dict.fromkeys(found))


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _f1(probabilities: Array, labels: Sequence[int], names: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    truth = torch.tensor(labels)
    kept = truth != UNLABELLED
    if not kept.any():
        return None, {}
    found = scores(torch.from_numpy(probabilities).clamp(min=1e-12).log()[kept], truth[kept], names)
    by_label = {n: _harmonic(found["precision"][n], found["recall"][n]) for n in names}
    return float(found["weighted_f1"]), by_label


def _harmonic(a: float, b: float) -> float:
    return round(2 * a * b / (a + b), 4) if a + b else 0.0


def table(steps: Sequence[Step], turns: int) -> Table:
    """For people."""
    shown = Table(
        "step", "largest and mean difference", "flips", "cosine, least", "SNR", "weighted F1", "ms", "MB", "",
        title=f"against PyTorch in float32, {turns} turns",
    )  # fmt: skip
    for s in steps:
        shown.add_row(
            s.name, f"{s.difference_max:.1e} {s.difference_mean:.1e}", f"{s.flip_rate:.2%}",
            f"{s.cosine_mean:.5f} {s.cosine_min:.4f}", f"{s.snr_db:.0f} dB",
            "-" if s.f1_drop is None else f"{s.weighted_f1:.4f} ({-s.f1_drop:+.4f})", f"{s.milliseconds:.1f}",
            f"{s.megabytes:.1f}", "; ".join(s.broken) or "kept",
        )  # fmt: skip
    return shown


def walk(
    learner: Learner, bundles: Sequence[Path], dialogues: Sequence[Dialogue], threads: int, layer_turns: int = 40
) -> list[Step]:
    """Every bundle, the float32 one first, against PyTorch on the same conversations."""
    loaded = [load_bundle(path) for path in bundles]
    reference = next((b for b in loaded if b.manifest["precision"] == "float32"), None)
    first = loaded[0]
    expected = in_torch(learner, dialogues, first.manifest["temperatures"])
    labels = [u.label for d in dialogues for u in d.turns]
    few = _first_turns(dialogues, layer_turns)
    steps = []
    for bundle in loaded:
        layers = layer_cosines(reference, bundle, few) if reference is not None and bundle is not reference else {}
        found = in_runtime(bundle, dialogues, threads)
        steps.append(compared(bundle, found, expected, labels, bundle.labels, layers))
    return steps


def _first_turns(dialogues: Sequence[Dialogue], count: int) -> list[Dialogue]:
    """Conversations of about so many turns in all."""
    found, have = [], 0
    for d in dialogues:
        part = Dialogue(d.name, d.split, d.turns[: count - have])
        have += len(part.turns)
        found.append(part)
        if have >= count:
            break
    return found
