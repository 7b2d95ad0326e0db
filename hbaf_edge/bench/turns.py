"""The turn that is measured, and the runtimes it is measured on: what every section and every benchmark starts from.

It is 3 s of speech and twelve words as turn 11 of a conversation, unless told otherwise, on a fork of that
conversation, so that every repetition is the same turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from hbaf_edge import Conversation, HBAFRuntime

CLIP = Path(__file__).resolve().parents[1] / "examples" / "turn2_anna.flac"
TEXT = "I really did not expect to see all of you here tonight"  # twelve words
RATE = 16_000  # Hz
FRESH = (
    "import json, sys, time; t = time.perf_counter(); import hbaf_edge; a = time.perf_counter(); "
    "bundle, threads, provider, seconds, with_text = json.loads(sys.argv[1]); "
    "r = hbaf_edge.HBAFRuntime(bundle, threads=threads, provider=provider); b = time.perf_counter(); "
    "from hbaf_edge.bench.turns import *; x = {'audio': speech(seconds), 'sample_rate': RATE} if seconds else {}; "
    "c = time.perf_counter(); r.predict(**x, text=TEXT if with_text else None); d = time.perf_counter(); "
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
        step: called after every bit of work, for a progress bar.
        reference_workload: milliseconds of a fixed piece of arithmetic during the run.
    """

    bundles: list[Path | None]
    threads: int
    provider: str
    repeats: int
    quick: bool = False
    step: Callable[[], object] = lambda: None
    reference_workload: list[float] = field(default_factory=list)
    _runtimes: dict[tuple[int, int], HBAFRuntime] = field(default_factory=dict)

    def runtime(self, threads: int | None = None, bundle: int = 0) -> HBAFRuntime:
        """A warm runtime, loaded once for each number of threads and each bundle."""
        key = threads or self.threads, bundle
        if key not in self._runtimes:
            runtime = HBAFRuntime(self.bundles[bundle], threads=key[0], provider=self.provider)
            runtime.warmup()
            self._runtimes[key] = runtime
        return self._runtimes[key]

    def some(self, share: float, least: int = 6) -> int:
        """A share of the repeats, at least `least` where there are so many."""
        return min(self.repeats, max(least, round(self.repeats * share)))


def speech(seconds: float) -> NDArray[np.float32]:
    """(samples,) at 16 kHz: speech of that length, the example's clip repeated."""
    clip, _ = soundfile.read(CLIP, dtype="float32")
    return np.tile(clip, 1 + int(seconds * RATE / len(clip)))[: int(seconds * RATE)]


def past_turns(runtime: HBAFRuntime, turns: int, audio_every: int = 0) -> Conversation:
    """A conversation of so many turns of text; every `audio_every`-th turn also has one second of audio."""
    chat, audio = runtime.conversation(), speech(1.0)
    for n in range(turns):
        also: dict[str, Any] = {"audio": audio, "sample_rate": RATE} if audio_every and n % audio_every == 0 else {}
        runtime.observe(text=f"And then we went home, {n} times.", speaker="ab"[n % 2], conversation=chat, **also)
    return chat


def turn_of(
    runtime: HBAFRuntime, seconds: float | None = 3.0, text: str | None = TEXT, past: int | Conversation = 10
) -> Callable[[], dict[str, float]]:
    """A turn that can be repeated; a call returns the milliseconds of its stages.

    Args:
        runtime: that predicts.
        seconds: of speech; None for text alone.
        text: None for speech alone.
        past: the conversation before it, or how many turns of text that has.
    """
    chat = past_turns(runtime, past) if isinstance(past, int) else past
    audio: dict[str, Any] = {} if seconds is None else {"audio": speech(seconds), "sample_rate": RATE}

    def turn() -> dict[str, float]:
        return runtime.predict(text=text, speaker="a", conversation=chat.fork(), **audio).timing

    return turn


def total(turn: Callable[[], dict[str, float]]) -> Callable[[], float]:
    """Its milliseconds as a whole."""
    return lambda: turn()["total"]


class Fresh(NamedTuple):
    """What a first turn takes in an interpreter of its own: milliseconds, and MB of the process."""

    import_ms: float
    load_ms: float
    first_turn_ms: float
    resident_mb: float
    peak_mb: float


def fresh(bench: Bench, seconds: float | None = 3.0, with_text: bool = True) -> Fresh:
    """Import, load and run one turn in a new interpreter."""
    bundle = bench.bundles[0]
    argument = json.dumps([None if bundle is None else str(bundle), bench.threads, bench.provider, seconds, with_text])
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", FRESH, argument]
    output = subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path})  # noqa: S603 - ourselves
    return Fresh(*json.loads(output))
