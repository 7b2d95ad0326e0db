"""Which bundle and settings stay within a limit of latency, memory and size, the most accurate first.

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
from hbaf_edge.bench.turns import TEXT, Bench, turn_of
from hbaf_edge.errors import InputError

CHOICES = Path(__file__).with_name("choices.json")
FORMAT = 1
EQUAL = 0.02  # of weighted F1: less than the test can tell apart
TURNS = 15  # of each setting that are measured here
UNITS = {"latency": {"ms": 1.0, "s": 1000.0}, "memory": {"MB": 1.0, "GB": 1000.0}, "size": {"MB": 1.0, "GB": 1000.0}}
NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
FROM = {
    "built-in": "nothing to do: it comes with hbaf-edge",
    "float32": "the folder WORK/float32 of python -m export.release, or make model",
    "float16": "python -m export.half FLOAT32 --out DIR",
    "int8-weights": "python -m export.quantize FLOAT32 --weights-only --out DIR",
}


class Limits(NamedTuple):
    """What is asked for; None asks nothing. Milliseconds of 90 % of turns, MB at the peak, MB of the bundle."""

    latency: float | None = None
    memory: float | None = None
    size: float | None = None


def quantity(text: str | None, what: str) -> float | None:
    """A number with its unit, in milliseconds or MB.

    Raises:
        InputError: it is none.

    >>> quantity("30ms", "latency"), quantity("0.1 s", "latency"), quantity("1.5GB", "memory"), quantity(None, "size")
    (30.0, 100.0, 1500.0, None)
    """
    if text is None:
        return None
    match, units = NUMBER.fullmatch(text), {unit.lower(): factor for unit, factor in UNITS[what].items()}
    if match is None or match.group(2).lower() not in units or not float(match.group(1)):
        raise InputError(f"--{what} {text!r}; a number with {' or '.join(UNITS[what])} is expected, such as "
                         f"{'30ms' if what == 'latency' else '150MB'}")  # fmt: skip
    return float(match.group(1)) * units[match.group(2).lower()]


def recorded() -> dict[str, Any]:
    """choices.json.

    Raises:
        InputError: it is missing or of another version.
    """
    try:
        stored = dict(json.loads(CHOICES.read_text(encoding="utf-8")))
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']}")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{CHOICES} cannot be read ({error}); install hbaf-edge again") from None
    return stored


def measured_here(choices: Sequence[Mapping[str, Any]], cores: int | None = None) -> list[dict[str, Any]]:
    """Choices that this machine has the cores for, with its own latencies; `measured` says whose were measured."""
    cores = cores or os.cpu_count() or 1
    possible = [dict(c) for c in choices if c["threads"] <= cores]
    own = [c for c in possible if c["bundle"] == "built-in"]
    sides = {c["name"]: _turn(c) for c in own}
    measured = {name: Series.of(times) for name, times in in_turn(TURNS, sides).items()}
    slower = {(c["given"], c["threads"]): measured[c["name"]].p50 / c["p50_ms"] for c in own}
    for c in possible:
        series = measured.get(c["name"])
        factor = slower.get((c["given"], c["threads"]), max(slower.values(), default=1.0))
        # Of a few turns the largest stands for the 90th percentile: the safe side.
        worst = c["p90_ms"] * factor if series is None else series.most
        c.update(
            p90_ms=worst, p50_ms=c["p50_ms"] * factor if series is None else series.p50, measured=series is not None
        )
    return possible


def _turn(choice: Mapping[str, Any]) -> Callable[[], float]:
    modalities = choice["given"]
    runtime = Bench([None], choice["threads"], "cpu", TURNS).runtime()
    turn = turn_of(runtime, None if modalities == "text alone" else 3.0, None if modalities == "audio alone" else TEXT)
    return lambda: turn()["total"]


def lacking(choice: Mapping[str, Any], limits: Limits) -> list[str]:
    """What of the limits a choice breaks.

    >>> lacking({"p90_ms": 20, "peak_mb": 200, "megabytes": 43}, Limits(30, 150))
    ['50 MB of memory too much']
    """
    over = {
        "ms too slow": None if limits.latency is None else choice["p90_ms"] - limits.latency,
        "MB of memory too much": None if limits.memory is None else choice["peak_mb"] - limits.memory,
        "MB too large": None if limits.size is None else choice["megabytes"] - limits.size,
    }
    return [f"{excess:.0f} {what}" for what, excess in over.items() if excess is not None and excess > 0]


def advise(
    limits: Limits, choices: Sequence[Mapping[str, Any]], stored: Mapping[str, Any]
) -> tuple[Section, Mapping[str, Any] | None]:
    """Choices within the limits, the quickest of the most accurate first, and that one; all of them where none fits.

    Args:
        limits: asked for.
        choices: of `measured_here`, or as recorded.
        stored: choices.json, for where and on what.
    """
    candidates = [(lacking(c, limits), c) for c in choices]
    most = max((c["f1"] for why, c in candidates if not why), default=0.0)
    candidates.sort(key=lambda pair: (len(pair[0]) > 0, pair[1]["f1"] < most - EQUAL, pair[1]["p90_ms"]))
    fitting = [c for why, c in candidates if not why]
    rows: list[list[Cell]] = [
        [c["name"], c["f1"], rounded(c["p90_ms"]), _origin(c), c["peak_mb"], c["megabytes"], "; ".join(why) or "fits"]
        for why, c in candidates
        if not (why and fitting)
    ]
    text = (
        f"Latency is of 90 % of turns, 3 s and twelve words. Memory and scores are of {stored['machine']['cpu']}. "
        f"Scores within {EQUAL} of the best that fits count as equal, and the quickest comes first. {stored['score']}"
    )
    head = ("what runs", "F1", "p90, ms", "latency is", "peak, MB", "bundle, MB", "")
    title = f"What fits: {len(fitting)} of {len(candidates)}"
    return Section("advise", title, head, rows, text), fitting[0] if fitting else None


def _origin(choice: Mapping[str, Any]) -> str:
    return {True: "measured", False: "estimated", None: "recorded"}[choice.get("measured")]


def recipe(choice: Mapping[str, Any]) -> str:
    """What to write for it."""
    bundle = "" if choice["bundle"] == "built-in" else "BUNDLE, "
    arguments = {"text alone": "text=words", "audio alone": "audio"}.get(choice["given"], "audio, text=words")
    return (
        f"HBAFRuntime({bundle}threads={choice['threads']}).predict({arguments}, ...)\n"
        f"bundle: {FROM.get(choice['bundle'], choice['bundle'])}"
    )
