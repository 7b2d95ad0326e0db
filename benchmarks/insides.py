"""The few things that benchmarks need of the inside of the runtime, as plain functions.

Nothing else in benchmarks/ reaches behind public names, so that this is the one file to change when those insides do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.turns import RATE, TEXT, past_turns, speech, turn_of
from hbaf_edge.bundle import Bundle
from hbaf_edge.calls import Place
from hbaf_edge.features import extract

Feeds = dict[str, dict[str, NDArray[Any]]]  # arrays by graph and input name


def fusion(runtime: HBAFRuntime, turn: int) -> Callable[[], dict[str, float]]:
    """Fusion alone, on encoder states of 3 s and twelve words that are computed once.

    Args:
        runtime: whose graphs run.
        turn: number in its conversation.

    Returns:
        a call that fuses that turn, commits nothing and returns the milliseconds of "utterance", "dialogue" and
        "total", their sum.
    """
    engine, features = runtime.engine, extract(speech(3.0), RATE, TEXT, runtime.engine.tokeniser)
    place = Place(past_turns(runtime, turn - 1), "a")
    audio_states = engine.infer([place], [features])[1][0].audio_states

    def step() -> dict[str, float]:
        _, (result,) = engine.infer([place], [features], [audio_states])
        stages = {name: result.milliseconds[name] for name in ("utterance", "dialogue")}
        return {**stages, "total": sum(stages.values())}

    return step


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
