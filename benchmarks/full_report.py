"""Write the full report on one page: peers, stages, context, memory, energy, the machine's limit, accuracy.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --report runs/report   # make report; about 15 minutes
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --quick --report DIR   # fewer samples, no LoadGen; about 5
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --save                 # to benchmarks/results/whole

Accuracy needs the corpora (HBAF_DATA) and is measured by benchmarks/tradeoff.py; this report shows its last committed
result with its date. The first run also builds the peers' models. An interrupted run reports the finished sections.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import machine_limit, peers
from benchmarks.report import RESULTS, AsJson, ReportFolder, Threads, measure_and_report, run
from hbaf_edge.bench.command import SectionResult, new_report
from hbaf_edge.bench.document import Section, load
from hbaf_edge.bench.sections import all_sections
from hbaf_edge.bench.turns import Bench
from hbaf_edge.errors import InputError

RECORDED = RESULTS / "tradeoff" / "report.json"


def recorded() -> list[Section]:
    """Load the sections of the last accuracy run, and add when and where it was measured.

    Raises:
        InputError: there is no recorded run.
    """
    report = load(RECORDED)
    for section in report.sections:
        section.text += f" Recorded {report.created[:10]} on {report.machine['cpu']}, commit {report.commit}."
    return report.sections


def under_loadgen(threads: int, folder: Path) -> list[Section]:
    """Run LoadGen in its own process, because interrupting LoadGen ends the process that runs it."""
    command = [sys.executable, "-m", "benchmarks.loadgen", "--threads", str(threads), "--report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load(folder).sections


def report_sections(bench: Bench, folder: Path) -> Iterator[tuple[str, Callable[[], SectionResult]]]:
    """Yield name and function of each section, in the order of the report."""
    yield "peers", partial(peers.section, bench, bench.share_of_repeats(0.15, 11))
    for name, section in all_sections():
        yield name, partial(section, bench)
    yield "limits", partial(machine_limit.section, bench, bench.share_of_repeats(0.3))
    if not bench.quick:
        yield "LoadGen", partial(under_loadgen, bench.threads, folder / "loadgen")
    yield "accuracy against cost", recorded


def main(
    threads: Threads = 2,
    quick: Annotated[bool, typer.Option("--quick", help="fewer samples, no LoadGen")] = False,
    only: Annotated[list[str] | None, typer.Option(help="measure only this section; can be repeated")] = None,
    report: ReportFolder = None,
    save: Annotated[bool, typer.Option("--save", help="write to benchmarks/results/whole")] = False,
    as_json: AsJson = False,
) -> int:
    folder = report or (RESULTS / "whole" if save else None)
    if folder is None:
        raise InputError("give --report DIR, or --save")
    bench = Bench([None], threads, "cpu", 101 if quick else 301, quick)
    sections = [(name, measure) for name, measure in report_sections(bench, folder) if not only or name in only]
    return measure_and_report("whole", new_report(bench), sections, folder=folder, bench=bench, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
