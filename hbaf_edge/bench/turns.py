"""The turn that is measured, and the runtimes it is measured on: what every section and every benchmark starts from.

It is 3 s of speech and twelve words as turn 11 of a conversation, unless told otherwise, on a fork of that
conversation, so that every one is the same turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbaf_edge import Conversation, HBAFRuntime
from hbaf_edge.bench.speech import RATE, WORDS, sound

FRESH = (
    "import json, sys, time; t = time.perf_counter(); import hbaf_edge; a = time.perf_counter(); "
    "bundle, threads, provider, seconds, words = json.loads(sys.argv[1]); "
    "r = hbaf_edge.HBAFRuntime(bundle, threads=threads, provider=provider); b = time.perf_counter(); "
    "from hbaf_edge.bench.speech import *; x = {'audio': sound(seconds), 'sample_rate': RATE} if seconds else {}; "
    "c = time.perf_counter(); r.predict(**x, text=WORDS if words else None); d = time.perf_counter(); "
    "from hbaf_edge.stats import peak_mb, resident_mb; "
    "print(json.dumps([1e3 * (a - t), 1e3 * (b - a), 1e3 * (d - c), resident_mb(), peak_mb()]))"
)


@dataclass
class Bench:
    """What is measured, and how often.

    Attributes:
        bundles: paths; the first is what most sections measure, None the default model.
        threads: CPU threads of an operator.
        provider: of `HBAFRuntime`.
        repeats: samples of a turn.
        quick: fewer of what takes long.
        step: told of every bit of work that is done.
        yardstick: milliseconds of a fixed piece of arithmetic during the run.
    """

    bundles: list[Path | None]
    threads: int
    provider: str
    repeats: int
    quick: bool = False
    step: Callable[[], object] = lambda: None
    yardstick: list[float] = field(default_factory=list)
    _runtimes: dict[tuple[Any, ...], HBAFRuntime] = field(default_factory=dict)

    def runtime(self, threads: int | None = None, bundle: int = 0) -> HBAFRuntime:
        """Loaded once, and warm."""
        key = threads or self.threads, bundle
        if key not in self._runtimes:
            made = HBAFRuntime(self.bundles[bundle], threads=key[0], provider=self.provider)
            made.warmup()
            self._runtimes[key] = made
        return self._runtimes[key]

    def some(self, share: float, least: int = 6) -> int:
        """A share of the repeats, if there are so many."""
        return min(self.repeats, max(least, round(self.repeats * share)))


def talked(runtime: HBAFRuntime, turns: int) -> Conversation:
    """A conversation of so many turns of words."""
    chat = runtime.conversation()
    for n in range(turns):
        runtime.observe(text=f"And then we went home, {n} times.", speaker="ab"[n % 2], conversation=chat)
    return chat


def turn_of(runtime: HBAFRuntime, seconds: float | None = 3.0, words: str | None = WORDS, past: int = 10,
            rate: int = RATE) -> Callable[[], dict[str, float]]:  # fmt: skip
    """A turn that can be repeated: its stages' milliseconds."""
    chat, voice = talked(runtime, past), None if seconds is None else sound(seconds)
    given: dict[str, Any] = {} if voice is None else {"audio": voice, "sample_rate": rate}

    def turn() -> dict[str, float]:
        return runtime.predict(text=words, speaker="a", conversation=chat.fork(), **given).timing

    return turn


def total(turn: Callable[[], dict[str, float]]) -> Callable[[], float]:
    """Its milliseconds as a whole."""
    return lambda: turn()["total"]


def fresh(bench: Bench, seconds: float | None = 3.0, words: bool = True) -> list[float]:
    """In an interpreter of its own: milliseconds of import, load and first turn, resident and peak MB."""
    bundle = bench.bundles[0]
    argument = json.dumps([None if bundle is None else str(bundle), bench.threads, bench.provider, seconds, words])
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", FRESH, argument]
    found: list[float] = json.loads(
        subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path})  # noqa: S603 - ourselves
    )
    return found
