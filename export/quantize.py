"""Float32 bundle -> INT8 bundle that stays within a budget of lost accuracy, from a calibration file.

    python -m export.quantize runs/mine/float32 --calibration runs/mine/calibration.json --out runs/mine/int8
    python -m export.quantize FLOAT32 --calibration FILE --profile tensorrt --out runs/mine/int8-tensorrt
    python -m export.quantize FLOAT32 --weights-only --out runs/mine/int8-weights
    python -m export.quantize FLOAT32 --calibration FILE --turns 400 --rank --out runs/mine/blocks.json

Products with constant weights are computed in INT8 (export/qdq.py); residual sums, norms, softmax, gates and the head
are computed in float32. The result is compared with float32 on held-out dev conversations. While it loses more than
--max-f1-drop of weighted F1, flips more labels than --max-flips or has less than --min-snr dB at the logits, the most
sensitive block (export/sensitivity.py) goes back to float32. If half of the blocks are not enough, the command prints
the ranking, fails and writes nothing. --weights-only stores INT8 and computes float32; it needs no calibration.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from export.atomic_replace import check_output
from export.calibrate import Calibration, bundle_matmuls, load
from export.console import note
from export.int8 import bundle_with_int8_weights, quantise_bundle
from export.qdq import Recipe
from export.sensitivity import RANKING_TURNS, Cost, Evaluator, cost_table, dev_evaluator, rank_blocks
from hbaf_edge.bundle import Bundle, load_bundle
from hbaf_edge.errors import HBAFError, InputError
from training.command import cli, emit
from training.files import write_json

EVALUATION_TURNS = 1500  # on fewer turns, weighted F1 varies by more than the budget by chance


class BudgetError(HBAFError):
    """No choice of blocks stays within the budget."""


@dataclass(frozen=True)
class Budget:
    """What INT8 may cost on held-out turns."""

    max_f1_drop: float = 0.005  # largest loss of weighted F1
    max_flips: float = 0.02  # largest share of flipped labels
    min_snr: float = 0.0  # smallest SNR of the logits, dB

    def allows(self, cost: Cost) -> bool:
        """Whether a cost is within the budget."""
        return cost.f1_drop <= self.max_f1_drop and cost.flip_rate <= self.max_flips and cost.snr_db >= self.min_snr

    def __str__(self) -> str:
        return f"{self.max_f1_drop:g}, {self.max_flips:.2%} and {self.min_snr:g} dB"


def search(evaluator: Evaluator, calibration: Calibration, recipe: Recipe, budget: Budget) -> tuple[Recipe, list[Cost]]:
    """Move the most sensitive blocks back to float32, one by one, until the budget allows the cost.

    Returns:
        the recipe, and the cost of every step.

    Raises:
        BudgetError: half of the blocks in float32 are not enough; the message holds the ranking.
    """
    steps = [evaluator.cost(calibration, recipe, "all")]
    if budget.allows(steps[0]):
        return recipe, steps
    ranking = rank_blocks(evaluator.subset(RANKING_TURNS), calibration, recipe)
    note(cost_table([steps[0], *ranking], "one block in INT8, worst first"))
    for cost in ranking[: max(1, len(ranking) // 2)]:
        recipe = replace(recipe, float_blocks=(*recipe.float_blocks, cost.block))
        steps.append(evaluator.cost(calibration, recipe, f"without {cost.block}"))
        note(f"{cost.block} in float32: {_cost_text(steps[-1])}")
        if budget.allows(steps[-1]):
            return recipe, steps
    worst = "\n".join(f"  {c.block}: {_cost_text(c)}" for c in ranking[:10])
    raise BudgetError(
        f"INT8 costs {_cost_text(steps[-1])} even with {len(recipe.float_blocks)} blocks in float32; the budget is "
        f"{budget}. Calibrate on more conversations, try another --method, or allow more. The worst blocks:\n{worst}"
    )


def _cost_text(cost: Cost) -> str:
    return f"{cost.f1_drop:+.4f} weighted F1, {cost.flip_rate:.2%} flips, {cost.snr_db:.1f} dB"


def main(
    bundle: Path,
    /,
    out: Path,
    calibration: Path | None = None,
    recipe: Recipe = Recipe(),
    budget: Budget = Budget(),
    on: str | None = None,
    turns: int = EVALUATION_TURNS,
    threads: int = 2,
    weights_only: bool = False,
    rank: bool = False,
    json_output: bool = False,
) -> None:
    """Quantise a float32 bundle.

    Args:
        bundle: float32 bundle.
        out: folder of the INT8 bundle; with --rank a JSON file.
        calibration: file of export.calibrate.
        recipe: how to convert.
        budget: what INT8 may cost.
        on: corpus to use instead of the model's own, such as manifest:mine.jsonl.
        turns: number of held-out turns.
        threads: of the runtimes.
        weights_only: store INT8 and compute float32, without a calibration.
        rank: only measure and save what each block costs on its own.
    """
    source = load_bundle(bundle)
    if not rank:
        check_output(out)
    _check_blocks(source, recipe)
    if weights_only:
        small = load_bundle(bundle_with_int8_weights(source, out))
        emit({"out": str(out)}, json_output, _sizes(source, small))
        return
    if calibration is None:
        raise InputError("give --calibration FILE (python -m export.calibrate makes it), or --weights-only")
    ranges = load(calibration, source)
    evaluator, data = dev_evaluator(source, turns, on, threads)
    if rank:
        costs = [evaluator.cost(ranges, recipe, "all"), *rank_blocks(evaluator, ranges, recipe)]
        result = {"recipe": recipe.to_json(), "data": data, "weighted_f1_float32": evaluator.f1,
                  "blocks": [*map(asdict, costs)]}  # fmt: skip
        write_json(out, result, indent=1)
        title = f"{recipe.profile}: one block in INT8, {data['turns']} held-out turns"
        emit(result, json_output, cost_table(costs, title), f"saved to {out}")
        return
    recipe, steps = search(evaluator, ranges, recipe, budget)
    small = load_bundle(quantise_bundle(source, ranges, recipe, out))
    emit(
        {"out": str(out), "recipe": recipe.to_json(), "data": data, "steps": [*map(asdict, steps)]},
        json_output,
        cost_table(steps, f"INT8 against float32 on {data['turns']} held-out turns"),
        _sizes(source, small),
    )


def _check_blocks(source: Bundle, recipe: Recipe) -> None:
    """Raise InputError if --float-blocks names a block that the model does not have."""
    blocks = {matmul.block for matmul in bundle_matmuls(source)}
    unknown = sorted(set(recipe.float_blocks) - blocks)
    if unknown:
        raise InputError(f"there is no block {unknown[0]!r}; there are: {', '.join(sorted(blocks))}")


def _sizes(source: Bundle, small: Bundle) -> str:
    return f"{small.path}: {small.megabytes:.1f} MB, {small.megabytes / source.megabytes:.2f} of float32"


if __name__ == "__main__":
    cli(main)
