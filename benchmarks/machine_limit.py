"""Compare a turn's latency with the limit of this machine.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --only limits --report DIR

The limit is a turn's operations (benchmarks/operation_counts.py) divided by the operations per second of a large
matrix product, which is measured between the turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.operation_counts import Count, count, matmul_rate
from hbaf_edge.bench.document import Cell, Section
from hbaf_edge.bench.series import Series, by_stage, interleave, rounded, single_value
from hbaf_edge.bench.turns import Bench, repeatable_turn
from hbaf_edge.bundle import load_bundle

STAGES = {"audio": "encoder: audio", "text": "encoder: text", "utterance": "fusion: utterance scope",
          "dialogue": "fusion: dialogue scope and head"}  # fmt: skip
GOAL = 0.5


def limit_ms(counts: Mapping[str, Count], integer: float, floating: float) -> dict[str, float]:
    """Return the milliseconds of each stage if it ran only its matrix products, at these operations per second."""
    return {name: (c.integer / integer + c.floating / floating) * 1e3 for name, c in counts.items()}


def section(bench: Bench, rounds: int) -> Section:
    """Measure turns and large products, interleaved.

    Each round runs two turns and times the second, because the products evict the model from the CPU caches.
    """
    turn = repeatable_turn(bench.runtime(), past=32)
    candidates = {"turn": lambda: (turn(), turn())[1], "integer": matmul_rate(True, bench.threads),
                  "floating": matmul_rate(False, bench.threads)}  # fmt: skip
    results: dict[str, list[Any]] = interleave(rounds, candidates, bench.step)
    integer, floating = (float(np.median(results[name])) for name in ("integer", "floating"))
    return table(count(load_bundle(None)), by_stage(results["turn"]), integer, floating, bench.threads)


def table(
    counts: Mapping[str, Count], times: Mapping[str, Series], integer: float, floating: float, threads: int
) -> Section:
    """Return a table of each stage's time and limit.

    Args:
        counts: operations of each stage.
        times: milliseconds of each stage.
        integer: INT8 operations per second of a large product.
        floating: float32 operations per second of a large product.
        threads: CPU threads per operator.
    """
    limits = limit_ms(counts, integer, floating)
    rows: list[list[Cell]] = [
        [STAGES[n], rounded(c.integer / 1e6), rounded(c.floating / 1e6), rounded(c.weights / 1e6), c.nodes,
         rounded(limits[n]), rounded(times[n].p50), rounded(limits[n] / times[n].p50)] for n, c in counts.items()
    ]  # fmt: skip
    turn_limit = sum(limits.values())
    share = turn_limit / times["total"].p50
    rows.append(["features (a Fourier transform, not counted)", *[None] * 5, rounded(times["features"].p50), None])
    sums = [rounded(sum(getattr(c, field) for c in counts.values()) / 1e6) for field in Count._fields[:3]]
    nodes = sum(c.nodes for c in counts.values())
    rows.append(["a turn", *sums, nodes, rounded(turn_limit), rounded(times["total"].p50), rounded(share)])
    text = (
        f"On this machine, large matrix products reach {integer / 1e9:,.0f} billion INT8 and {floating / 1e9:,.0f} "
        f"billion float32 operations per second ({threads} threads, measured between the turns). Goal: "
        f"{100 * GOAL:.0f} % of that limit, reached: {'yes' if share >= GOAL else 'NO'}. The column of weights counts "
        "only those that every turn reads."
    )
    head = ("stage", "INT8, M ops", "float32, M ops", "weights, MB", "operators", "limit, ms", "measured, ms", "share")
    measures: dict[str, Mapping[str, Any]] = {
        "share of the machine's limit": {**single_value(share), "unsteady": times["total"].unsteady_reason()}
    }
    return Section("limit", "A turn compared with the machine's limit", head, rows, text, measures, "", "higher")
