"""Functions that use the runtime's internals.

Other files in benchmarks/ use only public names, so a change of the internals affects only this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.turns import RATE, TEXT, conversation_with_turns, repeatable_turn, speech
from hbaf_edge.bundle import Bundle
from hbaf_edge.calls import TurnTarget
from hbaf_edge.features import extract_features

Feeds = dict[str, dict[str, NDArray[Any]]]  # arrays by graph and input name


def fusion(runtime: HBAFRuntime, turn: int) -> Callable[[], dict[str, float]]:
    """Prepare a turn whose encoder states are computed once, so that only its fusion is timed.

    Args:
        runtime: the runtime under test.
        turn: number of the turn in its conversation.

    Returns:
        A function that fuses the turn (3 s of audio, twelve words) without committing it. It returns the milliseconds
        of "utterance" and "dialogue", and their sum as "total".
    """
    engine, features = runtime.engine, extract_features(speech(3.0), RATE, TEXT, runtime.engine.tokeniser)
    target = TurnTarget(conversation_with_turns(runtime, turn - 1), "a")
    audio_states = engine.infer([target], [features])[1][0].audio_states

    def step() -> dict[str, float]:
        _, (result,) = engine.infer([target], [features], [audio_states])
        stages = {name: result.milliseconds[name] for name in ("utterance", "dialogue")}
        return {**stages, "total": sum(stages.values())}

    return step


def fusion_of_all(runtime: HBAFRuntime, turns: int, batch: int) -> Callable[[], float]:
    """Return a function that fuses the first `turns` turns of a conversation, as a runtime without state has to.

    Encoder states are computed in advance. The function returns the milliseconds of both fusion stages of all turns.
    """
    engine, features = runtime.engine, extract_features(speech(3.0), RATE, TEXT, runtime.engine.tokeniser)
    pasts = [conversation_with_turns(runtime, turn) for turn in range(turns)]
    audio_states = engine.infer([TurnTarget(pasts[0], "a")], [features])[1][0].audio_states
    batches = [[TurnTarget(past, "a") for past in pasts[i : i + batch]] for i in range(0, turns, batch)]

    def fuse_all() -> float:
        total = 0.0
        for targets in batches:
            results = engine.infer(targets, [features] * len(targets), [audio_states] * len(targets))[1]
            total += sum(results[0].milliseconds[stage] for stage in ("utterance", "dialogue"))
        return total

    return fuse_all


def graph_inputs(bundle: Bundle, past: int = 32) -> Feeds:
    """Return each graph's inputs for a turn of 3 s and twelve words after `past` others, every fourth with audio."""
    feeds: Feeds = {}

    def record(graph: str, inputs: Mapping[str, NDArray[Any]], outputs: object) -> None:
        feeds[graph] = {name: array.copy() for name, array in inputs.items()}

    with HBAFRuntime(bundle.path, threads=1) as runtime:
        turn = repeatable_turn(runtime, past=conversation_with_turns(runtime, past, audio_every=4))
        with runtime.tap(record):
            turn()
    return feeds
