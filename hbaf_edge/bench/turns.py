"""The turn that benchmarks measure, and the runtimes that run it.

By default it is turn 11 of a conversation, with 3 s of speech and twelve words. It runs on a fork of the conversation,
so every repetition is the same turn.
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
# Import, load and first turn; with argument JSON; prints a `FreshProcess` as JSON.
FRESH_PROCESS_CODE = (
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
    """The settings and runtimes of a benchmark.

    Attributes:
        bundles: paths, None for the default model; most sections measure the first.
        threads: CPU threads per operator.
        provider: provider for `HBAFRuntime`.
        repeats: samples of a turn.
        quick: fewer samples of slow measurements.
        step: called after every piece of work, for a progress bar.
        reference_workload: milliseconds of the reference workload during the run.
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
        """A warm runtime, loaded once per number of threads and bundle."""
        key = threads or self.threads, bundle
        if key not in self._runtimes:
            runtime = HBAFRuntime(self.bundles[bundle], threads=key[0], provider=self.provider)
            runtime.warmup()
            self._runtimes[key] = runtime
        return self._runtimes[key]

    def share_of_repeats(self, share: float, minimum: int = 6) -> int:
        """A share of the repeats, at least `minimum`, at most all."""
        return min(self.repeats, max(minimum, round(self.repeats * share)))


def speech(seconds: float) -> NDArray[np.float32]:
    """Speech of so many seconds: the example clip, repeated. (samples,) at 16 kHz."""
    clip, _ = soundfile.read(CLIP, dtype="float32")
    return np.tile(clip, 1 + int(seconds * RATE / len(clip)))[: int(seconds * RATE)]


def conversation_with_turns(runtime: HBAFRuntime, turns: int, audio_every: int = 0) -> Conversation:
    """A conversation with so many text turns; every `audio_every`-th turn also has one second of audio."""
    conversation, audio = runtime.conversation(), speech(1.0)
    for n in range(turns):
        has_audio = audio_every and n % audio_every == 0
        audio_input: dict[str, Any] = {"audio": audio, "sample_rate": RATE} if has_audio else {}
        text = f"And then we went home, {n} times."
        runtime.observe(text=text, speaker="ab"[n % 2], conversation=conversation, **audio_input)
    return conversation


def repeatable_turn(
    runtime: HBAFRuntime, seconds: float | None = 3.0, text: str | None = TEXT, past: int | Conversation = 10
) -> Callable[[], dict[str, float]]:
    """A turn that can be repeated; each call returns the milliseconds of its stages.

    Args:
        runtime: the runtime under test.
        seconds: length of the speech; None for only text.
        text: the transcript; None for only speech.
        past: the conversation before the turn, or its number of text turns.
    """
    conversation = conversation_with_turns(runtime, past) if isinstance(past, int) else past
    audio: dict[str, Any] = {} if seconds is None else {"audio": speech(seconds), "sample_rate": RATE}

    def turn() -> dict[str, float]:
        return runtime.predict(text=text, speaker="a", conversation=conversation.fork(), **audio).timing

    return turn


def total_ms(turn: Callable[[], dict[str, float]]) -> Callable[[], float]:
    """A function that runs the turn and returns its total milliseconds."""
    return lambda: turn()["total"]


class FreshProcess(NamedTuple):
    """Milliseconds of import, load and first turn in a new interpreter, and its memory in MB."""

    import_ms: float
    load_ms: float
    first_turn_ms: float
    resident_mb: float
    peak_mb: float


def measure_fresh_process(bench: Bench, seconds: float | None = 3.0, with_text: bool = True) -> FreshProcess:
    """Import, load and run one turn in a new interpreter."""
    bundle = bench.bundles[0]
    argument = json.dumps([None if bundle is None else str(bundle), bench.threads, bench.provider, seconds, with_text])
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", FRESH_PROCESS_CODE, argument]
    output = subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path})  # noqa: S603 - our own code
    return FreshProcess(*json.loads(output))
