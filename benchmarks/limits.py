"""How near is a turn to what this machine can do, and what should it take on another one?

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.limits --save

Operations are counted (benchmarks/counted.py), the rates that a large product reaches here are measured between turns,
and their quotient is this machine's own limit. For other hardware the makers' figures stand in the rates' place: those
rows are computed, not measured, and the ratio of computed to measured on this machine is the check on the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import peer_models
from benchmarks.counted import Count, count, multiplier
from benchmarks.report import Repeats, ReportFolder, Save, Threads, conclude, run
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import Series, by_stage, in_turn, rounded, single, timed
from hbaf_edge.bench.turns import Bench, turn_of
from hbaf_edge.bundle import load_bundle

STAGES = {"audio": "encoder: audio", "text": "encoder: text", "utterance": "fusion: utterance scope",
          "dialogue": "fusion: dialogue scope and head"}  # fmt: skip
GOAL = 0.5
INT8, FLOAT32 = "INT8", "float32"


class Board(NamedTuple):
    """A maker's figures.

    Attributes:
        integer: dense INT8 operations a second, in units of 10¹².
        floating: those of float32 on a CPU, of float16 on a GPU.
        bandwidth: of memory, GB/s.
        launch: what an operator costs besides, µs: counted here on a CPU, a kernel of a replayed graph on a GPU.
        note: what was reckoned with.
    """

    integer: float
    floating: float
    bandwidth: float
    launch: float
    note: str


BOARDS = {
    "Raspberry Pi 5": Board(0.61, 0.154, 17.1, 10.0, "four Cortex-A76 at 2.4 GHz, SDOT, CPU"),
    "Jetson Orin Nano 8 GB": Board(20, 10, 68, 2.5, "GPU, INT8 dense is half of the 40 TOPS"),
    "Jetson AGX Orin 64 GB": Board(85, 42, 204.8, 2.5, "GPU, INT8 dense is half of its 170 TOPS"),
    "Jetson Thor T5000": Board(517, 258, 273, 2.0, "GPU, taken as a quarter of 2,070 sparse FP4 TFLOPS"),
    "RTX 4060": Board(121, 60, 272, 1.5, "GPU, INT8 dense is half of the 242 TOPS"),
    "H200": Board(1979, 989, 4800, 1.5, "GPU, dense"),
}
REACHED = {"cpu": 0.5, "gpu": 0.3}  # share of a maker's peak that products of a turn's sizes reach


def limit(counts: Mapping[str, Count], integer: float, floating: float) -> dict[str, float]:
    """Milliseconds of each stage were there nothing but its products, at these operations a second."""
    return {name: (c.integer / integer + c.floating / floating) * 1e3 for name, c in counts.items()}


def computed(counts: Mapping[str, Count], board: Board, reached: float) -> float:
    """Milliseconds of a turn: each stage waits for its products or its weights, and every operator costs a launch.

    >>> round(computed({"a": Count(10**9, 0, 10**6, 100)}, Board(1, 1, 10, 2, ""), 0.5), 3)
    2.2
    """
    total = 0.0
    for c in counts.values():
        products = (c.integer / board.integer + c.floating / board.floating) / 1e12 / reached
        total += max(products, c.weights / board.bandwidth / 1e9) + c.nodes * board.launch / 1e6
    return total * 1e3


class Measured(NamedTuple):
    """What a run has measured.

    Attributes:
        integer, floating: operations a second of large products.
        copied: GB/s of a large copy, bytes read and written counted.
        counts, times: of a turn's stages, by bundle.
        threads: of each operator.
    """

    integer: float
    floating: float
    copied: float
    counts: dict[str, dict[str, Count]]
    times: dict[str, dict[str, Series]]
    threads: int


def sections(bench: Bench, rounds: int) -> list[Section]:
    """What limits a turn here, and what other machines should give."""
    measured = measure({INT8: None, FLOAT32: peer_models.float32_bundle()}, bench.threads, rounds, bench.step)
    return [here(measured), others(measured)]


def measure(
    bundles: Mapping[str, Path | None], threads: int, rounds: int, step: Callable[[], object] = lambda: None
) -> Measured:
    """Turns, products and copies, interleaved."""
    bench = Bench([*bundles.values()], threads, "cpu", rounds)
    sides = {n: partial(_second, turn_of(bench.runtime(bundle=i), past=32)) for i, n in enumerate(bundles)}
    rates = {"integer": multiplier(True, threads), "floating": multiplier(False, threads), "copied": copier()}
    results: dict[str, list[Any]] = in_turn(rounds, {**sides, **rates}, step)
    medians = {name: float(np.median(results[name])) for name in rates}
    return Measured(
        **medians, counts={name: count(load_bundle(path)) for name, path in bundles.items()}, threads=threads,
        times={name: by_stage(results[name]) for name in sides},
    )  # fmt: skip


def _second(turn: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The second of two turns: the sides between have emptied the caches."""
    turn()
    return turn()


def copier(size: int = 1 << 26) -> Callable[[], float]:
    """Measures memory: returns GB/s of one copy far larger than any cache."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return lambda: 2 * size / timed(lambda: np.copyto(target, source)) / 1e6


def here(measured: Measured) -> Section:
    """The default model against what this machine reaches."""
    counts, times = measured.counts[INT8], measured.times[INT8]
    least = limit(counts, measured.integer, measured.floating)
    rows: list[list[Cell]] = [
        [STAGES[n], rounded(c.integer / 1e6), rounded(c.floating / 1e6), rounded(c.weights / 1e6), c.nodes,
         rounded(least[n]), rounded(times[n].p50), rounded(least[n] / times[n].p50)] for n, c in counts.items()
    ]  # fmt: skip
    whole, share = sum(least.values()), sum(least.values()) / times["total"].p50
    rows.append(["features (a Fourier transform, not counted)", *[None] * 5, rounded(times["features"].p50), None])
    sums = [rounded(sum(getattr(c, field) for c in counts.values()) / 1e6) for field in Count._fields[:3]]
    nodes = sum(c.nodes for c in counts.values())
    rows.append(["a turn", *sums, nodes, rounded(whole), rounded(times["total"].p50), rounded(share)])
    text = (
        f"Large products reach {measured.integer / 1e9:,.0f} billion INT8 and {measured.floating / 1e9:,.0f} billion "
        f"float32 operations a second here ({measured.threads} threads, measured between the turns). Goal: "
        f"{100 * GOAL:.0f} % of that limit, reached: {'yes' if share >= GOAL else 'NO'}. Weights are those that every "
        "turn reads."
    )
    head = ("stage", "INT8, M ops", "float32, M ops", "weights, MB", "operators", "limit, ms", "measured, ms", "share")
    measures: dict[str, Mapping[str, Any]] = {
        "share of the machine's limit": {**single(share), "unsteady": times["total"].unsteady()}
    }
    return Section("limit", "A turn against the machine's own limit", head, rows, text, measures, "", "higher")


def others(measured: Measured) -> Section:
    """Computed for other hardware; this machine by the same method beside what was measured.

    What an operator costs is fitted on the dialogue scope of the INT8 model, which multiplies next to nothing; so the
    check leaves that scope out, and takes the float32 model besides, which was fitted to nothing.
    """
    each = measured.times[INT8]["dialogue"].p50 * 1e3 / measured.counts[INT8]["dialogue"].nodes
    note = f"rates measured here, {each:.1f} µs an operator"
    mine = Board(measured.integer / 1e12, measured.floating / 1e12, measured.copied, each, note)
    rows: list[list[Cell]] = []
    checks = {}
    for name, counts in measured.counts.items():
        checked = {stage: c for stage, c in counts.items() if stage != "dialogue"}
        guess, spent = computed(checked, mine, 1.0), sum(measured.times[name][stage].p50 for stage in checked)
        checks[name] = guess / spent
        rows.append([f"this machine, {name}, without the dialogue scope", rounded(mine.integer), rounded(mine.floating),
                     rounded(mine.bandwidth), rounded(guess), rounded(spent), mine.note])  # fmt: skip
    for name, board in BOARDS.items():
        reached = REACHED["cpu" if board.note.endswith("CPU") else "gpu"]
        rows.append([f"{name} (computed)", board.integer, board.floating, board.bandwidth,
                     rounded(computed(measured.counts[INT8], board, reached)), None, board.note])  # fmt: skip
    agreement = ", ".join(f"{value:.2f} ({name})" for name, value in checks.items())
    text = (
        "Computed from counted operations, bytes and operators, without features and copies, with the makers' figures: "
        f"nobody measured these. Computed ÷ measured on this machine: {agreement}. That checks the sum, not what is "
        f"assumed of the boards: a CPU's products reach {100 * REACHED['cpu']:.0f} % of its peak, a GPU's "
        f"{100 * REACHED['gpu']:.0f} %, an operator costs 1.5 to 10 µs, and a GPU launches every one of them, of which "
        "TensorRT fuses many."
    )
    measures = {f"computed ÷ measured, {name}": single(value) for name, value in checks.items()}
    head = ("machine", "INT8, T ops/s", "float, T ops/s", "GB/s", "computed, ms", "measured, ms", "reckoned with")
    return Section("computed", "A turn on other hardware, computed", head, rows, text, measures, "", "")


def main(threads: Threads = 2, repeats: Repeats = 101, report: ReportFolder = None, save: Save = False) -> int:
    bench = Bench([None], threads, "cpu", repeats)
    new = Report("hbaf-edge against the machine's limit", {"threads": threads, "repeats": repeats})
    work = [("the machine's limit", partial(sections, bench, repeats))]
    return conclude("limits", new, work, save, report, bench)


if __name__ == "__main__":
    run(main, __doc__)
