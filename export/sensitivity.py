"""Measure how much INT8 costs in each block of a model, one block at a time, on held-out conversations.

One block (export/quantizable_matmuls.py) is computed in INT8 while all others stay float32. Blocks are ranked by loss
of weighted F1, then label flips, then KL divergence from float32, on dev conversations.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from rich.table import Column, Table

from export.calibrate import Calibration, bundle_matmuls
from export.compare import ModelOutputs, labels_of, measures, run_in_runtime, score_turns
from export.console import progress
from export.conversations import conversations, counts, first_turns
from export.int8 import quantise_bundle
from export.qdq import Recipe, selected_matmuls
from hbaf_edge.bundle import GRAPHS, Bundle
from training.corpora.records import CorpusError, Dialogue, digest

RANKING_TURNS = 400  # enough to see a block's flips and divergence; its weighted F1 is within noise


@dataclass(frozen=True)
class Cost:
    """Effect of computing a block in INT8, on held-out conversations."""

    block: str  # its name; "all" for everything at once
    f1_drop: float  # weighted F1 of float32 minus that of INT8
    flip_rate: float  # share of turns whose label differs
    kl_divergence: float  # of the probabilities, mean over turns, nats
    cosine: float  # of the embeddings, mean over turns
    snr_db: float  # of the logits

    @property
    def rank(self) -> tuple[float, float, float]:
        """Sort key; larger is worse. F1 is rounded to 0.01, since smaller steps on a few hundred turns are noise."""
        return (round(max(self.f1_drop, 0.0), 2), self.flip_rate, self.kl_divergence)


class Evaluator:
    """Compares INT8 candidates with float32 on held-out conversations. The float32 results are computed once.

    Args:
        bundle: float32.
        dialogues: conversations with labels.
        threads: of the runtimes.
    """

    def __init__(self, bundle: Bundle, dialogues: Sequence[Dialogue], threads: int = 2) -> None:
        self.bundle, self.dialogues, self.threads = bundle, dialogues, threads
        self.reference = run_in_runtime(bundle.path, dialogues, threads)
        self.f1 = self.weighted_f1(self.reference)

    def subset(self, turns: int) -> Evaluator:
        """An evaluator on the first turns only, to rank blocks faster."""
        smaller = copy.copy(self)
        smaller.dialogues = first_turns(self.dialogues, turns)
        smaller.reference = ModelOutputs(self.reference.probabilities[:turns], self.reference.embeddings[:turns])
        smaller.f1 = smaller.weighted_f1(smaller.reference)
        return smaller

    def cost(self, calibration: Calibration, recipe: Recipe, name: str) -> Cost:
        """Convert the bundle with a recipe and measure what that costs."""
        with tempfile.TemporaryDirectory(prefix="hbaf-candidate-") as folder:
            path = quantise_bundle(self.bundle, calibration, recipe, Path(folder) / "bundle")
            outputs = run_in_runtime(path, self.dialogues, self.threads)
        differences = measures(outputs, self.reference)
        costs = (differences[name] for name in ("flip_rate", "kl_divergence", "cosine_mean", "snr_db"))
        return Cost(name, *(round(cost, 6) for cost in (self.f1 - self.weighted_f1(outputs), *costs)))

    def weighted_f1(self, outputs: ModelOutputs) -> float:
        """Weighted F1 of the labelled turns; 0 if there are none."""
        scored = score_turns(outputs, labels_of(self.dialogues), self.bundle.labels)
        return float(scored["weighted_f1"]) if scored else 0.0


def block_names(bundle: Bundle) -> list[str]:
    """All blocks, in the order of the model."""
    return list(dict.fromkeys(matmul.block for matmul in bundle_matmuls(bundle)))


def int8_blocks(bundle: Bundle, calibration: Calibration, recipe: Recipe) -> set[str]:
    """The blocks that a recipe computes in INT8: calibrated, possible in the profile, and not kept in float32."""
    blocks = set()
    for graph in GRAPHS:
        model = onnx.load_from_string(bundle.graph(graph))
        selected = selected_matmuls(graph, model, recipe, calibration.ranges[recipe.method])
        blocks |= {matmul.block for matmul in selected}
    return blocks


def rank_blocks(evaluator: Evaluator, calibration: Calibration, recipe: Recipe) -> list[Cost]:
    """The cost of each block on its own, worst first, without the blocks that the recipe keeps in float32."""
    blocks, costs = block_names(evaluator.bundle), []
    candidates = int8_blocks(evaluator.bundle, calibration, recipe)
    for block in progress([b for b in blocks if b in candidates], "blocks, one at a time"):
        only_this = replace(recipe, float_blocks=tuple(b for b in blocks if b != block))
        costs.append(evaluator.cost(calibration, only_this, block))
    return sorted(costs, key=lambda cost: cost.rank, reverse=True)


def cost_table(costs: Sequence[Cost], title: str) -> Table:
    """A table with one row per block."""
    columns = ("weighted F1 lost", "labels flipped", "KL divergence", "cosine", "SNR")
    table = Table(Column("block", no_wrap=True), *columns, title=title)
    for c in costs:
        table.add_row(c.block, f"{c.f1_drop:+.4f}", f"{c.flip_rate:.2%}", f"{c.kl_divergence:.5f}", f"{c.cosine:.5f}",
                      f"{c.snr_db:.1f} dB")  # fmt: skip
    return table


def dev_evaluator(bundle: Bundle, turns: int, on: str | None, threads: int) -> tuple[Evaluator, dict[str, Any]]:
    """An evaluator on dev conversations, and a description of the data."""
    dialogues = conversations(bundle.manifest, "dev", turns, on, seed=1)
    if not counts(dialogues)["labelled"]:
        raise CorpusError("the dev split has no labelled turn; weighted F1 cannot be measured on it")
    return Evaluator(bundle, dialogues, threads), {**counts(dialogues), "sha256": digest(dialogues)}
