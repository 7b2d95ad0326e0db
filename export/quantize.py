"""Float32 bundle -> INT8 bundle, within a budget of weighted F1, from a calibration file.

    python -m export.quantize runs/mine/float32 --calibration runs/mine/calibration.json --out runs/mine/int8
    python -m export.quantize FLOAT32 --calibration FILE --profile tensorrt --out runs/mine/int8-tensorrt
    python -m export.quantize FLOAT32 --weights-only --out runs/mine/int8-weights
    python -m export.quantize FLOAT32 --calibration FILE --turns 400 --rank --out runs/mine/blocks.json

Products with constant weights are computed in INT8 (export/qdq.py); residual sums, norms, softmax, gates and the head
are computed in float32. The result is run beside float32 on held-out dev conversations. While it costs more than
--max-f1-drop, flips more labels than --max-flips or has less than --min-snr dB at the logits, the block that hurts most
(export/sensitivity.py) goes back to float32; where that does not help the command shows the ranking, fails and writes
nothing. --weights-only stores INT8 and computes float32: it needs no calibration. The last line is JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from export.calibrate import Calibration, all_linears, load
from export.int8 import quantised, with_int8_weights
from export.place import check_place
from export.qdq import Recipe
from export.sensitivity import RANKED, Cost, Held, held_out, sensitivity, table
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import HBAFError, InputError
from training.command import cli
from training.files import write_json

HELD = 1500  # turns; weighted F1 on fewer moves by more than the budget from chance alone


class BudgetError(HBAFError):
    """No choice of blocks keeps the budget."""


@dataclass(frozen=True)
class Budget:
    """What INT8 may cost on held-out turns."""

    max_f1_drop: float = 0.005  # most that weighted F1 may lose
    max_flips: float = 0.02  # most labels that may flip, a share
    min_snr: float = 0.0  # least SNR of the logits, dB

    def keeps(self, cost: Cost) -> bool:
        """Whether a cost is within it."""
        return cost.f1_drop <= self.max_f1_drop and cost.flip_rate <= self.max_flips and cost.snr_db >= self.min_snr

    def __str__(self) -> str:
        return f"{self.max_f1_drop:g}, {self.max_flips:.2%} and {self.min_snr:g} dB"


def search(held: Held, calibration: Calibration, recipe: Recipe, budget: Budget) -> tuple[Recipe, list[Cost]]:
    """The recipe with as few blocks in float32 as keep the budget, and what every step cost.

    Raises:
        BudgetError: with half of the blocks in float32 it is still not kept; the message holds the ranking.
    """
    console = Console(stderr=True)
    steps = [held.cost(calibration, recipe, "all")]
    if budget.keeps(steps[0]):
        return recipe, steps
    ranking = sensitivity(held.part(RANKED), calibration, recipe)
    console.print(table([steps[0], *ranking], "one block in INT8, the worst first"))
    for cost in ranking[: max(1, len(ranking) // 2)]:
        recipe = replace(recipe, float_blocks=(*recipe.float_blocks, cost.block))
        steps.append(held.cost(calibration, recipe, f"without {cost.block}"))
        console.print(f"{cost.block} in float32: {_words(steps[-1])}")
        if budget.keeps(steps[-1]):
            return recipe, steps
    worst = "\n".join(f"  {c.block}: {_words(c)}" for c in ranking[:10])
    raise BudgetError(
        f"INT8 costs {_words(steps[-1])} even with {len(recipe.float_blocks)} blocks in float32; {budget} are allowed. "
        f"Calibrate on more conversations, try another --method, or allow more. The worst blocks:\n{worst}"
    )


def _words(cost: Cost) -> str:
    return f"{cost.f1_drop:+.4f} weighted F1, {cost.flip_rate:.2%} flips, {cost.snr_db:.1f} dB"


def main(
    bundle: Path,
    /,
    out: Path,
    calibration: Path | None = None,
    recipe: Recipe = Recipe(),
    budget: Budget = Budget(),
    on: str | None = None,
    turns: int = HELD,
    threads: int = 2,
    weights_only: bool = False,
    rank: bool = False,
) -> None:
    """Quantise.

    Args:
        bundle: float32 bundle.
        out: the INT8 bundle's folder; with --rank a JSON file.
        calibration: file of export.calibrate.
        recipe: of INT8.
        budget: what INT8 may cost.
        on: corpus in place of the bundle's own, such as manifest:mine.jsonl.
        turns: held out.
        threads: of the runtimes.
        weights_only: store INT8 and compute float32, without a calibration.
        rank: only show and write what each block costs by itself.
    """
    whole = load_bundle(bundle)
    if not rank:
        check_place(out)
    blocks = {one.block for one in all_linears(whole)}
    unknown = sorted(set(recipe.float_blocks) - blocks)
    if unknown:
        raise InputError(f"there is no block {unknown[0]!r}; there are: {', '.join(sorted(blocks))}")
    if weights_only:
        print(json.dumps({"out": str(with_int8_weights(whole, out))}))
        return
    if calibration is None:
        raise InputError("--calibration FILE is needed (python -m export.calibrate), or --weights-only")
    ranges = load(calibration, whole)
    held, data = held_out(whole, turns, on, threads)
    if rank:
        costs = [held.cost(ranges, recipe, "all"), *sensitivity(held, ranges, recipe)]
        Console().print(table(costs, f"{recipe.profile}: one block in INT8, {data['turns']} held-out turns"))
        ranking = {"weighted_f1_float32": held.f1, "blocks": [*map(asdict, costs)]}
        write_json(out, {"recipe": asdict(recipe), "data": data, **ranking}, indent=1)
        return
    recipe, steps = search(held, ranges, recipe, budget)
    quantised(whole, ranges, recipe, out)
    Console().print(table(steps, f"INT8 against float32 on {data['turns']} held-out turns"))
    sizes = [load_bundle(path).megabytes for path in (bundle, out)]
    Console().print(f"{out}: {sizes[1]:.1f} MB, {sizes[1] / sizes[0]:.2f} of float32")
    print(json.dumps({"out": str(out), "recipe": asdict(recipe), "data": data, "steps": [*map(asdict, steps)]}))


if __name__ == "__main__":
    cli(main)
