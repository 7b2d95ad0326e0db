"""Write the full report on one page: peers, stages, context, memory, energy, the machine's limit, accuracy.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --report runs/report   # make report; about 5 minutes
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --quick --report DIR   # fewer samples; about 2
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.full_report --save                 # to benchmarks/results/whole

Accuracy needs the corpora (HBAF_DATA) and is measured by benchmarks/tradeoff.py; this report shows its last committed
result with its date, if it is of the same bundle. The first run also builds the peers' models. An interrupted run
reports the finished sections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated

import typer

from benchmarks import machine_limit, peers
from benchmarks.report import RESULTS, AsJson, ReportFolder, Threads, measure_and_report, run
from hbaf_edge.bench.command import SectionResult, new_report
from hbaf_edge.bench.document import Section, load
from hbaf_edge.bench.sections import all_sections
from hbaf_edge.bench.turns import Bench
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import InputError

RECORDED = RESULTS / "tradeoff" / "report.json"


def recorded(key: str) -> list[Section]:
    """Load the sections of the last accuracy run, and add when and where it was measured.

    Args:
        key: `Bundle.model_key` of the bundle that this report measures.

    Raises:
        InputError: there is no recorded run, or it is of another bundle.
    """
    report = load(RECORDED)
    if report.bundle != key:
        raise InputError(f"{RECORDED.parent.name} is of bundle {report.bundle[:12]}, this report of {key[:12]}; "
                         "run: python -m benchmarks.tradeoff --save")  # fmt: skip
    for section in report.sections:
        section.text += f" Recorded {report.created[:10]} on {report.machine['cpu']}, commit {report.commit}."
    return report.sections


def report_sections(bench: Bench) -> Iterator[tuple[str, Callable[[], SectionResult]]]:
    """Yield name and function of each section, in the order of the report."""
    yield "peers", partial(peers.sections, bench, bench.share_of_repeats(0.15, 11))
    for name, section in all_sections():
        yield name, partial(section, bench)
    yield "limits", partial(machine_limit.section, bench, bench.share_of_repeats(0.3))
    yield "accuracy against cost", partial(recorded, load_bundle(bench.bundles[0]).model_key)


def main(
    threads: Threads = 2,
    quick: Annotated[bool, typer.Option("--quick", help="fewer samples")] = False,
    only: Annotated[list[str] | None, typer.Option(help="measure only this section; can be repeated")] = None,
    report: ReportFolder = None,
    save: Annotated[bool, typer.Option("--save", help="write to benchmarks/results/whole")] = False,
    as_json: AsJson = False,
) -> int:
    folder = report or (RESULTS / "whole" if save else None)
    if folder is None:
        raise InputError("give --report DIR, or --save")
    bench = Bench([None], threads, "cpu", 101 if quick else 301, quick)
    sections = [(name, measure) for name, measure in report_sections(bench) if not only or name in only]
    return measure_and_report("whole", new_report(bench), sections, folder=folder, bench=bench, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
