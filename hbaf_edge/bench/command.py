"""The commands `benchmark`, `compare` and `advise` of `hbaf-edge`."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hbaf_edge.backends.settings import default_threads
from hbaf_edge.bench import page
from hbaf_edge.bench.advise import (
    MODES,
    Inputs,
    Limits,
    load_choices,
    nearest,
    parse_quantity,
    recipe,
    with_local_latency,
)
from hbaf_edge.bench.advise import advise as rank_choices
from hbaf_edge.bench.compare import changes_section, other_differences
from hbaf_edge.bench.document import Report, Section, load, print_section
from hbaf_edge.bench.sections import all_sections
from hbaf_edge.bench.turns import Bench
from hbaf_edge.bundle import load_bundle
from hbaf_edge.card import NOTICE
from hbaf_edge.display import show_line
from hbaf_edge.errors import InputError

log = logging.getLogger("hbaf_edge")
SectionResult = Section | list[Section] | None
MIN_REPEATS = 6  # samples of a turn
INTERRUPTED = 130  # a shell's exit code for an interrupted program


def benchmark(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="folder or .hbaf file; default: built-in")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads; default: two")] = None,
    provider: Annotated[str, typer.Option(help="where the model runs, as for HBAFRuntime")] = "cpu",
    repeats: Annotated[int | None, typer.Option(help="samples of a turn; default: 301, with --quick 101")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="finish in under a minute")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="folder for a report: HTML page, PNG, Markdown and JSON")
    ] = None,
) -> None:
    """Measure what a turn costs on this machine: latency by stage, threads, context and length; memory and energy."""
    repeats = (101 if quick else 301) if repeats is None else repeats
    if repeats < MIN_REPEATS:
        raise InputError(f"--repeats {repeats}; {MIN_REPEATS} samples or more are needed, 29 for a p90, 299 for a p99")
    if report is not None:
        page.check_folder(report)
    console, bench = Console(), Bench([bundle], threads or default_threads(), provider, repeats, quick)
    result = new_report(bench)
    sections = ((name, partial(section, bench)) for name, section in all_sections())
    measure_sections(result, sections, bench, console, report)
    raise typer.Exit(finish(result, report, console))


def new_report(bench: Bench) -> Report:
    """Create an empty report with the settings of the run."""
    bundle = load_bundle(bench.bundles[0])
    manifest = bundle.manifest
    settings = {
        "bundle": manifest.get("name"), "precision": manifest.get("precision"), "provider": bench.runtime().provider,
        "threads": bench.threads, "repeats": bench.repeats, "quick": bench.quick,
    }  # fmt: skip
    return Report(f"hbaf-edge benchmark: {settings['bundle']}", settings, bundle=bundle.model_key)


def compare(
    before: Annotated[Path, typer.Argument(help="report.json, or its folder")],
    after: Annotated[Path, typer.Argument(help="the other report")],
    everything: Annotated[bool, typer.Option("--all", help="also show measures that did not change")] = False,
) -> None:
    """Compare two reports and show the changes that are larger than the noise."""
    a, b, console = load(before), load(after), Console()
    print_section(console, changes_section(a, b, everything))
    for difference in other_differences(a, b):
        show_line(console, f"differs: {difference}", "yellow")
    for report, path in ((a, before), (b, after)):
        if report.stopped:
            show_line(console, f"{path} is incomplete: {report.stopped}", "red")


def advise(
    inputs: Annotated[Inputs, typer.Option(help="what your turns have: both, text or audio")] = "both",
    latency: Annotated[str | None, typer.Option(help="limit for 90 % of turns, such as 30ms")] = None,
    memory: Annotated[str | None, typer.Option(help="limit for peak memory, such as 250MB")] = None,
) -> None:
    """Recommend bundle and settings within limits on this machine: the most accurate, or without scores the fastest."""
    limits = Limits(parse_quantity(latency, "latency"), parse_quantity(memory, "memory"))
    stored, console = load_choices(), Console()
    choices = with_local_latency([c for c in stored["choices"] if c["given"] == MODES[inputs]])
    section, best = rank_choices(limits, choices, stored)
    print_section(console, section)
    if best is None:
        show_line(console, f"no settings fit the limits; {nearest(limits, choices)}", "red")
        raise typer.Exit(1)
    show_line(console, str(best["name"]), "bold")
    console.print(recipe(best), markup=False)
    console.print(NOTICE, style="dim")


def measure_sections(
    report: Report,
    sections: Iterable[tuple[str, Callable[[], SectionResult]]],
    bench: Bench | None,
    console: Console,
    folder: Path | None,
) -> None:
    """Measure section by section, and write the report after each one.

    It stops after Ctrl-C, SIGTERM or SIGHUP and says so in the report. If a section fails, the report names it and the
    next one starts.

    Args:
        report: an empty report, which is filled.
        sections: name and function of each section.
        bench: its `step` moves the progress bar.
        console: for the tables.
        folder: folder of the report; None to print it only.
    """
    columns = TextColumn("{task.description}"), BarColumn(pulse_style="cyan"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress, _signals_interrupt():
        task = progress.add_task("", total=None)
        if bench is not None:
            bench.step = lambda: progress.update(task, advance=1)
        for name, measure in sections:
            progress.update(task, description=f"measuring {name}")
            try:
                result = measure()
                for section in [result] if isinstance(result, Section) else result or []:
                    report.sections.append(section)
                    report.warnings += unsteady_warnings(section)
                    print_section(console, section)
            except KeyboardInterrupt:
                report.stopped = f"interrupted while {name} was measured"
            except (Exception, SystemExit) as error:  # any error: the other sections are still useful
                log.debug("%s", name, exc_info=True)
                report.warnings.append(f"{name} was not measured: {type(error).__name__}: {error}")
                report.failed = True
            if folder is not None:
                page.write_json(report, folder)
            if report.stopped:
                return


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C."""
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def unsteady_warnings(section: Section) -> list[str]:
    """Warnings about measures whose samples vary or drift."""
    reasons = {name: measure.get("unsteady") for name, measure in section.measures.items()}
    return [f"unsteady: {section.title}: {name} {reason}" for name, reason in reasons.items() if reason]


def finish(report: Report, folder: Path | None, console: Console) -> int:
    """Write the files, print warnings, and return the exit code: 0, 1 if a section failed, 130 if interrupted."""
    for warning in report.warnings:
        show_line(console, warning, "yellow")
    if folder is not None:
        show_line(console, f"report: {page.write(report, folder)}")
    if report.stopped:
        show_line(console, f"incomplete: {report.stopped}", "red")
        return INTERRUPTED
    return int(report.failed)
