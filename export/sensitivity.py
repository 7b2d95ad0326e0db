"""Which blocks of a model INT8 hurts, one at a time, on held-out conversations.

    python -m export.sensitivity runs/mine/float32 --calibration runs/mine/calibration.json --out runs/mine/sensitivity

Every block (export/linears.py) is computed in INT8 while all others stay float32; blocks are ranked by loss of weighted
F1, then label flips, then KL divergence from float32, on dev conversations. Writes OUT.json and OUT.png.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from export.calibrate import Calibration, all_linears, load
from export.command import run, write_json
from export.compare import drift, judged, predictions
from export.conversations import conversations, counts, digest
from export.histogram import METHODS
from export.int8 import PRECISIONS, quantised
from export.qdq import Recipe, chosen_linears
from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.machine import saturates_here
from training.corpora.records import CorpusError, Dialogue

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
        self.f1 = self._f1(self.reference)

    def part(self, turns: int) -> Held:
        """The first conversations of about so many turns: enough to rank blocks by."""
        made = copy.copy(self)
        ends = list(itertools.accumulate(len(d.turns) for d in self.dialogues))
        count = min(len(ends), 1 + sum(end < turns for end in ends))
        made.dialogues, made.reference = self.dialogues[:count], self.reference[: ends[count - 1]]
        made.f1 = made._f1(made.reference)
        return made

    def cost(self, calibration: Calibration, recipe: Recipe, name: str) -> Cost:
        """Of a recipe."""
        with tempfile.TemporaryDirectory(prefix="hbaf-candidate-") as folder:
            found = self._run(quantised(self.bundle, calibration, recipe, Path(folder) / "bundle"))
        moved = drift(found, self.reference)
        drop = round(self.f1 - self._f1(found), 5)
        return Cost(
            name, drop, moved["flip_rate"], moved["kl_divergence"], moved["embedding_cosine_mean"], moved["snr_db"]
        )

    def _run(self, path: str | Path) -> list[Prediction]:
        with HBAFRuntime(path, threads=self.threads) as runtime:
            return predictions(runtime, self.dialogues)

    def _f1(self, found: Sequence[Prediction]) -> float:
        return float(judged(found, self.dialogues, self.bundle.labels)["weighted_f1"])


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What sensitivity and quantize have in common."""
    parser.add_argument("bundle", type=Path, help="float32 bundle")
    parser.add_argument("--profile", choices=list(PRECISIONS), default="cpu")
    parser.add_argument("--method", choices=METHODS, default=Recipe.method)
    parser.add_argument("--weights", choices=("auto", "7", "8"), default="8", help="bits; auto: 7 without VNNI here")
    parser.add_argument("--migration", type=float, default=Recipe.migration, help="of scale into weights, 0 to 1")
    parser.add_argument("--on", help="corpus in place of the bundle's own, such as manifest:mine.jsonl")
    parser.add_argument("--turns", type=int, default=RANKED, help="held-out turns")
    parser.add_argument("--threads", type=int, default=2)


def recipe_of(given: argparse.Namespace, float_blocks: Sequence[str] = ()) -> Recipe:
    """The recipe that arguments ask for."""
    narrow = saturates_here() if given.weights == "auto" else given.weights == "7"
    narrow = narrow and given.profile == "cpu"
    return Recipe(given.profile, given.method, narrow, given.migration, tuple(float_blocks))


def held_out(given: argparse.Namespace, bundle: Bundle) -> tuple[Held, dict[str, Any]]:
    """Dev conversations and what there is of them."""
    dialogues = conversations(bundle.manifest, "dev", given.turns, given.on, seed=1)
    if not counts(dialogues)["labelled"]:
        raise CorpusError("the dev split has no labelled turn; weighted F1 cannot be measured on it")
    return Held(bundle, dialogues, given.threads), {**counts(dialogues), "sha256": digest(dialogues)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.png")
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    calibration, recipe = load(given.calibration, bundle), recipe_of(given)
    held, data = held_out(given, bundle)
    costs = [held.cost(calibration, recipe, "all"), *sensitivity(held, calibration, recipe)]
    Console().print(table(costs, f"{recipe.profile}, {recipe.method}: one block in INT8, {data['turns']} dev turns"))
    result = {"recipe": asdict(recipe), "data": data, "weighted_f1_float32": held.f1, "blocks": [*map(asdict, costs)]}
    print(json.dumps(result))
    write_json(given.out.with_name(given.out.name + ".json"), result, indent=1)
    picture(costs[1:], given.out.with_name(given.out.name + ".png"))


if __name__ == "__main__":
    run(main)
