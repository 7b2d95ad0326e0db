"""What `hbaf-edge benchmark` measures: a section of the report from each function, light scenes only.

Sides of a comparison take turns, so that a busy machine slows all alike; the turn itself is that of turns.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from hbaf_edge.bench.compare import REFERENCE
from hbaf_edge.bench.document import Cell, Section, measures_of, percentile_rows
from hbaf_edge.bench.energy import measured, readers
from hbaf_edge.bench.series import Series, in_turn, ratio, rounded, timed
from hbaf_edge.bench.turns import RATE, TEXT, Bench, fresh, past_turns, speech, total, turn_of
from hbaf_edge.bundle import load_bundle
from hbaf_edge.inputs import TurnInput
from hbaf_edge.mel import log_mel

LENGTHS = (0.5, 1.0, 3.0, 5.0, 10.0, 20.0)
TOGETHER = (1, 2, 4, 8, 16, 32, 64)
PERCENTILES = ("p50", "p90", "p99", "max", "samples")


def fresh_start(bench: Bench) -> Section:
    """Import, load and first turn, each in a fresh interpreter."""
    times = []
    for _ in range(6 if bench.quick else 11):
        times.append(fresh(bench)[:3])
        bench.step()
    names = ("import hbaf_edge", "load (hashes checked, sessions made)", "first turn, without warmup()")
    series = {name: Series.of(values) for name, values in zip(names, zip(*times))}
    return Section("start", "From nothing to the first result, ms", ("what", *PERCENTILES), percentile_rows(series),
                   "Fresh interpreters; files are in the system's cache.", measures_of(series))  # fmt: skip


def stages(bench: Bench) -> Section:
    """Where a turn's time goes."""
    runtime = bench.runtime()
    turn, times = turn_of(runtime), dict[str, list[float]]()
    audio, audio_44k = speech(3.0), np.resize(speech(3.0), 3 * 44_100)
    parts = {
        "mel": lambda: log_mel(audio),
        "resample": lambda: soxr.resample(audio_44k, 44_100, RATE),
        REFERENCE: reference_arithmetic(),
    }
    turn()
    for _ in range(bench.repeats):
        for stage, ms in turn().items():
            times.setdefault(stage, []).append(ms)
        for name, part in parts.items():
            times.setdefault(name, []).append(timed(part))
        bench.step()
    bench.reference_workload = times[REFERENCE]
    series = {title: Series.of(times[name]) for name, title in STAGES.items()}
    speed = 3000 / series["a turn"].p50
    stacked = [STAGES[name] for name in ("features", "audio", "text", "utterance", "dialogue")]
    saved = sum(series[title].p50 for title in stacked) - series["a turn"].p50
    is_parallel = saved > series[STAGES["text"]].p50 / 2  # the text encoder ran beside the audio encoder
    overlap = (
        " The text encoder runs beside the audio encoder, so the whole is less than the sum." if is_parallel else ""
    )
    figure = {"kind": "stack", "title": "A turn of 3 s and twelve words, ms",
              "parts": {title: rounded(series[title].p50) for title in stacked},
              "beside": [STAGES["text"]] if is_parallel else []}  # fmt: skip
    text = (
        f"3 s of speech and twelve words: {speed:.0f} times as fast as they are spoken. The turn's features are the "
        f"log-mel spectrum and tokens; audio at 16 kHz is not resampled.{overlap}"
    )
    return Section("stages", "A turn, stage by stage, ms", ("stage", *PERCENTILES), percentile_rows(series), text,
                   measures_of(series), figure=figure)  # fmt: skip


STAGES = {
    "resample": "(before it: resample from 44.1 kHz)", "features": "features", "mel": "(of these: log-mel)",
    "audio": "encoder: audio", "text": "encoder: text", "utterance": "fusion: utterance scope",
    "dialogue": "fusion: dialogue scope and head", "total": "a turn",
}  # fmt: skip


def reference_arithmetic() -> Callable[[], object]:
    """A fixed piece of work on one thread, without anything of ours: how fast the machine was during this run."""
    x = np.random.default_rng(0).standard_normal(1 << 15)
    return lambda: np.fft.rfft(x)


def reference_workload(bench: Bench) -> Section:
    """By this `hbaf-edge compare` knows the machine's own part in a change; measured between the stages."""
    series = {REFERENCE: Series.of(bench.reference_workload)}
    return Section(REFERENCE, "A fixed piece of arithmetic, ms", ("what", *PERCENTILES), percentile_rows(series),
                   "A Fourier transform of 32,768 numbers, for comparing runs.", measures_of(series))  # fmt: skip


def varied(bench: Bench, name: str, title: str, column: str, sides: dict[str, Callable[[], float]], repeats: int,
           text: str = "", figure: dict[str, Any] | None = None) -> Section:  # fmt: skip
    """Turns of several kinds, taking turns."""
    series = {side: Series.of(values) for side, values in in_turn(repeats, sides, bench.step).items()}
    if figure is not None:
        lines = {q: [rounded(getattr(s, q)) for s in series.values()] for q in ("p50", "p90")}
        figure = {**figure, "lines": {q: y for q, y in lines.items() if None not in y}, "y_title": "ms"}
    return Section(
        name, title, (column, *PERCENTILES), percentile_rows(series), text, measures_of(series), figure=figure
    )


def thread_counts(bench: Bench) -> Section:
    """The same turn with one thread, two, and so on to all cores."""
    most = min(os.cpu_count() or 1, 16)
    counts = sorted({1, bench.threads, most, *(2**i for i in range(1, 5) if 2**i < most)})
    sides = {f"{n}": total(turn_of(bench.runtime(n))) for n in counts}
    return varied(bench, "threads", "A turn by threads, ms", "threads", sides, bench.some(0.25, 29))


def context(bench: Bench) -> Section:
    """The same turn after few turns and after many: what state costs."""
    runtime = bench.runtime()
    window = int(runtime.manifest["window"])
    depths = sorted({0, window // 4, window // 2, window, 3 * window})
    sides = {f"{n}": total(turn_of(runtime, past=n)) for n in depths}
    return varied(bench, "context", "A turn by earlier turns, ms", "earlier turns", sides, bench.some(0.25, 29),
                  f"The window holds {window}: what a turn costs does not grow with the conversation.",
                  {"kind": "lines", "x": depths, "x_title": "earlier turns",
                   "title": "A turn by earlier turns"})  # fmt: skip


def lengths(bench: Bench) -> Section:
    """By seconds of speech."""
    sides = {f"{s:g}": total(turn_of(bench.runtime(), seconds=s)) for s in LENGTHS}
    section = varied(bench, "lengths", "A turn by its length, ms", "seconds of speech", sides, bench.some(0.12),
                   "Twelve words with each. Real-time factor: milliseconds of work for a millisecond of speech.",
                   {"kind": "lines", "x": list(LENGTHS), "x_title": "seconds of speech",
                    "title": "A turn by its length"})  # fmt: skip
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


def precisions(bench: Bench) -> Section | None:
    """Bundles beside each other; None where there is one."""
    if len(bench.bundles) < 2:
        return None
    named = {_name(i, path): i for i, path in enumerate(bench.bundles)}
    sides = {name: total(turn_of(bench.runtime(bundle=i))) for name, i in named.items()}
    times = in_turn(bench.some(0.5), sides, bench.step)
    first = next(iter(named))
    rows, measures = [], dict[str, Mapping[str, Any]]()
    for name, i in named.items():
        loaded, s = load_bundle(bench.bundles[i]), Series.of(times[name])
        times_first = ratio(times[name], times[first])
        rows.append((name, loaded.manifest.get("precision"), rounded(loaded.megabytes),
                     *percentile_rows({name: s})[0][1:], rounded(times_first["p50"])))  # fmt: skip
        measures[name] = s.to_json()
    head = ("bundle", "precision", "MB", *PERCENTILES, f"÷ {first}")
    return Section("bundles", "Bundles beside each other, ms", head, rows, "", measures)  # fmt: skip


def _name(i: int, path: Path | None) -> str:
    return "default" if path is None else f"{path.parent.name}/{path.name}" if i else path.name


def together(bench: Bench) -> Section:
    """Several conversations a call."""
    runtime = bench.runtime()
    sizes = [n for n in TOGETHER if not bench.quick or n in (1, 8, 64)]
    audio, repeats = speech(3.0), 6 if bench.quick else bench.some(0.12)
    pasts = [past_turns(runtime, 10) for _ in range(max(sizes))]

    def call(n: int) -> float:
        turns = [
            TurnInput(audio=audio, sample_rate=RATE, text=TEXT, speaker="a", conversation=chat.fork())
            for chat in pasts[:n]
        ]
        return timed(lambda: runtime.predict_batch(turns))

    times = in_turn(repeats, {f"{n}": partial(call, n) for n in sizes}, bench.step)
    rates = {name: Series.of([int(name) * 1e3 / ms for ms in values]) for name, values in times.items()}
    series = {name: Series.of(values) for name, values in times.items()}
    rows = [(name, rounded(rates[name].p50), rounded(s.p50), rounded(s.most), s.n) for name, s in series.items()]
    return Section(
        "together", "Conversations at once", ("conversations a call", "turns/s", "p50, ms", "max, ms", "samples"), rows,
        "predict_batch: every conversation's turn comes back when the last is done.",
        {name: {**rates[name].to_json(), "unsteady": s.unsteady()} for name, s in series.items()}, "turns/s", "higher",
        {"kind": "lines", "x": sizes, "x_title": "conversations a call", "y_title": "turns/s", "log": True,
         "lines": {"turns a second": [rounded(r.p50) for r in rates.values()]}, "title": "Conversations at once"},
    )  # fmt: skip


def memory(bench: Bench) -> Section:
    """Resident memory, state of a conversation, processor time of a turn."""
    runtime = bench.runtime()
    turn, n = turn_of(runtime), bench.some(0.25)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(n):
        turn()
        bench.step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    chat, process = past_turns(runtime, 2), fresh(bench)
    size = load_bundle(bench.bundles[0]).megabytes
    rows: list[Sequence[Cell]] = [
        ("resident after a first turn of 3 s", process.resident_mb, "MB"),
        ("peak until then", process.peak_mb, "MB"),
        ("bundle", rounded(size), "MB"), ("state of a conversation", rounded(chat.nbytes / 1024), "KiB"),
        ("processor time of a turn", rounded(cpu / n * 1e3), "CPU ms"),
        ("cores busy meanwhile", rounded(cpu / wall), "cores"), ("GPU memory", _gpu_mb(), "MB"),
    ]  # fmt: skip
    return Section("memory", "Memory and processor time", ("what", "value", "unit"), rows,
                   "The state's size is the same after two turns and after two million.")  # fmt: skip


def _gpu_mb() -> float | None:
    """Of this process; None without a card, or without nvidia-ml-py."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
        return float(round(next(p.usedGpuMemory for p in running if p.pid == os.getpid()) / 1e6, 1))
    except Exception:  # its errors are its own
        return None


def energy(bench: Bench) -> Section:
    """Millijoules of a turn, where the machine tells."""
    available, refused = readers()
    turn, turns = turn_of(bench.runtime()), bench.some(1.0)
    rows: list[Sequence[Cell]] = []
    for reader in available:
        e = measured(reader, turn, turns, 2.0 if bench.quick else 10.0)
        turn_mj = (
            f"{rounded(e.millijoules)} ± {rounded(e.error)}" if e.millijoules > e.error else f"below {e.error:.1f}"
        )
        rows.append((e.source, rounded(e.idle_watts), rounded(e.watts), turn_mj))
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


def scenes() -> Iterable[tuple[str, Callable[[Bench], Section | None]]]:
    """All, in the order to be shown, with what is said meanwhile."""
    yield "stages of a turn", stages
    yield "a fixed piece of arithmetic", reference_workload
    yield "fresh starts", fresh_start
    yield "bundles", precisions
    yield "threads", thread_counts
    yield "context", context
    yield "lengths", lengths
    yield "modalities", modalities
    yield "conversations at once", together
    yield "memory", memory
    yield "energy", energy
