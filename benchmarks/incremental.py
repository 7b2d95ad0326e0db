"""Does a turn cost the same however long the conversation is, and what does recomputing it cost?

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.incremental                   # all but the long runs, about 3 minutes
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.incremental --long --save     # also threads and memory, about 10

Ratios are of medians within one run, the two sides taking turns. Recomputing is what a runtime without state would do:
the same graphs on the same ONNX Runtime, and HBAF in PyTorch (needs the training extra). The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.many import memory, threads_on_one
from benchmarks.report import finish, percentiles, show
from hbaf_edge import Conversation, HBAFRuntime
from hbaf_edge.bench.speech import RATE, WORDS, sound
from hbaf_edge.features import extract
from hbaf_edge.judge import Clock
from hbaf_edge.live import LiveTurn
from hbaf_edge.machine import machine

REACH = 94  # turns that a result can depend on: 3 (W - 1) + 1
WINDOW = 32
GOALS = {
    "turn 1,000 against turn 33, whole predict": "≤ 1.05",
    "turn 1,000 against turn 33, dialogue scope": "≤ 1.05",
    "dialogue scope and head, ms": "≤ 1.0",
    "utterance scope, 3 s and 12 words, ms": "≤ 5",
    "full fusion pass over 94 turns against one step": "≥ 20",
    "the same pass in PyTorch against one step": "",
    "encoding and running the last 32 turns again, against one turn": "≥ 15",
    "the same in PyTorch against one turn": "≥ 25",
    "16 threads on one runtime against two processes, turns a second": "≥ 0.9",
    "MB that 20,000 turns over 200 conversations add": "≤ 5",
}


def talked(runtime: HBAFRuntime, turns: int) -> Conversation:
    """A conversation of so many turns, one in four with sound."""
    chat, voice = runtime.conversation(), sound(1.0)
    for n in range(turns):
        heard: dict[str, Any] = {"audio": voice, "sample_rate": RATE} if n % 4 == 0 else {}
        runtime.observe(text=f"And then we went home, {n} times.", speaker="ab"[n % 2], conversation=chat, **heard)
    return chat


def alternately(repeats: int, *sides: Callable[[], float]) -> list[dict[str, float]]:
    """Milliseconds of each side, the sides taking turns; the first of each is thrown away."""
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats + 1):
        for values, side in zip(found, sides):
            values.append(side())
    return [percentiles(values[1:]) for values in found]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def depth(runtime: HBAFRuntime, repeats: int) -> dict[str, Any]:
    """A turn as number 33 and as number 1,000, by turns."""
    early, late = talked(runtime, 32), talked(runtime, 999)
    voice = sound(3.0)
    stages: dict[str, list[dict[str, float]]] = {"early": [], "late": []}

    def turn(name: str, chat: Conversation) -> float:
        p = runtime.predict(voice, text=WORDS, speaker="a", conversation=chat.fork(), sample_rate=RATE)
        stages[name].append(p.timing)
        return p.timing["total"]

    whole = alternately(repeats, lambda: turn("early", early), lambda: turn("late", late))
    scope = {name: percentiles([t["dialogue"] for t in found[1:]]) for name, found in stages.items()}
    return {
        "turn_33": whole[0],
        "turn_1000": whole[1],
        "dialogue_33": scope["early"],
        "dialogue_1000": scope["late"],
        "state_bytes": [early.nbytes, late.nbytes],
    }


def fusion(runtime: HBAFRuntime, repeats: int) -> dict[str, Any]:
    """Fusion alone, encoder states at hand: one step, and all of the 94 turns that a result can depend on."""
    judge = runtime._ready()
    clock = Clock()
    encoded = judge.encode(extract(sound(3.0), RATE, WORDS, judge.tokeniser), clock)
    chat = talked(runtime, REACH)
    scopes: dict[str, list[float]] = {"utterance": [], "dialogue": []}

    def step() -> float:
        clock = Clock()
        judge.estimate(encoded, chat, "a", clock, commit=False)
        times = clock.stages()
        for name, values in scopes.items():
            values.append(times[name])
        return times["total"]

    def again() -> None:
        new = runtime.conversation()
        for n in range(REACH):
            judge.estimate(encoded, new, "ab"[n % 2], Clock())

    one, full = alternately(max(5, repeats // 10), lambda: float(np.median([step() for _ in range(20)])),
                            lambda: timed(again))  # fmt: skip
    return {"step": one, "pass_of_94": full, **{name: percentiles(values[20:]) for name, values in scopes.items()}}


def again(runtime: HBAFRuntime, repeats: int) -> dict[str, Any]:
    """One incremental turn against encoding and running the last 32 again."""
    chat, voice = talked(runtime, WINDOW), sound(3.0)

    def predict(conversation: Conversation, n: int = 0) -> None:
        runtime.predict(voice, text=WORDS, speaker="ab"[n % 2], conversation=conversation, sample_rate=RATE)

    def everything() -> None:
        new = runtime.conversation()
        for n in range(WINDOW):
            predict(new, n)

    one, all_ = alternately(max(5, repeats // 10), lambda: float(np.median([timed(lambda: predict(chat.fork()))
                            for _ in range(5)])), lambda: timed(everything))  # fmt: skip
    return {"turn": one, "last_32_again": all_}


def in_torch(threads: int, repeats: int) -> dict[str, Any]:
    """The same model in PyTorch: the fusion pass over 94 turns on encoder states, and all of the last 32 turns."""
    import torch

    from hbaf_edge.bundle import load_bundle
    from training.config import TrainConfig
    from training.corpora.records import Dialogue, Utterance
    from training.from_bundle import restore
    from training.learner import Learner
    from training.material import Material

    torch.set_num_threads(threads)
    learner = Learner(*restore(load_bundle(None))).eval()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        clip = Path(folder) / "clip.wav"
        soundfile.write(clip, sound(3.0), RATE)
        turns = tuple(Utterance(WORDS, 0, "ab"[n % 2], clip) for n in range(REACH))
        shown = Material(learner, TrainConfig(), cached=False).shown(Dialogue("d", "test", turns), "audio+text")
        batch = learner.batch([shown])
        few = max(5, repeats // 10)
        fused, whole = alternately(
            few, lambda: timed(lambda: learner.hbaf(batch)), lambda: timed(lambda: learner.output([shown[-WINDOW:]]))
        )
    return {"pass_of_94": fused, "last_32_again": whole}


def end_of_speech(runtime: HBAFRuntime, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds from the last chunk to the result, words at hand, by length of the utterance."""
    found = {}
    for seconds in (1, 3, 5, 10, 20):
        chat, values = talked(runtime, 10), []
        for _ in range(max(11, repeats // 3)):
            turn = runtime.begin(speaker="a", conversation=chat.fork())
            fed(turn, sound(seconds))
            time.sleep(0.03)  # as long as a chunk and a half: what was fed before has been taken in by then
            values.append(turn.finish(text=WORDS).timing["total"])
        found[f"{seconds} s"] = percentiles(values[1:])
    return found


def fed(turn: LiveTurn, voice: NDArray[np.float32], pause: float = 0.0) -> list[float]:
    """Milliseconds that each 20 ms chunk took to feed."""
    found = []
    for start in range(0, len(voice), RATE // 50):
        found.append(timed(partial(turn.feed, voice[start : start + RATE // 50], RATE)))
        time.sleep(pause)
    return found


def feeding(runtime: HBAFRuntime, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds that feeding 20 ms of sound takes an audio callback: alone, and while another thread predicts."""
    voice, others, over = sound(3.0), runtime.conversation(), threading.Event()

    def listen() -> list[float]:
        found = []
        for _ in range(max(3, repeats // 20)):
            turn = runtime.begin(speaker="a", conversation=runtime.conversation())
            found += fed(turn, voice, pause=0.01)
            turn.cancel()
        return found

    def chatter() -> None:
        while not over.is_set():
            runtime.predict(voice, text=WORDS, speaker="b", conversation=others, sample_rate=RATE)

    alone = percentiles(listen())
    neighbour = threading.Thread(target=chatter)
    neighbour.start()
    beside = percentiles(listen())
    over.set()
    neighbour.join()
    return {"alone": alone, "beside a predict": beside}


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Of medians, by the names of GOALS."""
    depth_, fusion_, again_ = found["depth"], found["fusion"], found["again"]
    values = {
        "turn 1,000 against turn 33, whole predict": depth_["turn_1000"]["p50"] / depth_["turn_33"]["p50"],
        "turn 1,000 against turn 33, dialogue scope": depth_["dialogue_1000"]["p50"] / depth_["dialogue_33"]["p50"],
        "dialogue scope and head, ms": fusion_["dialogue"]["p50"],
        "utterance scope, 3 s and 12 words, ms": fusion_["utterance"]["p50"],
        "full fusion pass over 94 turns against one step": fusion_["pass_of_94"]["p50"] / fusion_["step"]["p50"],
        "encoding and running the last 32 turns again, against one turn": again_["last_32_again"]["p50"]
        / again_["turn"]["p50"],
    }
    if "torch" in found:
        torch = found["torch"]
        values["the same pass in PyTorch against one step"] = torch["pass_of_94"]["p50"] / fusion_["step"]["p50"]
        values["the same in PyTorch against one turn"] = torch["last_32_again"]["p50"] / again_["turn"]["p50"]
    if "threads" in found:
        rates = found["threads"]["one_runtime_turns_per_s"], found["threads"]["two_processes_turns_per_s"]
        values["16 threads on one runtime against two processes, turns a second"] = rates[0] / rates[1]
        grown = found["memory"]["at_the_end_mb"] - found["memory"]["windows_full_mb"]
        values["MB that 20,000 turns over 200 conversations add"] = grown
    return {name: round(value, 3) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--long", action="store_true", help="also 16 threads, and 20,000 turns")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    with HBAFRuntime(threads=1) as one, HBAFRuntime(threads=2) as two:
        one.warmup()
        two.warmup()
        found: dict[str, Any] = {
            "fusion": fusion(one, given.repeats),
            "depth": depth(two, given.repeats),
            "again": again(two, given.repeats),
            "end_of_speech": end_of_speech(two, given.repeats),
            "feeding": feeding(two, given.repeats),
        }
    if not given.no_torch:
        found["torch"] = in_torch(2, given.repeats)
    if given.long:
        found["threads"], found["memory"] = threads_on_one(), memory()
    found["ratios"] = ratios(found)
    rows = [(name, f"{value:.2f}", GOALS[name]) for name, value in found["ratios"].items()]
    show("incremental inference", rows, ("what", "measured", "goal"))
    for title, key in (("end of speech to result, ms", "end_of_speech"), ("feeding 20 ms of sound, ms", "feeding")):
        spread = [(name, *(f"{v[p]:.3f}" for p in ("p50", "p90", "p99"))) for name, v in found[key].items()]
        show(title, spread, ("what", "p50", "p90", "p99"))
    threads = {"fusion": 1, "depth, again, end_of_speech, feeding, torch": 2}
    finish("incremental", {"machine": machine(), "threads_used": threads, **found, "goals": GOALS}, given.save)


if __name__ == "__main__":
    main()
