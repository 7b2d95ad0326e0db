"""Which bundle and settings stay within a limit of latency and memory, the most accurate first.

Scores and memory are those that benchmarks/tradeoff.py recorded on its machine (choices.json). Latency of the built-in
bundle is measured here, a few turns of each setting; that of others is the recorded one, times how much slower the
built-in one is here: an estimate, and called one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hbaf_edge.bench.document import Cell, Section
from hbaf_edge.bench.series import Series, in_turn, rounded
from hbaf_edge.bench.turns import TEXT, Bench, total, turn_of
from hbaf_edge.errors import InputError

CHOICES = Path(__file__).with_name("choices.json")
EQUAL = 0.02  # of weighted F1: less than the test can tell apart
TURNS = 15  # of each setting that are measured here
UNITS = {"latency": {"ms": 1.0, "s": 1000.0}, "memory": {"MB": 1.0, "GB": 1000.0}}
FROM = {
    "built-in": "nothing to do: it comes with hbaf-edge",
    "float32": "the folder WORK/float32 of python -m export.release, or make model",
    "float16": "python -m export.half FLOAT32 --out DIR",
    "int8-weights": "python -m export.quantize FLOAT32 --weights-only --out DIR",
}


class Limits(NamedTuple):
    """What is asked for; None asks nothing. Milliseconds of 90 % of turns, MB at the peak."""

    latency: float | None = None
    memory: float | None = None


def quantity(text: str | None, what: str) -> float | None:
    """A number with its unit, in milliseconds or MB.

    Raises:
        InputError: it is none.

    >>> quantity("30ms", "latency"), quantity("0.1 s", "latency"), quantity("1.5GB", "memory"), quantity(None, "memory")
    (30.0, 100.0, 1500.0, None)
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    factors = {unit.lower(): factor for unit, factor in UNITS[what].items()}
    if match is None or match[2] not in factors or not float(match[1]):
        raise InputError(f"--{what} {text!r}; a number with {' or '.join(UNITS[what])} is expected, such as "
                         f"{'30ms' if what == 'latency' else '150MB'}")  # fmt: skip
    return float(match[1]) * factors[match[2]]


def recorded() -> dict[str, Any]:
    """choices.json."""
    return dict(json.loads(CHOICES.read_text(encoding="utf-8")))


def measured_here(choices: Sequence[Mapping[str, Any]], cores: int | None = None) -> list[dict[str, Any]]:
    """Choices that this machine has the cores for, with its own latencies; `measured` says whose were measured."""
    possible = [dict(c) for c in choices if c["threads"] <= (cores or os.cpu_count() or 1)]
    own = {c["name"]: c for c in possible if c["bundle"] == "built-in"}
    times = in_turn(TURNS, {name: _turn(c) for name, c in own.items()})
    measured = {name: Series.of(values) for name, values in times.items()}
    slower = {(c["given"], c["threads"]): measured[name].p50 / c["p50_ms"] for name, c in own.items()}
    for c in possible:
        c["measured"] = c["name"] in measured
        if c["measured"]:
            # Of a few turns the largest stands for the 90th percentile: the safe side.
            c.update(p50_ms=measured[c["name"]].p50, p90_ms=measured[c["name"]].most)
        else:
            factor = slower.get((c["given"], c["threads"]), max(slower.values(), default=1.0))
            c.update(p50_ms=c["p50_ms"] * factor, p90_ms=c["p90_ms"] * factor)
    return possible


def _turn(choice: Mapping[str, Any]) -> Callable[[], float]:
    runtime = Bench([None], choice["threads"], "cpu", TURNS).runtime()
    seconds = None if choice["given"] == "text alone" else 3.0
    return total(turn_of(runtime, seconds, None if choice["given"] == "audio alone" else TEXT))


def lacking(choice: Mapping[str, Any], limits: Limits) -> list[str]:
    """What of the limits a choice breaks.

    >>> lacking({"p90_ms": 20, "peak_mb": 200}, Limits(30, 150))
    ['50 MB of memory too much']
    """
    asked = [("p90_ms", limits.latency, "ms too slow"), ("peak_mb", limits.memory, "MB of memory too much")]
    return [f"{choice[key] - limit:.0f} {what}" for key, limit, what in asked if limit and choice[key] > limit]


def advise(
    limits: Limits, choices: Sequence[Mapping[str, Any]], stored: Mapping[str, Any]
) -> tuple[Section, Mapping[str, Any] | None]:
    """Choices within the limits, the quickest of the most accurate first, and that one; all of them where none fits.

    Args:
        limits: asked for.
        choices: of `measured_here`.
        stored: choices.json, for where and on what.
    """
    fitting = [c for c in choices if not lacking(c, limits)]
    most = max((c["f1"] for c in fitting), default=0.0)
    shown = sorted(fitting or choices, key=lambda c: (c["f1"] < most - EQUAL, c["p90_ms"]))
    rows: list[list[Cell]] = [
        [c["name"], c["f1"], rounded(c["p90_ms"]), "measured" if c["measured"] else "estimated", c["peak_mb"],
         c["megabytes"], "; ".join(lacking(c, limits)) or "fits"] for c in shown
    ]  # fmt: skip
    text = (
        f"Latency is of 90 % of turns, 3 s and twelve words. Memory and scores are of {stored['machine']['cpu']}. "
        f"Scores within {EQUAL} of the best that fits count as equal, and the quickest comes first. {stored['score']}"
    )
    head = ("what runs", "F1", "p90, ms", "latency is", "peak, MB", "bundle, MB", "")
    title = f"What fits: {len(fitting)} of {len(choices)}"
    return Section("advise", title, head, rows, text), shown[0] if fitting else None


def recipe(choice: Mapping[str, Any]) -> str:
    """What to write for it."""
    bundle = "" if choice["bundle"] == "built-in" else "BUNDLE, "
    arguments = {"text alone": "text=words", "audio alone": "audio"}.get(choice["given"], "audio, text=words")
    return (
        f"HBAFRuntime({bundle}threads={choice['threads']}).predict({arguments}, ...)\n"
        f"bundle: {FROM.get(choice['bundle'], choice['bundle'])}"
    )
