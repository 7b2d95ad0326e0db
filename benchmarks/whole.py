"""The whole report on one page: peers, stages, context, memory, energy, the machine's limit, accuracy against cost.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --report runs/report      # make report; about fifteen minutes
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --quick --report DIR      # fewer samples, no LoadGen; about five
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.whole --save                    # to benchmarks/results/whole

What needs the corpora (HBAF_DATA) is scored by benchmarks/tradeoff.py; its last committed result is shown, and said to
be of then. The first run makes the peers' models. Interrupted, it reports what it has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import limits, peers
from benchmarks.report import RESULTS
from hbaf_edge.bench import page
from hbaf_edge.bench.command import Measured, begun, finish, measure
from hbaf_edge.bench.document import Section, load
from hbaf_edge.bench.scenes import scenes
from hbaf_edge.bench.turns import Bench

RECORDED = RESULTS / "tradeoff" / "report.json"


def recorded() -> list[Section]:
    """Sections of the last scored run, which say when and where it was.

    Raises:
        InputError: there is none.
    """
    found = load(RECORDED)
    for section in found.sections:
        section.text += f" Recorded {found.created[:10]} on {found.machine['cpu']}, commit {found.commit}."
    return found.sections


def under_loadgen(threads: int, folder: Path) -> list[Section]:
    """LoadGen in a process of its own: an interruption in the middle of a run would end this one."""
    command = [sys.executable, "-m", "benchmarks.loadgen", "--threads", str(threads), "--report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load(folder).sections


def work(bench: Bench, folder: Path) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """All sections in the order to be shown."""
    yield "peers", lambda: peers.section(bench.threads, bench.some(0.15, 11), bench.step)
    for name, scene in scenes():
        yield name, partial(scene, bench)
    yield "the machine's limit", lambda: limits.sections(bench.threads, bench.some(0.3), bench.step)
    if not bench.quick:
        yield "LoadGen", lambda: under_loadgen(bench.threads, folder / "loadgen")
    yield "accuracy against cost", recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    folder = given.report or (RESULTS / "whole" if given.save else None)
    if folder is None:
        parser.error("give --report DIR, or --save")
    page.check(folder)
    console, bench = Console(), Bench([None], given.threads, "cpu", 101 if given.quick else 301, given.quick)
    made = begun(bench)
    measure(made, work(bench, folder), bench, console, folder)
    finish(made, folder, console)


if __name__ == "__main__":
    main()
