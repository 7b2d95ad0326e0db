"""The whole report on one page: peers, stages, context, memory, energy, the machine's limit, accuracy against cost.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --report runs/report      # make report; about fifteen minutes
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --quick --report DIR      # fewer samples, no LoadGen; about five
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --save                    # to benchmarks/results/whole

What needs the corpora (HBAF_DATA) is scored by benchmarks/tradeoff.py; its last committed result is shown, and said to
be of then. The first run makes the peers' models. Interrupted, it reports what it has.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import limits, peers
from benchmarks.report import RESULTS, ReportFolder, Threads, conclude, run
from hbaf_edge.bench.command import Measured, new_report
from hbaf_edge.bench.document import Section, load
from hbaf_edge.bench.scenes import scenes
from hbaf_edge.bench.turns import Bench
from hbaf_edge.errors import InputError

RECORDED = RESULTS / "tradeoff" / "report.json"


def recorded() -> list[Section]:
    """Sections of the last scored run, which say when and where it was.

    Raises:
        InputError: there is none.
    """
    report = load(RECORDED)
    for section in report.sections:
        section.text += f" Recorded {report.created[:10]} on {report.machine['cpu']}, commit {report.commit}."
    return report.sections


def under_loadgen(threads: int, folder: Path) -> list[Section]:
    """LoadGen in a process of its own: an interruption in the middle of a run would end this one."""
    command = [sys.executable, "-m", "benchmarks.loadgen", "--threads", str(threads), "--report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load(folder).sections


def work(bench: Bench, folder: Path) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """All sections in the order to be shown."""
    yield "peers", partial(peers.section, bench, bench.some(0.15, 11))
    for name, scene in scenes():
        yield name, partial(scene, bench)
    yield "limits", partial(limits.section, bench, bench.some(0.3))
    if not bench.quick:
        yield "LoadGen", partial(under_loadgen, bench.threads, folder / "loadgen")
    yield "accuracy against cost", recorded


def main(
    threads: Threads = 2,
    quick: Annotated[bool, typer.Option("--quick", help="fewer samples, no LoadGen")] = False,
    only: Annotated[list[str] | None, typer.Option(help="the section of this name alone; may be repeated")] = None,
    report: ReportFolder = None,
    save: Annotated[bool, typer.Option("--save", help="to benchmarks/results/whole")] = False,
) -> int:
    folder = report or (RESULTS / "whole" if save else None)
    if folder is None:
        raise InputError("give --report DIR, or --save")
    bench = Bench([None], threads, "cpu", 101 if quick else 301, quick)
    sections = [(name, measure) for name, measure in work(bench, folder) if not only or name in only]
    return conclude("whole", new_report(bench), sections, folder=folder, bench=bench)


if __name__ == "__main__":
    run(main, __doc__)
