"""Compare every bundle of an export with PyTorch: the runtime turn by turn, PyTorch in one float32 pass per dialogue.

    python -m export.verify runs/mine runs/mine/float32                      # on conversations of the example's clips
    python -m export.verify runs/mine runs/mine/float32 runs/mine/float16 runs/mine/int8 --split dev

Reports differences, label flips, cosines of the embedding and of every residual sum, weighted F1 by label, latency and
size. Fails if a bundle exceeds the limits of its precision. Without --split and --on, the data are 300 turns made from
the example's clips and texts, with random speakers and missing modalities, in conversations longer than the window.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from export.compare import (
    Array,
    ModelOutputs,
    cosines,
    labels_of,
    measures,
    predictions,
    run_in_runtime,
    score_turns,
    tapped_runtime,
)
from export.conversations import conversations, counts, first_turns
from hbaf_edge.bench.document import commit_here
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.cli import EXAMPLE, read_dialogue
from hbaf_edge.machine import machine_info
from training.checkpoint import describe
from training.command import cli, emit
from training.config import TrainConfig
from training.corpora.records import UNLABELLED, Dialogue, Utterance
from training.feature_provider import FeatureProvider
from training.files import write_json
from training.tasks import predict
from training.training_module import TrainingModule, load_training_module

# Largest difference of a bundle by precision, named as in `parity_row`. Those in AT_LEAST are smallest values.
LIMITS = {
    "float32": {"difference_max": 1e-4, "flip_rate": 0.0},
    "float16": {"flip_rate": 0.002, "cosine_mean": 0.999},
    "int8-weights": {"flip_rate": 0.02, "cosine_mean": 0.995},
    "int8": {"flip_rate": 0.02, "cosine_mean": 0.995, "f1_drop": 0.005},
    "int8-tensorrt": {"flip_rate": 0.02, "snr_db": 30.0},
}
AT_LEAST = ("cosine_mean", "snr_db")
ParityRow = dict[str, Any]  # one bundle against PyTorch, see `parity_row`


def run_in_torch(module: TrainingModule, dialogues: Sequence[Dialogue], temperatures: dict[str, float]) -> ModelOutputs:
    """Run PyTorch in float32: one causal pass over each dialogue."""
    result = predict(module, FeatureProvider(module, TrainConfig(), cached=False), dialogues, "audio+text")
    scaled = result.logits.double() / torch.tensor([temperatures[kind] for kind in result.modalities])[:, None]
    return ModelOutputs(torch.softmax(scaled, -1).numpy(), result.embedding.numpy())


def parity_row(
    bundle: Bundle, outputs: ModelOutputs, reference: ModelOutputs, labels: Sequence[int], layers: dict[str, float]
) -> ParityRow:
    """Compare one bundle with PyTorch and check the limits of its precision.

    Returns:
        `measures` (export/compare.py); name (the precision), key and sha256 (of the bundle and of its graphs); broken
        (exceeded limits, as text); weighted_f1, f1_drop and f1_by_label (of labelled turns; None and empty without
        any); milliseconds (median per turn on this machine); megabytes; layers (cosine of each residual sum with
        float32's, by name).
    """
    name = bundle.manifest["precision"]
    row: ParityRow = {"name": name, "key": bundle.key, "sha256": bundle.model_key, **measures(outputs, reference),
                      "weighted_f1": None, "f1_drop": None, "f1_by_label": {}, "milliseconds": outputs.milliseconds,
                      "megabytes": bundle.megabytes, "layers": layers}  # fmt: skip
    expected, actual = (score_turns(results, labels, bundle.labels) for results in (reference, outputs))
    if expected is not None and actual is not None:
        row["weighted_f1"] = actual["weighted_f1"]
        row["f1_drop"] = expected["weighted_f1"] - actual["weighted_f1"]
        row["f1_by_label"] = {label: round(value, 4) for label, value in actual["f1"].items()}
    return row | {"broken": exceeded_limits(LIMITS[name], row)}


def exceeded_limits(limits: dict[str, float], row: ParityRow) -> list[str]:
    """The limits that a bundle exceeds, as text.

    >>> row = {"flip_rate": 0.03, "snr_db": 35.0, "f1_drop": None}
    >>> exceeded_limits({"flip_rate": 0.02, "snr_db": 30, "f1_drop": 0.005}, row)
    ['flip_rate 0.03, allowed 0.02']
    """
    exceeded = []
    for name, limit in limits.items():
        value, is_minimum = row[name], name in AT_LEAST
        if value is None:  # no turn has a label
            continue
        if not (value >= limit if is_minimum else value <= limit):  # written so that NaN exceeds every limit
            exceeded.append(f"{name} {value:.5g}, {'at least' if is_minimum else 'allowed'} {limit:g}")
    return exceeded


def layer_cosines(reference: Bundle, bundle: Bundle, dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Smallest cosine over all turns between each residual sum and that of the float32 bundle, by tensor name.

    A residual sum is the input of a LayerNorm. SmoothQuant and Q/DQ change neither its name nor its meaning.
    """
    sums = {graph: names for graph in GRAPHS if (names := _residual_sums(reference, bundle, graph))}
    expected, actual = (_record_tensors(one, sums, dialogues) for one in (reference, bundle))
    return {name: min(float(cosines(a, b)) for a, b in zip(expected[name], actual[name])) for name in expected}


def _record_tensors(
    bundle: Bundle, names: dict[str, list[str]], dialogues: Sequence[Dialogue]
) -> dict[str, list[Array]]:
    """Run a bundle and return the values of inner tensors, one flat array per run, by graph and tensor name."""
    tensors: dict[str, list[Array]] = {}

    def record(graph: str, values: dict[str, Array]) -> None:
        for name, value in values.items():
            tensors.setdefault(f"{graph}/{name}", []).append(value.astype(np.float32).ravel())

    with tapped_runtime(bundle, names, record) as runtime:
        predictions(runtime, dialogues)
    return tensors


def _residual_sums(reference: Bundle, bundle: Bundle, graph: str) -> list[str]:
    """Inputs of the reference's LayerNorms that the other bundle also computes."""
    expected, actual = (onnx.load_from_string(one.graph(graph)).graph for one in (reference, bundle))
    produced = {name for node in actual.node for name in node.output}
    norms = [node for node in expected.node if node.op_type == "LayerNormalization"]
    return list(dict.fromkeys(norm.input[0] for norm in norms if norm.input[0] in produced))


def parity_chain(
    module: TrainingModule,
    bundles: Sequence[Path],
    dialogues: Sequence[Dialogue],
    threads: int,
    layer_turns: int = 40,
) -> list[ParityRow]:
    """Compare bundles with PyTorch on the same conversations.

    Args:
        module: the checkpoint that the bundles were made from.
        bundles: the float32 bundle first.
        dialogues: conversations.
        threads: of the runtimes.
        layer_turns: number of turns on which residual sums are compared.
    """
    loaded = [load_bundle(path) for path in bundles]
    reference = next((b for b in loaded if b.manifest["precision"] == "float32"), None)
    expected = run_in_torch(module, dialogues, loaded[0].manifest["temperatures"])
    layer_dialogues = first_turns(dialogues, layer_turns)
    rows = []
    for bundle in loaded:
        layers = {}
        if reference is not None and bundle is not reference:
            layers = layer_cosines(reference, bundle, layer_dialogues)
        outputs = run_in_runtime(bundle.path, dialogues, threads)
        rows.append(parity_row(bundle, outputs, expected, labels_of(dialogues), layers))
    return rows


def parity_table(rows: Sequence[ParityRow], turns: int) -> Table:
    """A table with one row per bundle."""
    table = Table(
        "bundle", "largest and mean difference", "flips", "cosine, least", "SNR", "weighted F1", "ms", "MB", "limits",
        title=f"against PyTorch in float32, {turns} turns",
    )  # fmt: skip
    for r in rows:
        table.add_row(
            r["name"], f"{r['difference_max']:.1e} {r['difference_mean']:.1e}", f"{r['flip_rate']:.2%}",
            f"{r['cosine_mean']:.5f} {r['cosine_min']:.4f}", f"{r['snr_db']:.0f} dB",
            "-" if r["f1_drop"] is None else f"{r['weighted_f1']:.4f} ({-r['f1_drop']:+.4f})",
            f"{r['milliseconds']:.1f}", f"{r['megabytes']:.1f}", "; ".join(r["broken"]) or "met",
        )  # fmt: skip
    return table


def parity_about(folder: Path, rows: Sequence[ParityRow], split: str) -> dict[str, Any]:
    """What the card says about a chain: what the float32 weights are, turns, split, date and commit."""
    restored = "restored_from" in describe(folder)[0]
    reference = "the rounded weights, since the trained ones were not kept" if restored else "the trained weights"
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"reference": reference, "turns": rows[0]["turns"], "split": split, "created": created,
            "commit": commit_here()}  # fmt: skip


def example_dialogue(turns: int = 100, seed: int = 0) -> Dialogue:
    """The example's clips and texts in random order, with random speakers and missing modalities."""
    rng = random.Random(seed)
    example = list(read_dialogue(EXAMPLE))
    utterances = []
    for _ in range(turns):
        turn, draw = rng.choice(example), rng.random()
        audio = None if draw < 0.2 else turn["audio"]
        text = "" if draw > 0.8 else turn["text"]
        utterances.append(Utterance(text, UNLABELLED, rng.choice(["anna", "bob", None]), audio))
    return Dialogue("verify", "dev", tuple(utterances))


def main(
    checkpoint: Path,
    bundles: tuple[Path, ...],
    /,
    split: Literal["train", "dev"] | None = None,
    on: str | None = None,
    turns: int = 1500,
    threads: int = 1,
    save: Path | None = None,
    json_output: bool = False,
) -> None:
    """Verify bundles against their checkpoint.

    Args:
        checkpoint: that the bundles were made from.
        bundles: the float32 bundle first, then those made from it.
        split: of the model's own corpora.
        on: corpus to use instead of the model's own, such as manifest:mine.jsonl.
        turns: number of turns, about.
        threads: of the runtimes.
        save: JSON file for the result, for `export.bundle --parity`.
    """
    manifest = load_bundle(bundles[0]).manifest
    if split or on:
        dialogues = conversations(manifest, split or "dev", turns, on, seed=2)
    else:
        dialogues = [example_dialogue(seed=seed) for seed in range(3)]
    rows = parity_chain(load_training_module(checkpoint), bundles, dialogues, threads)
    result = {
        "machine": machine_info(), "threads": threads, "data": {**counts(dialogues), "split": split or "example"},
        "model": manifest["name"], "steps": rows, "about": parity_about(checkpoint, rows, split or "example"),
    }  # fmt: skip
    if save:
        write_json(save, result, indent=1)
    if not json_output:
        console = Console()
        console.width = max(console.width, 130)  # narrower than that, the table would wrap
        console.print(parity_table(rows, sum(len(d.turns) for d in dialogues)))
    emit(result, json_output)
    if any(row["broken"] for row in rows):
        raise SystemExit("; ".join(f"{row['name']}: {limit}" for row in rows for limit in row["broken"]))


if __name__ == "__main__":
    cli(main)
