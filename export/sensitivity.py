"""Which blocks of a model INT8 hurts, one at a time, on held-out conversations.

Every block (export/linears.py) is computed in INT8 while all others stay float32; blocks are ranked by loss of weighted
F1, then label flips, then KL divergence from float32, on dev conversations.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from rich.progress import track
from rich.table import Column, Table

from export.calibrate import Calibration, all_linears
from export.compare import Outcome, in_runtime, judged, labels_of, measures
from export.conversations import conversations, counts, digest, first_turns
from export.int8 import quantised
from export.qdq import Recipe, chosen_linears
from hbaf_edge.bundle import GRAPHS, Bundle
from training.corpora.records import CorpusError, Dialogue

RANKED = 400  # turns: a block's flips and divergence show, its weighted F1 is within noise


@dataclass(frozen=True)
class Cost:
    """What computing a block in INT8 does on held-out conversations."""

    block: str  # its name; "all" for everything at once
    f1_drop: float  # weighted F1 of float32 less that of INT8
    flip_rate: float  # share of turns whose label differs
    kl_divergence: float  # of the probabilities, mean over turns, nats
    cosine: float  # of the fused vector, mean over turns
    snr_db: float  # of the logits

    @property
    def rank(self) -> tuple[float, float, float]:
        """Worse is larger. F1 on some hundred turns moves in steps of a turn: below a hundredth it says little."""
        return (round(max(self.f1_drop, 0.0), 2), self.flip_rate, self.kl_divergence)


class Held:
    """Held-out conversations with what float32 makes of them, to hold candidates against.

    Args:
        bundle: float32.
        dialogues: conversations with labels.
        threads: of the runtimes.
    """

    def __init__(self, bundle: Bundle, dialogues: Sequence[Dialogue], threads: int = 2) -> None:
        self.bundle, self.dialogues, self.threads = bundle, dialogues, threads
        self.reference = in_runtime(bundle.path, dialogues, threads)
        self.f1 = self.weighted_f1(self.reference)

    def part(self, turns: int) -> Held:
        """The first turns: enough to rank blocks by."""
        made = copy.copy(self)
        made.dialogues = first_turns(self.dialogues, turns)
        made.reference = Outcome(self.reference.probabilities[:turns], self.reference.embeddings[:turns])
        made.f1 = made.weighted_f1(made.reference)
        return made

    def cost(self, calibration: Calibration, recipe: Recipe, name: str) -> Cost:
        """Of a recipe."""
        with tempfile.TemporaryDirectory(prefix="hbaf-candidate-") as folder:
            path = quantised(self.bundle, calibration, recipe, Path(folder) / "bundle")
            found = in_runtime(path, self.dialogues, self.threads)
        moved = measures(found, self.reference)
        costs = (moved[name] for name in ("flip_rate", "kl_divergence", "cosine_mean", "snr_db"))
        return Cost(name, *(round(cost, 6) for cost in (self.f1 - self.weighted_f1(found), *costs)))

    def weighted_f1(self, found: Outcome) -> float:
        """Of the labelled turns; 0 without any."""
        scored = judged(found, labels_of(self.dialogues), self.bundle.labels)
        return float(scored["weighted_f1"]) if scored else 0.0


def blocks_of(bundle: Bundle) -> list[str]:
    """In the order of the model."""
    return list(dict.fromkeys(one.block for one in all_linears(bundle)))


def computed_blocks(bundle: Bundle, calibration: Calibration, recipe: Recipe) -> set[str]:
    """Those that a recipe computes in INT8: the profile can, data reached them, and they are not kept in float32."""
    found = set()
    for graph in GRAPHS:
        model = onnx.load_from_string(bundle.graph(graph))
        chosen = chosen_linears(graph, model, recipe, calibration.ranges[recipe.method])
        found |= {one.block for one in chosen}
    return found


def sensitivity(held: Held, calibration: Calibration, recipe: Recipe) -> list[Cost]:
    """Every block by itself, the worst first; what the recipe keeps in float32 is left out."""
    blocks, found = blocks_of(held.bundle), []
    computed = computed_blocks(held.bundle, calibration, recipe)
    for block in track([b for b in blocks if b in computed], description="blocks, one at a time"):
        alone = replace(recipe, float_blocks=tuple(b for b in blocks if b != block))
        found.append(held.cost(calibration, alone, block))
    return sorted(found, key=lambda cost: cost.rank, reverse=True)


def table(costs: Sequence[Cost], title: str) -> Table:
    """For people."""
    head = ("weighted F1 lost", "labels flipped", "KL divergence", "cosine", "SNR")
    shown = Table(Column("block", no_wrap=True), *head, title=title)
    for c in costs:
        shown.add_row(c.block, f"{c.f1_drop:+.4f}", f"{c.flip_rate:.2%}", f"{c.kl_divergence:.5f}", f"{c.cosine:.5f}",
                      f"{c.snr_db:.1f} dB")  # fmt: skip
    return shown


def held_out(bundle: Bundle, turns: int, on: str | None, threads: int) -> tuple[Held, dict[str, Any]]:
    """Dev conversations and what there is of them."""
    dialogues = conversations(bundle.manifest, "dev", turns, on, seed=1)
    if not counts(dialogues)["labelled"]:
        raise CorpusError("the dev split has no labelled turn; weighted F1 cannot be measured on it")
    return Held(bundle, dialogues, threads), {**counts(dialogues), "sha256": digest(dialogues)}
