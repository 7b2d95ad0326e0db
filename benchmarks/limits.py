"""How near is a turn to what this machine can do?

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --only limits --report DIR

Operations are counted (benchmarks/counted.py), the rates that a large product reaches here are measured between turns,
and their quotient is this machine's own limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.counted import Count, count, multiplier
from hbaf_edge.bench.document import Cell, Section
from hbaf_edge.bench.series import Series, by_stage, in_turn, rounded, single
from hbaf_edge.bench.turns import Bench, turn_of
from hbaf_edge.bundle import load_bundle

STAGES = {"audio": "encoder: audio", "text": "encoder: text", "utterance": "fusion: utterance scope",
          "dialogue": "fusion: dialogue scope and head"}  # fmt: skip
GOAL = 0.5


def limit(counts: Mapping[str, Count], integer: float, floating: float) -> dict[str, float]:
    """Milliseconds of each stage were there nothing but its products, at these operations a second."""
    return {name: (c.integer / integer + c.floating / floating) * 1e3 for name, c in counts.items()}


def section(bench: Bench, rounds: int) -> Section:
    """Turns and large products, interleaved. Of two turns the second counts: the products have emptied the caches."""
    turn = turn_of(bench.runtime(), past=32)
    sides = {"turn": lambda: (turn(), turn())[1], "integer": multiplier(True, bench.threads),
             "floating": multiplier(False, bench.threads)}  # fmt: skip
    results: dict[str, list[Any]] = in_turn(rounds, sides, bench.step)
    integer, floating = (float(np.median(results[name])) for name in ("integer", "floating"))
    return table(count(load_bundle(None)), by_stage(results["turn"]), integer, floating, bench.threads)


def table(
    counts: Mapping[str, Count], times: Mapping[str, Series], integer: float, floating: float, threads: int
) -> Section:
    """Each stage beside its limit.

    Args:
        counts: of each stage.
        times: milliseconds of each stage.
        integer, floating: operations a second of large products.
        threads: of each operator.
    """
    least = limit(counts, integer, floating)
    rows: list[list[Cell]] = [
        [STAGES[n], rounded(c.integer / 1e6), rounded(c.floating / 1e6), rounded(c.weights / 1e6), c.nodes,
         rounded(least[n]), rounded(times[n].p50), rounded(least[n] / times[n].p50)] for n, c in counts.items()
    ]  # fmt: skip
    whole, share = sum(least.values()), sum(least.values()) / times["total"].p50
    rows.append(["features (a Fourier transform, not counted)", *[None] * 5, rounded(times["features"].p50), None])
    sums = [rounded(sum(getattr(c, field) for c in counts.values()) / 1e6) for field in Count._fields[:3]]
    nodes = sum(c.nodes for c in counts.values())
    rows.append(["a turn", *sums, nodes, rounded(whole), rounded(times["total"].p50), rounded(share)])
    text = (
        f"Large products reach {integer / 1e9:,.0f} billion INT8 and {floating / 1e9:,.0f} billion "
        f"float32 operations a second here ({threads} threads, measured between the turns). Goal: "
        f"{100 * GOAL:.0f} % of that limit, reached: {'yes' if share >= GOAL else 'NO'}. Weights are those that every "
        "turn reads."
    )
    head = ("stage", "INT8, M ops", "float32, M ops", "weights, MB", "operators", "limit, ms", "measured, ms", "share")
    measures: dict[str, Mapping[str, Any]] = {
        "share of the machine's limit": {**single(share), "unsteady": times["total"].unsteady()}
    }
    return Section("limit", "A turn against the machine's own limit", head, rows, text, measures, "", "higher")
