"""What `hbaf-edge benchmark` measures: each function returns a section of the report.

Sides of a comparison take turns, so that a busy machine slows all alike; the turn itself is that of turns.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import soxr

from hbaf_edge.bench.compare import REFERENCE
from hbaf_edge.bench.document import Cell, Section, timing_section
from hbaf_edge.bench.energy import measured, readers
from hbaf_edge.bench.series import Series, in_turn, rounded, timed
from hbaf_edge.bench.turns import RATE, TEXT, Bench, fresh, past_turns, speech, total, turn_of
from hbaf_edge.bundle import load_bundle
from hbaf_edge.inputs import TurnInput
from hbaf_edge.mel import log_mel

LENGTHS = (0.5, 1, 3, 5, 10, 20)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
STAGES = {
    "resample": "(before it: resample from 44.1 kHz)", "features": "features", "mel": "(of these: log-mel)",
    "audio": "encoder: audio", "text": "encoder: text", "utterance": "fusion: utterance scope",
    "dialogue": "fusion: dialogue scope and head", "total": "a turn",
}  # fmt: skip


def fresh_start(bench: Bench) -> Section:
    """Import, load and first turn, each in a fresh interpreter."""
    times = []
    for _ in range(6 if bench.quick else 11):
        times.append(fresh(bench)[:3])
        bench.step()
    names = ("import hbaf_edge", "load (hashes checked, sessions made)", "first turn, without warmup()")
    series = {name: Series.of(values) for name, values in zip(names, zip(*times))}
    return timing_section("start", "From nothing to the first result, ms", "what", series,
                          "Fresh interpreters; files are in the system's cache.")  # fmt: skip


def stages(bench: Bench) -> Section:
    """Where a turn's time goes."""
    turn, times = turn_of(bench.runtime()), dict[str, list[float]]()
    audio, audio_44k = speech(3.0), np.resize(speech(3.0), 3 * 44_100)
    x = np.random.default_rng(0).standard_normal(1 << 15)
    parts = {
        "mel": lambda: log_mel(audio),
        "resample": lambda: soxr.resample(audio_44k, 44_100, RATE),
        REFERENCE: lambda: np.fft.rfft(x),  # nothing of ours, on one thread: how fast the machine was during this run
    }
    turn()
    for _ in range(bench.repeats):
        for stage, ms in (turn() | {name: timed(part) for name, part in parts.items()}).items():
            times.setdefault(stage, []).append(ms)
        bench.step()
    bench.reference_workload = times[REFERENCE]
    series = {title: Series.of(times[name]) for name, title in STAGES.items()}
    stacked = [STAGES[name] for name in ("features", "audio", "text", "utterance", "dialogue")]
    saved = sum(series[title].p50 for title in stacked) - series["a turn"].p50
    is_parallel = saved > series[STAGES["text"]].p50 / 2  # the text encoder ran beside the audio encoder
    figure = {"kind": "stack", "title": "A turn of 3 s and twelve words, ms",
              "parts": {title: rounded(series[title].p50) for title in stacked},
              "beside": [STAGES["text"]] if is_parallel else []}  # fmt: skip
    text = (
        f"3 s of speech and twelve words: {3000 / series['a turn'].p50:.0f} times as fast as they are spoken. The "
        "turn's features are the log-mel spectrum and tokens; audio at 16 kHz is not resampled."
    )
    if is_parallel:
        text += " The text encoder runs beside the audio encoder, so the whole is less than the sum."
    return timing_section("stages", "A turn, stage by stage, ms", "stage", series, text, figure)


def reference_workload(bench: Bench) -> Section:
    """By this `hbaf-edge compare` knows the machine's own part in a change; measured between the stages."""
    series = {REFERENCE: Series.of(bench.reference_workload)}
    return timing_section(REFERENCE, "A fixed piece of arithmetic, ms", "what", series,
                          "A Fourier transform of 32,768 numbers, for comparing runs.")  # fmt: skip


def varied(bench: Bench, name: str, title: str, column: str, sides: Mapping[Any, Callable[[], float]],
           repeats: int, text: str = "", has_figure: bool = False) -> Section:  # fmt: skip
    """Turns of several kinds, taking turns; with a figure where the sides are numbers."""
    named = {str(side): turn for side, turn in sides.items()}
    series = {side: Series.of(values) for side, values in in_turn(repeats, named, bench.step).items()}
    figure: dict[str, Any] | None = None
    if has_figure:
        lines = {q: [rounded(getattr(s, q)) for s in series.values()] for q in ("p50", "p90")}
        figure = {"kind": "lines", "title": title.removesuffix(", ms"), "x": list(sides), "x_title": column,
                  "lines": {q: y for q, y in lines.items() if None not in y}, "y_title": "ms"}  # fmt: skip
    return timing_section(name, title, column, series, text, figure)


def thread_counts(bench: Bench) -> Section:
    """The same turn with one thread, two, and so on to all cores."""
    most = min(os.cpu_count() or 1, 16)
    counts = sorted({1, bench.threads, most, *(2**i for i in range(1, 5) if 2**i < most)})
    sides = {n: total(turn_of(bench.runtime(n))) for n in counts}
    return varied(bench, "threads", "A turn by threads, ms", "threads", sides, bench.some(0.25, 29))


def context(bench: Bench) -> Section:
    """The same turn after few turns and after many: what state costs."""
    runtime = bench.runtime()
    window = int(runtime.manifest["window"])
    sides = {n: total(turn_of(runtime, past=n)) for n in sorted({0, window // 4, window // 2, window, 3 * window})}
    text = f"The window holds {window}: what a turn costs does not grow with the conversation."
    return varied(bench, "context", "A turn by earlier turns, ms", "earlier turns", sides, bench.some(0.25, 29), text,
                  has_figure=True)  # fmt: skip


def lengths(bench: Bench) -> Section:
    """By seconds of speech."""
    sides = {seconds: total(turn_of(bench.runtime(), seconds=seconds)) for seconds in LENGTHS}
    text = "Twelve words with each. Real-time factor: milliseconds of work for a millisecond of speech."
    section = varied(bench, "lengths", "A turn by its length, ms", "seconds of speech", sides, bench.some(0.12), text,
                     has_figure=True)  # fmt: skip
    section.head = (*section.head, "real-time factor")
    section.rows = [(*row, rounded(float(row[1] or 0) / (1e3 * s))) for row, s in zip(section.rows, LENGTHS)]
    return section


def modalities(bench: Bench) -> Section:
    """Text alone, audio alone, both."""
    runtime = bench.runtime()
    sides = {
        "audio and text": total(turn_of(runtime)),
        "audio alone": total(turn_of(runtime, text=None)),
        "text alone": total(turn_of(runtime, seconds=None)),
    }
    return varied(bench, "modalities", "A turn by what is given, ms", "given", sides, bench.some(0.25, 29))


def batches(bench: Bench) -> Section:
    """Turns of several conversations in one call."""
    runtime, audio = bench.runtime(), speech(3.0)
    sizes = [n for n in BATCHES if not bench.quick or n in (1, 8, 64)]
    pasts = [past_turns(runtime, 10) for _ in range(max(sizes))]

    def call(n: int) -> float:
        turns = [
            TurnInput(audio=audio, sample_rate=RATE, text=TEXT, speaker="a", conversation=chat.fork())
            for chat in pasts[:n]
        ]
        return timed(lambda: runtime.predict_batch(turns))

    repeats = 6 if bench.quick else bench.some(0.12)
    section = varied(bench, "together", "Conversations at once, ms", "conversations a call",
                     {n: partial(call, n) for n in sizes}, repeats,
                     "predict_batch: every conversation's turn comes back when the last is done.",
                     has_figure=True)  # fmt: skip
    section.head = (*section.head, "turns/s")
    section.rows = [(*row, rounded(1e3 * n / float(row[1] or 1))) for row, n in zip(section.rows, sizes)]
    return section


def memory(bench: Bench) -> Section:
    """Resident memory, state of a conversation, processor time of a turn."""
    runtime = bench.runtime()
    turn, n = turn_of(runtime), bench.some(0.25)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(n):
        turn()
        bench.step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    process, state = fresh(bench), past_turns(runtime, 2).nbytes
    rows: list[Sequence[Cell]] = [
        ("resident after a first turn of 3 s", process.resident_mb, "MB"),
        ("peak until then", process.peak_mb, "MB"),
        ("bundle", rounded(load_bundle(bench.bundles[0]).megabytes), "MB"),
        ("state of a conversation", rounded(state / 1024), "KiB"),
        ("processor time of a turn", rounded(cpu / n * 1e3), "CPU ms"),
        ("cores busy meanwhile", rounded(cpu / wall), "cores"),
    ]
    return Section("memory", "Memory and processor time", ("what", "value", "unit"), rows,
                   "The state's size is the same after two turns and after two million.")  # fmt: skip


def energy(bench: Bench) -> Section:
    """Millijoules of a turn, where the machine tells."""
    available, refused = readers()
    turn, turns = turn_of(bench.runtime()), bench.some(1.0)
    rows: list[Sequence[Cell]] = []
    for reader in available:
        e = measured(reader, turn, turns, 2.0 if bench.quick else 10.0)
        is_known = e.millijoules > e.error
        turn_mj = f"{rounded(e.millijoules)} ± {rounded(e.error)}" if is_known else f"below {e.error:.1f}"
        rows.append((reader.name, rounded(e.idle_watts), rounded(e.watts), turn_mj))
        bench.step()
    text = (
        f"Turns one after the other, {turns} of them in five parts; what the machine takes idle, before and after, is "
        "subtracted from mJ. ± is the parts' standard error. "
    )
    if not rows:
        text = "Not measurable on this machine: it shows no power rail, no NVIDIA card and no RAPL counter. "
    if refused:
        text += f"Not readable: {'; '.join(refused)} (RAPL: sudo chmod a+r /sys/class/powercap/*/energy_uj). "
    return Section("energy", "Energy", ("source", "idle, W", "running, W", "mJ a turn"), rows, text.strip())


def scenes() -> Iterable[tuple[str, Callable[[Bench], Section]]]:
    """All, in the order to be shown, with what is said meanwhile."""
    return {
        "stages of a turn": stages,
        "a fixed piece of arithmetic": reference_workload,
        "fresh starts": fresh_start,
        "threads": thread_counts,
        "context": context,
        "lengths": lengths,
        "modalities": modalities,
        "conversations at once": batches,
        "memory": memory,
        "energy": energy,
    }.items()
