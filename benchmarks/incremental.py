"""Does a turn cost the same however long the conversation is, while it is spoken, and beside many others?

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.incremental                   # about a minute
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.incremental --long --save     # also threads and memory, about 8

Sides are interleaved, and ratios are of medians. Fusion alone, and what recomputing earlier turns would cost instead,
are measured by benchmarks/peers.py.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Repeats, ReportFolder, Save, conclude, run, verdict
from hbaf_edge import HBAFRuntime, LiveTurn
from hbaf_edge.bench.document import PERCENTILES, Cell, Report, Section, measures_of, percentile_rows
from hbaf_edge.bench.series import Series, by_stage, in_turn, ratio, rounded, single, timed
from hbaf_edge.bench.turns import RATE, TEXT, Bench, past_turns, speech, turn_of
from hbaf_edge.stats import resident_mb

LENGTHS = (1, 3, 5, 10, 20)  # seconds of speech
CHUNK = RATE // 50  # samples of 20 ms
WITH_GOAL = (*PERCENTILES, "goal")


def rows_with_goals(measured: dict[str, Series], goals: dict[str, float]) -> list[Sequence[Cell]]:
    """A row of percentiles for each, and whether its median is at most its goal."""
    verdicts = [verdict(series.p50, "≤", goals.get(name)) for name, series in measured.items()]
    return [(*row, verdict_) for row, verdict_ in zip(percentile_rows(measured), verdicts)]


def depth(bench: Bench) -> Section:
    """The same turn as number 33 and as number 1,000."""
    runtime = bench.runtime()
    chats = {f"{turn:,}": past_turns(runtime, turn - 1, audio_every=4) for turn in (33, 1000)}
    timings = in_turn(bench.repeats, {n: turn_of(runtime, past=chat) for n, chat in chats.items()}, bench.step)
    titles = {"total": "whole", "dialogue": "dialogue scope"}
    series = {f"turn {n}, {titles[stage]}": by_stage(timings[n])[stage] for n in chats for stage in titles}
    rows = rows_with_goals(series, {})
    for stage, title in titles.items():
        early, late = ([timing[stage] for timing in timings[n]] for n in chats)
        times = ratio(late, early)["p50"]
        rows.append((f"turn 1,000 ÷ turn 33, {title}", times, *[None] * 4, verdict(times, "≤", 1.05)))
    states = " and ".join(f"{chat.nbytes:,}" for chat in chats.values())
    return Section("depth", "A turn by its number, ms", ("what", *WITH_GOAL), rows,
                   f"The state of the two conversations is {states} bytes.", measures_of(series))  # fmt: skip


def feed(turn: LiveTurn, audio: NDArray[np.float32], pause: float = 0.0) -> list[float]:
    """Milliseconds that each chunk of 20 ms takes to feed, with a pause of so many seconds behind each."""
    times = []
    for start in range(0, len(audio), CHUNK):
        times.append(timed(partial(turn.feed, audio[start : start + CHUNK], RATE)))
        time.sleep(pause)
    return times


def end_of_speech(bench: Bench) -> Section:
    """From the last chunk to the result, the text at hand, by length of the utterance."""
    runtime = bench.runtime()
    chat = past_turns(runtime, 10)

    def finish(seconds: float) -> float:
        turn = runtime.begin(speaker="a", conversation=chat.fork())
        feed(turn, speech(seconds))
        time.sleep(0.03)  # a chunk and a half: what was fed before has been processed by then
        return turn.finish(text=TEXT).timing["total"]

    times = in_turn(bench.some(0.33, 11), {f"{s} s": partial(finish, s) for s in LENGTHS}, bench.step)
    series = {name: Series.of(values) for name, values in times.items()}
    return Section("end_of_speech", "End of speech to result, ms", ("fed as it is spoken", *WITH_GOAL),
                   rows_with_goals(series, {"3 s": 30.0}), "", measures_of(series))  # fmt: skip


def feeding(bench: Bench) -> Section:
    """How long feeding 20 ms of audio holds up an audio callback: alone, and while another thread predicts."""
    runtime, audio, is_over = bench.runtime(), speech(3.0), threading.Event()

    def listen() -> list[float]:
        times = []
        for _ in range(bench.some(0.05, 3)):
            turn = runtime.begin(speaker="a", conversation=runtime.conversation())
            times += feed(turn, audio, pause=0.01)
            turn.cancel()
            bench.step()
        return times

    def predict() -> None:
        turn = turn_of(runtime)
        while not is_over.is_set():
            turn()

    alone = Series.of(listen())
    neighbour = threading.Thread(target=predict)
    neighbour.start()
    try:
        series = {"alone": alone, "while another thread predicts": Series.of(listen())}
    finally:
        is_over.set()
        neighbour.join()
    return Section("feeding", "Feeding 20 ms of audio, ms", ("what", *PERCENTILES), percentile_rows(series), "",
                   measures_of(series))  # fmt: skip


def converse(runtime: HBAFRuntime, place: int, turns: int) -> list[str | None]:
    """The labels of conversation number `place`: text, and in one turn of eight a second of audio."""
    chat, labels = runtime.conversation(), []
    for n in range(turns):
        audio: dict[str, Any] = {"audio": speech(1.0), "sample_rate": RATE} if (place + n) % 8 == 0 else {}
        text = f"Conversation {place}, and then we went home {n} times."
        labels.append(runtime.predict(text=text, speaker="ab"[n % 2], conversation=chat, **audio).label)
    return labels


PROCESS = (
    "import time; from benchmarks.incremental import *; r = HBAFRuntime(threads=1); r.warmup(); print('ready'); "
    "import sys; sys.stdout.flush(); input(); t = time.perf_counter(); "
    "[converse(r, p, {turns}) for p in range({first}, {last})]; print(time.perf_counter() - t)"
)


def threads(conversations: int = 16, turns: int = 200) -> Section:
    """Conversations on as many threads of one runtime, against half of them in each of two processes."""
    runtime = HBAFRuntime(threads=1)
    runtime.warmup()
    serial = [converse(runtime, place, turns) for place in range(conversations)]
    labels: dict[int, list[str | None]] = {}

    def work(place: int) -> None:
        labels[place] = converse(runtime, place, turns)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(conversations)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = conversations * turns / (time.perf_counter() - start)
    half = conversations // 2
    scripts = [PROCESS.format(turns=turns, first=first, last=first + half) for first in (0, half)]
    apart = sum(half * turns / seconds for seconds in in_processes(scripts))
    is_equal = [labels[place] for place in range(conversations)] == serial
    rows = [
        (f"{conversations} threads on one runtime, turns/s", rounded(together), None),
        ("two processes of one thread, turns/s", rounded(apart), None),
        ("the first ÷ the second", rounded(together / apart), verdict(together / apart, "≥", 0.95)),
    ]
    measures = {"one runtime": single(together), "two processes": single(apart)}
    return Section("many_threads", "Many conversations at once", ("what", "value", "goal"), rows,
                   f"Labels equal those of one conversation after the other: {'yes' if is_equal else 'NO'}.",
                   measures, "turns/s", "higher")  # fmt: skip


def in_processes(scripts: Sequence[str]) -> list[float]:
    """Start a process for each script, let all begin together once they are ready, and read the number each prints."""
    pipe = subprocess.PIPE
    processes = [subprocess.Popen([sys.executable, "-c", s], stdin=pipe, stdout=pipe, text=True) for s in scripts]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [float(process.communicate()[0]) for process in processes]


def memory(turns: int = 20_000, conversations: int = 200) -> Section:
    """Resident MB once every conversation's window is full, and at the end.

    Until then memory grows by design: a new conversation's rings are touched slot by slot.
    """
    runtime = HBAFRuntime(threads=2)
    runtime.warmup()
    chats = [runtime.conversation() for _ in range(conversations)]
    clips, sizes = [speech(seconds) for seconds in (0.5, 1.0, 2.0)], []
    for n in range(turns):
        audio: dict[str, Any] = {"audio": clips[n % 3], "sample_rate": RATE} if n % 16 == 0 else {}
        runtime.observe(text=f"And then, {n}.", speaker="ab"[n % 2], conversation=chats[n % conversations], **audio)
        if n in (2 * turns // 5, turns - 1):
            sizes.append(resident_mb() or 0.0)
    full, end = sizes
    rows = [("windows full", full, None), ("at the end", end, None),
            ("added", rounded(end - full), verdict(end - full, "≤", 5))]  # fmt: skip
    return Section("long_memory", f"Resident memory over {turns:,} turns of {conversations} conversations, MB",
                   ("what", "MB", "goal"), rows, "", {"at the end": single(end)}, "MB")  # fmt: skip


def main(
    repeats: Repeats = 101,
    is_long: Annotated[bool, typer.Option("--long", help="also 16 threads, and 20,000 turns")] = False,
    report: ReportFolder = None,
    save: Save = False,
) -> int:
    bench = Bench([None], 2, "cpu", repeats)
    work: list[tuple[str, Callable[[], Section]]] = [
        (scene.__name__.replace("_", " "), partial(scene, bench)) for scene in (depth, end_of_speech, feeding)
    ]
    if is_long:
        work += [("threads", threads), ("memory", memory)]
    settings = {"threads": bench.threads, "repeats": repeats}
    return conclude("incremental", Report("hbaf-edge: incremental inference", settings), work, save, report, bench)


if __name__ == "__main__":
    run(main, __doc__)
