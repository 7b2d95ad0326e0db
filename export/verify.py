"""Every step of an export against PyTorch: turn by turn in the runtime against the whole causal pass in float32.

    python -m export.verify runs/mine runs/mine/float32                      # on conversations of the example's clips
    python -m export.verify runs/mine runs/mine/float32 runs/mine/float16 runs/mine/int8 --split test

Differences, label flips, cosines of the fused vector and of every residual sum, weighted F1 by label, latency and size;
exits non-zero where a step breaks the limits of its precision. Without data the conversations are the example's clips
and words over 300 turns, speakers and missing modalities drawn at random, past the window often.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from export.compare import Array, Outcome, cosines, in_runtime, judged, labels_of, measures, predictions, watched
from export.conversations import conversations, counts, first_turns
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.cli import EXAMPLE, read_dialogue
from hbaf_edge.machine import machine
from training.command import cli
from training.config import TrainConfig
from training.corpora.records import UNLABELLED, Dialogue, Utterance
from training.files import write_json
from training.learner import Learner, load_learner
from training.material import Material
from training.stages import predict

# What a bundle of each precision may differ by, in the words of `compared`; those of AT_LEAST must not be less.
LIMITS = {
    "float32": {"difference_max": 1e-4, "flip_rate": 0.0},
    "float16": {"flip_rate": 0.002, "cosine_mean": 0.999},
    "int8-weights": {"flip_rate": 0.02, "cosine_mean": 0.995},
    "int8": {"flip_rate": 0.02, "cosine_mean": 0.995, "f1_drop": 0.005},
    "int8-tensorrt": {"flip_rate": 0.02, "snr_db": 30.0},
}
AT_LEAST = ("cosine_mean", "snr_db")
Step = dict[str, Any]  # a bundle against PyTorch: a row of the parity chain, see `compared`


def in_torch(learner: Learner, dialogues: Sequence[Dialogue], temperatures: dict[str, float]) -> Outcome:
    """PyTorch in float32, the whole causal pass over each dialogue."""
    found = predict(learner, Material(learner, TrainConfig(), cached=False), dialogues, "audio+text")
    scaled = found.logits.double() / torch.tensor([temperatures[kind] for kind in found.shown])[:, None]
    return Outcome(torch.softmax(scaled, -1).numpy(), found.embedding.numpy())


def compared(
    bundle: Bundle, found: Outcome, reference: Outcome, labels: Sequence[int], layers: dict[str, float]
) -> Step:
    """One bundle against PyTorch, judged by the limits of its precision.

    Returns:
        `measures` (export/compare.py), name (of the precision), key (of the bundle), broken (limits, in words),
        weighted_f1, f1_drop and f1_by_label (of labelled turns; None and empty without any), milliseconds (median of a
        turn on this machine), megabytes, layers (cosine of each residual sum with float32's, by name).
    """
    name = bundle.manifest["precision"]
    step: Step = {"name": name, "key": bundle.key, **measures(found, reference), "weighted_f1": None, "f1_drop": None,
                  "f1_by_label": {}, "milliseconds": found.milliseconds, "megabytes": bundle.megabytes,
                  "layers": layers}  # fmt: skip
    before, after = (judged(one, labels, bundle.labels) for one in (reference, found))
    if before is not None and after is not None:
        step["weighted_f1"] = after["weighted_f1"]
        step["f1_drop"] = before["weighted_f1"] - after["weighted_f1"]
        step["f1_by_label"] = {label: round(value, 4) for label, value in after["f1"].items()}
    return step | {"broken": broken(LIMITS[name], step)}


def broken(limits: dict[str, float], measured: Step) -> list[str]:
    """The limits that a measurement breaks, in words.

    >>> found = {"flip_rate": 0.03, "snr_db": 35.0, "f1_drop": None}
    >>> broken({"flip_rate": 0.02, "snr_db": 30, "f1_drop": 0.005}, found)
    ['flip_rate 0.03, allowed 0.02']
    """
    found = []
    for name, limit in limits.items():
        value, least = measured[name], name in AT_LEAST
        if value is None:  # nothing was labelled
            continue
        if not (value >= limit if least else value <= limit):  # NaN keeps nothing
            found.append(f"{name} {value:.5g}, {'at least' if least else 'allowed'} {limit:g}")
    return found


def layer_cosines(reference: Bundle, bundle: Bundle, dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Cosine of every residual sum (what a LayerNorm reads) with float32's, over all turns; the least of each tensor's.

    Scale migration and Q/DQ leave these tensors their names and their meaning.
    """
    wanted = {graph: names for graph in GRAPHS if (names := _sums(reference, bundle, graph))}
    sides = []
    for one in (reference, bundle):
        kept: dict[str, list[Array]] = {}

        def see(graph: str, tensors: dict[str, Array], kept: dict[str, list[Array]] = kept) -> None:
            for name, value in tensors.items():
                kept.setdefault(f"{graph}/{name}", []).append(value.astype(np.float32).ravel())

        with watched(one, wanted, see) as runtime:
            predictions(runtime, dialogues)
        sides.append(kept)
    return {name: min(float(cosines(a, b)) for a, b in zip(sides[0][name], sides[1][name])) for name in sides[0]}


def _sums(reference: Bundle, bundle: Bundle, graph: str) -> list[str]:
    ours, theirs = (onnx.load_from_string(one.graph(graph)).graph for one in (reference, bundle))
    there = {name for node in theirs.node for name in node.output}
    found = [n.input[0] for n in ours.node if n.op_type == "LayerNormalization" and n.input[0] in there]
    return list(dict.fromkeys(found))


def walk(
    learner: Learner,
    bundles: Sequence[Path],
    dialogues: Sequence[Dialogue],
    threads: int,
    layer_turns: int = 40,
) -> list[Step]:
    """Every bundle, the float32 one first, against PyTorch on the same conversations."""
    loaded = [load_bundle(path) for path in bundles]
    reference = next((b for b in loaded if b.manifest["precision"] == "float32"), None)
    expected = in_torch(learner, dialogues, loaded[0].manifest["temperatures"])
    few = first_turns(dialogues, layer_turns)
    steps = []
    for bundle in loaded:
        layers = layer_cosines(reference, bundle, few) if reference is not None and bundle is not reference else {}
        found = in_runtime(bundle.path, dialogues, threads)
        steps.append(compared(bundle, found, expected, labels_of(dialogues), layers))
    return steps


def table(steps: Sequence[Step], turns: int) -> Table:
    """For people."""
    shown = Table(
        "step", "largest and mean difference", "flips", "cosine, least", "SNR", "weighted F1", "ms", "MB", "",
        title=f"against PyTorch in float32, {turns} turns",
    )  # fmt: skip
    for s in steps:
        shown.add_row(
            s["name"], f"{s['difference_max']:.1e} {s['difference_mean']:.1e}", f"{s['flip_rate']:.2%}",
            f"{s['cosine_mean']:.5f} {s['cosine_min']:.4f}", f"{s['snr_db']:.0f} dB",
            "-" if s["f1_drop"] is None else f"{s['weighted_f1']:.4f} ({-s['f1_drop']:+.4f})",
            f"{s['milliseconds']:.1f}", f"{s['megabytes']:.1f}", "; ".join(s["broken"]) or "kept",
        )  # fmt: skip
    return shown


def conversation(turns: int = 100, seed: int = 0) -> Dialogue:
    """The example's clips and words in random order, speakers and missing modalities drawn at random."""
    rng = random.Random(seed)
    example = list(read_dialogue(EXAMPLE))
    made = []
    for _ in range(turns):
        turn, kind = rng.choice(example), rng.random()
        audio = None if kind < 0.2 else turn["audio"]
        text = "" if kind > 0.8 else turn["text"]
        made.append(Utterance(text, UNLABELLED, rng.choice(["anna", "bob", None]), audio))
    return Dialogue("verify", "dev", tuple(made))


def main(
    checkpoint: Path,
    bundles: tuple[Path, ...],
    /,
    split: Literal["train", "dev", "test"] | None = None,
    on: str | None = None,
    turns: int = 1500,
    threads: int = 1,
    save: Path | None = None,
) -> None:
    """Verify.

    Args:
        checkpoint: that the bundles were made of.
        bundles: float32 first, then what was made of it.
        split: of the model's own corpora.
        on: corpus in place of the model's own, such as manifest:mine.jsonl.
        turns: how many, about.
        threads: of the runtimes.
        save: JSON, such as benchmarks/results/parity-default.json.
    """
    manifest = load_bundle(bundles[0]).manifest
    if split or on:
        talks = conversations(manifest, split or "dev", turns, on, seed=2)
    else:
        talks = [conversation(seed=seed) for seed in range(3)]
    steps = walk(load_learner(checkpoint), bundles, talks, threads)
    console = Console()
    console.width = max(console.width, 130)  # a log wraps what a terminal shows
    console.print(table(steps, sum(len(d.turns) for d in talks)))
    result = {
        "machine": machine(), "threads": threads, "data": {**counts(talks), "split": split or "example"},
        "model": manifest["name"], "steps": steps,
    }  # fmt: skip
    print(json.dumps(result))
    if save:
        write_json(save, result, indent=1)
    if any(s["broken"] for s in steps):
        raise SystemExit("; ".join(f"{s['name']}: {why}" for s in steps for why in s["broken"]))


if __name__ == "__main__":
    cli(main)
