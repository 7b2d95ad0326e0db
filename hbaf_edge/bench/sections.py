"""The sections of `hbaf-edge benchmark`: each function measures one and returns it.

Candidates are interleaved, so that other programs slow all of them equally. turns.py defines the measured turn.
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
from hbaf_edge.bench.energy import find_power_meters, measure_energy
from hbaf_edge.bench.series import Series, interleave, rounded, time_ms
from hbaf_edge.bench.turns import (
    RATE,
    TEXT,
    Bench,
    conversation_with_turns,
    measure_fresh_process,
    repeatable_turn,
    speech,
    total_ms,
)
from hbaf_edge.bundle import load_bundle
from hbaf_edge.inputs import TurnInput
from hbaf_edge.mel import log_mel

LENGTHS = (0.5, 1, 3, 5, 10, 20)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Stage -> its name in reports, which identifies the measure when reports are compared.
STAGES = {
    "resample": "(before it: resample from 44.1 kHz)", "features": "features", "mel": "(of these: log-mel)",
    "audio": "encoder: audio", "text": "encoder: text", "utterance": "fusion: utterance scope",
    "dialogue": "fusion: dialogue scope and head", "total": "a turn",
}  # fmt: skip


def fresh_start(bench: Bench) -> Section:
    """Import, load and first turn, each in a new process."""
    times = []
    for _ in range(6 if bench.quick else 11):
        times.append(measure_fresh_process(bench)[:3])
        bench.step()
    names = ("import hbaf_edge", "load (hashes checked, sessions made)", "first turn, without warmup()")
    series = {name: Series.of(values) for name, values in zip(names, zip(*times))}
    return timing_section("start", "From process start to the first result, ms", "step", series,
                          "New Python processes; the files are in the system's cache.")  # fmt: skip


def stages(bench: Bench) -> Section:
    """Time of each stage of a turn."""
    turn, times = repeatable_turn(bench.runtime()), dict[str, list[float]]()
    audio, audio_44k = speech(3.0), np.resize(speech(3.0), 3 * 44_100)
    x = np.random.default_rng(0).standard_normal(1 << 15)
    extra_work = {
        "mel": lambda: log_mel(audio),
        "resample": lambda: soxr.resample(audio_44k, 44_100, RATE),
        REFERENCE: lambda: np.fft.rfft(x),  # independent of our code, on one thread: the machine's speed during the run
    }
    turn()
    for _ in range(bench.repeats):
        for stage, ms in (turn() | {name: time_ms(work) for name, work in extra_work.items()}).items():
            times.setdefault(stage, []).append(ms)
        bench.step()
    bench.reference_workload = times[REFERENCE]
    series = {title: Series.of(times[name]) for name, title in STAGES.items()}
    stacked = [STAGES[name] for name in ("features", "audio", "text", "utterance", "dialogue")]
    overlap = sum(series[title].p50 for title in stacked) - series["a turn"].p50
    is_parallel = overlap > series[STAGES["text"]].p50 / 2  # both encoders ran at the same time
    figure = {"kind": "stack", "title": "A turn of 3 s and twelve words, ms",
              "parts": {title: rounded(series[title].p50) for title in stacked},
              "beside": [STAGES["text"]] if is_parallel else []}  # fmt: skip
    text = (
        f"3 s of speech and twelve words: {3000 / series['a turn'].p50:.0f} times as fast as real time. Its features "
        "are the log-mel spectrum and tokens; audio at 16 kHz is not resampled."
    )
    if is_parallel:
        text += " The text and audio encoders run in parallel, so the total is less than the sum."
    return timing_section("stages", "A turn by stage, ms", "stage", series, text, figure)


def reference_workload(bench: Bench) -> Section:
    """A fixed computation, measured between the stages, which shows `hbaf-edge compare` how fast the machine was."""
    series = {REFERENCE: Series.of(bench.reference_workload)}
    return timing_section(REFERENCE, "Reference workload, ms", "workload", series,
                          "A Fourier transform of 32,768 numbers, to compare the speed of two runs.")  # fmt: skip


def compare_turns(bench: Bench, name: str, title: str, column: str, turns: Mapping[Any, Callable[[], float]],
                  repeats: int, text: str = "", has_figure: bool = False) -> Section:  # fmt: skip
    """Measure several kinds of turns, interleaved. A figure needs numbers as the keys of `turns`."""
    named = {str(key): turn for key, turn in turns.items()}
    series = {key: Series.of(values) for key, values in interleave(repeats, named, bench.step).items()}
    figure: dict[str, Any] | None = None
    if has_figure:
        lines = {q: [rounded(getattr(s, q)) for s in series.values()] for q in ("p50", "p90")}
        figure = {"kind": "lines", "title": title.removesuffix(", ms"), "x": list(turns), "x_title": column,
                  "lines": {q: y for q, y in lines.items() if None not in y}, "y_title": "ms"}  # fmt: skip
    return timing_section(name, title, column, series, text, figure)


def thread_counts(bench: Bench) -> Section:
    """The same turn with 1, 2, 4, … threads, up to the number of cores."""
    maximum = min(os.cpu_count() or 1, 16)
    counts = sorted({1, bench.threads, maximum, *(2**i for i in range(1, 5) if 2**i < maximum)})
    turns = {n: total_ms(repeatable_turn(bench.runtime(n))) for n in counts}
    return compare_turns(bench, "threads", "A turn by threads, ms", "threads", turns, bench.share_of_repeats(0.25, 29))


def context(bench: Bench) -> Section:
    """The same turn after different numbers of turns, which shows the cost of the key/value cache."""
    runtime = bench.runtime()
    window = int(runtime.manifest["window"])
    counts = sorted({0, window // 2, window, 3 * window if bench.quick else 1000})
    turns = {n: total_ms(repeatable_turn(runtime, past=n)) for n in counts}
    text = f"The window has {window} turns, so the cost of a turn does not grow with the conversation."
    return compare_turns(bench, "context", "A turn by earlier turns, ms", "earlier turns", turns,
                         bench.share_of_repeats(0.25, 29), text, has_figure=True)  # fmt: skip


def lengths(bench: Bench) -> Section:
    """Turns with different lengths of speech."""
    turns = {seconds: total_ms(repeatable_turn(bench.runtime(), seconds=seconds)) for seconds in LENGTHS}
    text = "Each turn has twelve words. The real-time factor is the computing time ÷ the length of the speech."
    section = compare_turns(bench, "lengths", "A turn by length, ms", "seconds of speech", turns,
                            bench.share_of_repeats(0.12), text, has_figure=True)  # fmt: skip
    section.head = (*section.head, "real-time factor")
    section.rows = [(*row, rounded(float(row[1] or 0) / (1e3 * s))) for row, s in zip(section.rows, LENGTHS)]
    return section


def modalities(bench: Bench) -> Section:
    """Turns with text, audio, or both."""
    runtime = bench.runtime()
    turns = {
        "audio and text": total_ms(repeatable_turn(runtime)),
        "audio alone": total_ms(repeatable_turn(runtime, text=None)),
        "text alone": total_ms(repeatable_turn(runtime, seconds=None)),
    }
    repeats = bench.share_of_repeats(0.25, 29)
    return compare_turns(bench, "modalities", "A turn by modality, ms", "inputs", turns, repeats)


def batches(bench: Bench) -> Section:
    """Turns of several conversations in one call of `predict_batch`."""
    runtime, audio = bench.runtime(), speech(3.0)
    sizes = [n for n in BATCHES if not bench.quick or n in (1, 8, 64)]
    pasts = [conversation_with_turns(runtime, 10) for _ in range(max(sizes))]

    def call_ms(n: int) -> float:
        inputs = [
            TurnInput(audio=audio, sample_rate=RATE, text=TEXT, speaker="a", conversation=past.fork())
            for past in pasts[:n]
        ]
        return time_ms(lambda: runtime.predict_batch(inputs))

    repeats = 6 if bench.quick else bench.share_of_repeats(0.12)
    turns = {n: partial(call_ms, n) for n in sizes}
    text = "One call of predict_batch returns when the turns of all conversations are done."
    section = compare_turns(bench, "together", "Batches of conversations, ms", "conversations per call", turns, repeats,
                            text, has_figure=True)  # fmt: skip
    section.head = (*section.head, "turns/s")
    section.rows = [(*row, rounded(1e3 * n / float(row[1] or 1))) for row, n in zip(section.rows, sizes)]
    return section


def memory(bench: Bench) -> Section:
    """Resident memory, state of a conversation, and CPU time of a turn."""
    runtime = bench.runtime()
    turn, n = repeatable_turn(runtime), bench.share_of_repeats(0.25)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(n):
        turn()
        bench.step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    process, state = measure_fresh_process(bench), conversation_with_turns(runtime, 2).nbytes
    rows: list[Sequence[Cell]] = [
        ("resident after the first turn of 3 s", process.resident_mb, "MB"),
        ("peak until then", process.peak_mb, "MB"),
        ("bundle", rounded(load_bundle(bench.bundles[0]).megabytes), "MB"),
        ("state of a conversation", rounded(state / 1024), "KiB"),
        ("CPU time of a turn", rounded(cpu / n * 1e3), "CPU ms"),
        ("busy cores during a turn", rounded(cpu / wall), "cores"),
    ]
    return Section("memory", "Memory and CPU time", ("quantity", "value", "unit"), rows,
                   "The state of a conversation has a constant size.")  # fmt: skip


def energy(bench: Bench) -> Section:
    """Energy of a turn in millijoules, if the machine has a power meter."""
    meters, unreadable = find_power_meters()
    turn, turns = repeatable_turn(bench.runtime()), bench.share_of_repeats(1.0)
    rows: list[Sequence[Cell]] = []
    for meter in meters:
        e = measure_energy(meter, turn, turns, 2.0 if bench.quick else 10.0)
        is_significant = e.millijoules > e.error
        turn_mj = f"{rounded(e.millijoules)} ± {rounded(e.error)}" if is_significant else f"below {e.error:.1f}"
        rows.append((meter.name, rounded(e.idle_watts), rounded(e.watts), turn_mj))
        bench.step()
    text = (
        f"{turns} turns one after another, in five parts. The energy of the idle machine, measured before and after, "
        "is subtracted. ± is the standard error over the parts. "
    )
    if not rows:
        text = "Not measurable on this machine: it has no readable power rail, NVIDIA GPU or RAPL counter. "
    if unreadable:
        text += f"Not readable: {'; '.join(unreadable)} (RAPL: sudo chmod a+r /sys/class/powercap/*/energy_uj). "
    return Section("energy", "Energy", ("source", "idle, W", "running, W", "mJ per turn"), rows, text.strip())


def all_sections() -> Iterable[tuple[str, Callable[[Bench], Section]]]:
    """All sections in the order of display, with their names in the progress display."""
    return {
        "stages of a turn": stages,
        "reference workload": reference_workload,
        "process start": fresh_start,
        "threads": thread_counts,
        "context": context,
        "lengths": lengths,
        "modalities": modalities,
        "batches of conversations": batches,
        "memory": memory,
        "energy": energy,
    }.items()
