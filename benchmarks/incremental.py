"""Measure live audio and long runs: end of speech to result, feeding, many threads, and memory over many turns.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.incremental                   # about a minute
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.incremental --long --save     # also threads and memory, about 8

What the state saves is measured by benchmarks/peers.py, and what a turn costs late in a conversation by
`hbaf-edge benchmark`.
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

from benchmarks.report import AsJson, Repeats, ReportFolder, Save, measure_and_report, run, verdict
from hbaf_edge import HBAFRuntime, LiveTurn
from hbaf_edge.bench.document import PERCENTILES, Cell, Report, Section, measures_of, percentile_rows
from hbaf_edge.bench.series import Series, interleave, rounded, single_value, time_ms
from hbaf_edge.bench.turns import RATE, TEXT, Bench, conversation_with_turns, repeatable_turn, speech
from hbaf_edge.stats import resident_mb

LENGTHS = (1, 3, 5, 10, 20)  # seconds of speech
CHUNK = RATE // 50  # samples of 20 ms
COLUMNS = (*PERCENTILES, "goal")


def rows_with_goals(measured: dict[str, Series], goals: dict[str, float]) -> list[Sequence[Cell]]:
    """Return a row of percentiles for each series, with its goal for the median and whether the median meets it."""
    verdicts = [verdict(series.p50, "≤", goals.get(name)) for name, series in measured.items()]
    return [(*row, goal) for row, goal in zip(percentile_rows(measured), verdicts)]


def feed(turn: LiveTurn, audio: NDArray[np.float32], pause: float = 0.0) -> list[float]:
    """Feed (samples,) in chunks of 20 ms, pause that many seconds after each, and return milliseconds per chunk."""
    times = []
    for start in range(0, len(audio), CHUNK):
        times.append(time_ms(partial(turn.feed, audio[start : start + CHUNK], RATE)))
        time.sleep(pause)
    return times


def end_of_speech(bench: Bench) -> Section:
    """Time from the last chunk to the result, with the transcript available, by duration of the utterance."""
    runtime = bench.runtime()
    past = conversation_with_turns(runtime, 10)

    def finish(seconds: float) -> float:
        turn = runtime.begin(speaker="a", conversation=past.fork())
        feed(turn, speech(seconds))
        time.sleep(0.03)  # one and a half chunks, so that all earlier chunks have been processed
        return turn.finish(text=TEXT).timing["total"]

    times = interleave(bench.share_of_repeats(0.33, 11), {f"{s} s": partial(finish, s) for s in LENGTHS}, bench.step)
    series = {name: Series.of(values) for name, values in times.items()}
    return Section("end_of_speech", "End of speech to result, ms", ("live audio", *COLUMNS),
                   rows_with_goals(series, {"3 s": 30.0}), "", measures_of(series))  # fmt: skip


def feeding(bench: Bench) -> Section:
    """Time `feed` of 20 ms of audio, which an audio callback waits for: alone, and while another thread predicts."""
    runtime, audio, stop = bench.runtime(), speech(3.0), threading.Event()

    def feed_turns() -> list[float]:
        times = []
        for _ in range(bench.share_of_repeats(0.05, 3)):
            turn = runtime.begin(speaker="a", conversation=runtime.conversation())
            times += feed(turn, audio, pause=0.01)
            turn.cancel()
            bench.step()
        return times

    def predict() -> None:
        turn = repeatable_turn(runtime)
        while not stop.is_set():
            turn()

    alone = Series.of(feed_turns())
    predicting = threading.Thread(target=predict)
    predicting.start()
    try:
        series = {"alone": alone, "while another thread predicts": Series.of(feed_turns())}
    finally:
        stop.set()
        predicting.join()
    return Section("feeding", "Feeding 20 ms of audio, ms", ("what", *PERCENTILES), percentile_rows(series), "",
                   measures_of(series))  # fmt: skip


def predict_conversation(runtime: HBAFRuntime, number: int, turns: int) -> list[str | None]:
    """Return the labels of conversation `number`: every turn has text, and every eighth one second of audio."""
    conversation, labels = runtime.conversation(), []
    for n in range(turns):
        audio: dict[str, Any] = {"audio": speech(1.0), "sample_rate": RATE} if (number + n) % 8 == 0 else {}
        text = f"Conversation {number}, and then we went home {n} times."
        labels.append(runtime.predict(text=text, speaker="ab"[n % 2], conversation=conversation, **audio).label)
    return labels


# Prints "ready", waits for a line on standard input, and prints the seconds that its conversations take.
PROCESS = (
    "import time; from benchmarks.incremental import *; r = HBAFRuntime(threads=1); r.warmup(); print('ready'); "
    "import sys; sys.stdout.flush(); input(); t = time.perf_counter(); "
    "[predict_conversation(r, n, {turns}) for n in range({first}, {last})]; print(time.perf_counter() - t)"
)


def threads(conversations: int = 16, turns: int = 200) -> Section:
    """Compare one thread per conversation on one runtime with half of the conversations in each of two processes."""
    runtime = HBAFRuntime(threads=1)
    runtime.warmup()
    serial_labels = [predict_conversation(runtime, number, turns) for number in range(conversations)]
    labels: dict[int, list[str | None]] = {}

    def work(number: int) -> None:
        labels[number] = predict_conversation(runtime, number, turns)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(conversations)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    in_threads = conversations * turns / (time.perf_counter() - start)
    half = conversations // 2
    scripts = [PROCESS.format(turns=turns, first=first, last=first + half) for first in (0, half)]
    in_processes = sum(half * turns / seconds for seconds in run_together(scripts))
    is_equal = [labels[number] for number in range(conversations)] == serial_labels
    speedup = in_threads / in_processes
    rows = [
        (f"{conversations} threads on one runtime, turns/s", rounded(in_threads), None),
        ("two processes of one thread, turns/s", rounded(in_processes), None),
        ("threads ÷ processes", rounded(speedup), verdict(speedup, "≥", 0.95)),
    ]
    measures = {"one runtime": single_value(in_threads), "two processes": single_value(in_processes)}
    return Section("many_threads", "Many conversations at once", ("what", "value", "goal"), rows,
                   f"Labels equal those of one conversation after the other: {'yes' if is_equal else 'NO'}.",
                   measures, "turns/s", "higher")  # fmt: skip


def run_together(scripts: Sequence[str]) -> list[float]:
    """Start a process for each script, release all of them once all are ready, and return the numbers they print."""
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
    """Measure resident memory when all windows are full, and at the end.

    Memory grows until then, because a new conversation's ring buffers are touched one slot per turn.
    """
    runtime = HBAFRuntime(threads=2)
    runtime.warmup()
    states = [runtime.conversation() for _ in range(conversations)]
    clips, sizes = [speech(seconds) for seconds in (0.5, 1.0, 2.0)], []
    for n in range(turns):
        audio: dict[str, Any] = {"audio": clips[n % 3], "sample_rate": RATE} if n % 16 == 0 else {}
        runtime.observe(text=f"And then, {n}.", speaker="ab"[n % 2], conversation=states[n % conversations], **audio)
        if n in (2 * turns // 5, turns - 1):
            sizes.append(resident_mb() or 0.0)
    full, end = sizes
    rows = [("windows full", full, None), ("at the end", end, None),
            ("growth", rounded(end - full), verdict(end - full, "≤", 5))]  # fmt: skip
    return Section("long_memory", f"Resident memory over {turns:,} turns of {conversations} conversations, MB",
                   ("what", "MB", "goal"), rows, "", {"at the end": single_value(end)}, "MB")  # fmt: skip


def main(
    repeats: Repeats = 101,
    is_long: Annotated[bool, typer.Option("--long", help="also measure 16 threads, and 20,000 turns")] = False,
    report: ReportFolder = None,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    bench = Bench([None], 2, "cpu", repeats)
    short = (end_of_speech, feeding)
    sections: list[tuple[str, Callable[[], Section]]] = [
        (section.__name__.replace("_", " "), partial(section, bench)) for section in short
    ]
    if is_long:
        sections += [("threads", threads), ("memory", memory)]
    new = Report("hbaf-edge: incremental inference", {"threads": bench.threads, "repeats": repeats})
    return measure_and_report("incremental", new, sections, save, report, bench, as_json)


if __name__ == "__main__":
    run(main, __doc__)
