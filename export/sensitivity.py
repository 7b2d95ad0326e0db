"""Which blocks of a model INT8 hurts, one at a time, on held-out conversations.

    python -m export.sensitivity runs/mine/float32 --calibration runs/mine/calibration.json --out runs/mine/sensitivity

Every block (export/linears.py) is computed in INT8 while all others stay float32; blocks are ranked by loss of weighted
F1, then label flips, then KL divergence from float32, on dev conversations. Writes OUT.json and OUT.png.
"""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from export.calibrate import Calibration, all_linears, load
from export.compare import Outcome, judged, labels_of, measures, predictions
from export.conversations import conversations, counts, digest
from export.histogram import Method
from export.int8 import quantised
from export.qdq import Profile, Recipe, chosen_linears
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.machine import saturates_here
from training.command import cli
from training.corpora.records import CorpusError, Dialogue
from training.files import write_json

RANKED = 400  # turns: a block's flips and divergence show, its weighted F1 is within noise


@dataclass(frozen=True)
class Cost:
    """What computing a block in INT8 does on held-out conversations.

    Attributes:
        block: its name; "all" for everything at once.
        f1_drop: weighted F1 of float32 less that of INT8.
        flip_rate: share of turns whose label differs.
        kl_divergence: of the probabilities, mean over turns, nats.
        cosine: of the fused vector, mean over turns.
        snr_db: of the logits.
    """

    block: str
    f1_drop: float
    flip_rate: float
    kl_divergence: float
    cosine: float
    snr_db: float

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
        self.reference = self._run(bundle.path)
        self.f1 = self.weighted_f1(self.reference)

    def part(self, turns: int) -> Held:
        """The first conversations of about so many turns: enough to rank blocks by."""
        made = copy.copy(self)
        ends = list(itertools.accumulate(len(d.turns) for d in self.dialogues))
        count = min(len(ends), 1 + sum(end < turns for end in ends))
        whole, turns = self.reference, ends[count - 1]
        made.dialogues = self.dialogues[:count]
        made.reference = Outcome(whole.probabilities[:turns], whole.embeddings[:turns])
        made.f1 = made.weighted_f1(made.reference)
        return made

    def cost(self, calibration: Calibration, recipe: Recipe, name: str) -> Cost:
        """Of a recipe."""
        with tempfile.TemporaryDirectory(prefix="hbaf-candidate-") as folder:
            found = self._run(quantised(self.bundle, calibration, recipe, Path(folder) / "bundle"))
        moved = measures(found, self.reference)
        costs = (moved[name] for name in ("flip_rate", "kl_divergence", "cosine_mean", "snr_db"))
        return Cost(name, *(round(cost, 6) for cost in (self.f1 - self.weighted_f1(found), *costs)))

    def weighted_f1(self, found: Outcome) -> float:
        """Of the labelled turns; 0 without any."""
        scored = judged(found, labels_of(self.dialogues), self.bundle.labels)
        return float(scored["weighted_f1"]) if scored else 0.0

    def _run(self, path: str | Path) -> Outcome:
        with HBAFRuntime(path, threads=self.threads) as runtime:
            return Outcome.of(predictions(runtime, self.dialogues))


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


def picture(costs: Sequence[Cost], path: Path) -> None:
    """A bar for each block's flips and KL divergence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ordered = list(reversed(costs))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.28 * len(ordered) + 1.5), sharey=True)
    left.barh([c.block for c in ordered], [100 * c.flip_rate for c in ordered], color="#4477aa")
    left.set_xlabel("labels flipped, %")
    right.barh([c.block for c in ordered], [c.kl_divergence for c in ordered], color="#cc6677")
    right.set_xlabel("KL divergence from float32, nats")
    figure.suptitle("one block in INT8, all others in float32")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@dataclass(frozen=True)
class Options:
    """What sensitivity and quantize can both be told."""

    profile: Profile = "cpu"  # what runs it: ONNX Runtime on a CPU, or TensorRT
    method: Method = Recipe.method  # of the calibration's ranges
    weights: Literal["auto", "7", "8"] = "8"  # bits; auto: 7 without VNNI here
    migration: float = Recipe.migration  # of scale into weights, 0 to 1
    on: str | None = None  # corpus in place of the bundle's own, such as manifest:mine.jsonl
    turns: int = RANKED  # held-out turns
    threads: int = 2  # of the runtimes


def recipe_of(given: Options, float_blocks: Sequence[str] = ()) -> Recipe:
    """The recipe that options ask for."""
    narrow = saturates_here() if given.weights == "auto" else given.weights == "7"
    return Recipe(given.profile, given.method, narrow and given.profile == "cpu", given.migration, tuple(float_blocks))


def held_out(given: Options, bundle: Bundle) -> tuple[Held, dict[str, Any]]:
    """Dev conversations and what there is of them."""
    dialogues = conversations(bundle.manifest, "dev", given.turns, given.on, seed=1)
    if not counts(dialogues)["labelled"]:
        raise CorpusError("the dev split has no labelled turn; weighted F1 cannot be measured on it")
    return Held(bundle, dialogues, given.threads), {**counts(dialogues), "sha256": digest(dialogues)}


def main(bundle: Path, /, calibration: Path, out: Path, options: Options = Options()) -> None:
    """Rank.

    Args:
        bundle: float32 bundle.
        calibration: file of export.calibrate.
        out: OUT.json and OUT.png.
        options: recipe and held-out turns.
    """
    whole = load_bundle(bundle)
    ranges, recipe = load(calibration, whole), recipe_of(options)
    held, data = held_out(options, whole)
    costs = [held.cost(ranges, recipe, "all"), *sensitivity(held, ranges, recipe)]
    Console().print(table(costs, f"{recipe.profile}, {recipe.method}: one block in INT8, {data['turns']} dev turns"))
    result = {"recipe": asdict(recipe), "data": data, "weighted_f1_float32": held.f1, "blocks": [*map(asdict, costs)]}
    print(json.dumps(result))
    write_json(out.with_name(out.name + ".json"), result, indent=1)
    picture(costs[1:], out.with_name(out.name + ".png"))


if __name__ == "__main__":
    cli(main)
