"""Recommend the most accurate bundle and settings within limits of latency and memory.

Scores and memory come from benchmarks/tradeoff.py, which recorded them on one machine (choices.json). Text and audio
are scored as they are used, each alone, on turns that the model was not trained on; audio and text together have no
score, since no natural pairs of them are available. So only settings for the same inputs are compared. The latency of
the built-in bundle is measured here, with a few turns per setting. For other bundles the recorded latency is multiplied
by how much slower the built-in bundle is on this machine; such values are marked as estimated.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hbaf_edge.bench.document import Cell, Section
from hbaf_edge.bench.series import Series, interleave, rounded
from hbaf_edge.bench.turns import TEXT, Bench, repeatable_turn, total_ms
from hbaf_edge.errors import InputError

CHOICES = Path(__file__).with_name("choices.json")
MARGIN = 1.1  # of the latency that `nearest` names: a p90 of few turns varies
Inputs = Literal["both", "text", "audio"]
MODES: dict[Inputs, str] = {"both": "audio and text", "text": "text alone", "audio": "audio alone"}
TURNS = 15  # measured per setting
UNITS = {"latency": {"ms": 1.0, "s": 1000.0}, "memory": {"MB": 1.0, "GB": 1000.0}}
HOW_TO_GET = {
    "built-in": "included in hbaf-edge",
    "float32": "python -m training.from_bundle, then python -m export.to_onnx; or WORK/float32 of export.release",
    "float16": "python -m export.float16 FLOAT32 --out DIR",
    "int8-weights": "python -m export.quantize FLOAT32 --weights-only --out DIR",
}


class Limits(NamedTuple):
    """Limits of the user, None for no limit: the latency of 90 % of turns in ms, and the peak memory in MB."""

    latency: float | None = None
    memory: float | None = None


def parse_quantity(text: str | None, option: str) -> float | None:
    """Parse a number with a unit to milliseconds or MB. `option` is "latency" or "memory".

    Raises:
        InputError: it is not a number with a known unit.

    >>> parse_quantity("30ms", "latency"), parse_quantity("0.1 s", "latency"), parse_quantity("1.5GB", "memory")
    (30.0, 100.0, 1500.0)
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    factors = {unit.lower(): factor for unit, factor in UNITS[option].items()}
    if match is None or match[2] not in factors or not float(match[1]):
        raise InputError(f"--{option} {text!r}; a number with {' or '.join(UNITS[option])} is expected, such as "
                         f"{'30ms' if option == 'latency' else '150MB'}")  # fmt: skip
    return float(match[1]) * factors[match[2]]


def load_choices() -> dict[str, Any]:
    """Load choices.json."""
    return dict(json.loads(CHOICES.read_text(encoding="utf-8")))


def with_local_latency(choices: Sequence[Mapping[str, Any]], cores: int | None = None) -> list[dict[str, Any]]:
    """The choices for which this machine has enough cores, with its latencies.

    The key `measured` is True if the latency was measured, False if it is estimated.
    """
    possible = [dict(c) for c in choices if c["threads"] <= (cores or os.cpu_count() or 1)]
    built_in = {c["name"]: c for c in possible if c["bundle"] == "built-in"}
    times = interleave(TURNS, {name: _repeatable_turn(c) for name, c in built_in.items()})
    measured = {name: Series.of(values) for name, values in times.items()}
    slower = {(c["given"], c["threads"]): measured[name].p50 / c["p50_ms"] for name, c in built_in.items()}
    for c in possible:
        c["measured"] = c["name"] in measured
        if c["measured"]:
            # With a few turns, the maximum is a safe estimate of the 90th percentile.
            c.update(p50_ms=measured[c["name"]].p50, p90_ms=measured[c["name"]].most)
        else:
            factor = slower.get((c["given"], c["threads"]), max(slower.values(), default=1.0))
            c.update(p50_ms=c["p50_ms"] * factor, p90_ms=c["p90_ms"] * factor)
    return possible


def _repeatable_turn(choice: Mapping[str, Any]) -> Callable[[], float]:
    """A turn with the choice's inputs and threads; a call returns its milliseconds."""
    runtime = Bench([None], choice["threads"], "cpu", TURNS).runtime()
    seconds = None if choice["given"] == "text alone" else 3.0
    return total_ms(repeatable_turn(runtime, seconds, None if choice["given"] == "audio alone" else TEXT))


def exceeded_limits(choice: Mapping[str, Any], limits: Limits) -> list[str]:
    """Which limits a choice exceeds, and by how much.

    >>> exceeded_limits({"p90_ms": 20, "peak_mb": 200}, Limits(30, 150))
    ['50 MB too large']
    """
    checks = [("p90_ms", limits.latency, "ms too slow"), ("peak_mb", limits.memory, "MB too large")]
    return [f"{choice[key] - limit:.0f} {text}" for key, limit, text in checks if limit and choice[key] > limit]


def advise(
    limits: Limits, choices: Sequence[Mapping[str, Any]], stored: Mapping[str, Any]
) -> tuple[Section, Mapping[str, Any] | None]:
    """Rank the choices within the limits: the most accurate first, and the fastest of equally accurate ones.

    Args:
        limits: limits of the user.
        choices: result of `with_local_latency`, all for the same inputs.
        stored: content of choices.json, for the machine and the scores that it names.

    Returns:
        A table of the choices that fit (of all choices if none fits), and the best one or None.
    """
    inputs = choices[0]["given"]
    # The standard error of a difference of two shares on so many turns; smaller differences mean nothing.
    equal = 0.7 / math.sqrt(turns) if (turns := stored["turns"][inputs]) else 0.0
    fitting = [c for c in choices if not exceeded_limits(c, limits)]
    best_score = max((c["score"] or 0.0 for c in fitting), default=0.0)
    shown = sorted(fitting or choices, key=lambda c: ((c["score"] or 0.0) < best_score - equal, c["p90_ms"]))
    rows: list[list[Cell]] = [
        [c["name"], "no score" if c["score"] is None else c["score"], rounded(c["p90_ms"]),
         "measured" if c["measured"] else "estimated", c["peak_mb"], c["megabytes"],
         "; ".join(exceeded_limits(c, limits)) or "fits"] for c in shown
    ]  # fmt: skip
    ranked = "The fastest is first."
    if equal:
        ranked = f"Scores within {equal:.3f} of the best that fits are equal; the fastest of them is first."
    text = (
        f"Score: {stored['scores'][inputs]}. {ranked} Latency is the p90 of turns with 3 s and twelve words. Memory "
        f"and scores are of {stored['machine']['cpu']}."
    )
    head = ("settings", "score", "p90, ms", "latency", "peak, MB", "bundle, MB", "limits")
    title = f"Settings within the limits: {len(fitting)} of {len(choices)}"
    return Section("advise", title, head, rows, text), shown[0] if fitting else None


def nearest(limits: Limits, choices: Sequence[Mapping[str, Any]]) -> str:
    """The limits that the nearest choice would need, when none fits.

    >>> choice = {"name": "int8, text alone, 1 thread", "p90_ms": 6.2, "peak_mb": 180.4}
    >>> nearest(Limits(latency=5), [choice])
    'the nearest is int8, text alone, 1 thread: --latency 7ms'
    """

    def excess(choice: Mapping[str, Any]) -> float:
        pairs = ((choice["p90_ms"], limits.latency), (choice["peak_mb"], limits.memory))
        return float(max(value / limit for value, limit in pairs if limit))

    choice = min(choices, key=excess)
    needed = [f"--latency {math.ceil(MARGIN * choice['p90_ms'])}ms"] if limits.latency else []
    needed += [f"--memory {math.ceil(choice['peak_mb'])}MB"] if limits.memory else []
    return f"the nearest is {choice['name']}: {' '.join(needed)}"


def recipe(choice: Mapping[str, Any]) -> str:
    """The code that uses a choice, and how to get its bundle."""
    bundle = "" if choice["bundle"] == "built-in" else "BUNDLE, "
    arguments = {"text alone": "text=transcript", "audio alone": "audio"}.get(choice["given"], "audio, text=transcript")
    return (
        f"HBAFRuntime({bundle}threads={choice['threads']}).predict({arguments}, ...)\n"
        f"bundle: {HOW_TO_GET.get(choice['bundle'], choice['bundle'])}"
    )
