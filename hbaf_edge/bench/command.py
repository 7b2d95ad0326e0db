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
from hbaf_edge.bench.advise import Limits, measured_here, quantity, recipe, recorded
from hbaf_edge.bench.advise import advise as advised
from hbaf_edge.bench.compare import as_section, differing
from hbaf_edge.bench.document import Report, Section, load, print_section
from hbaf_edge.bench.scenes import scenes
from hbaf_edge.bench.turns import Bench
from hbaf_edge.bundle import load_bundle
from hbaf_edge.card import NOTICE
from hbaf_edge.display import show_line
from hbaf_edge.errors import InputError

log = logging.getLogger("hbaf_edge")
Measured = Section | list[Section] | None
LEAST = 6  # samples of a turn
INTERRUPTED = 130  # a shell's exit code of a program that was interrupted


def benchmark(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="folder or .hbaf file; default: the built-in")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads; default two")] = None,
    provider: Annotated[str, typer.Option(help="where it runs, as HBAFRuntime's")] = "cpu",
    repeats: Annotated[int | None, typer.Option(help="samples of a turn; default 301, quick 101")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="under a minute")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="folder for an HTML page, PNG, Markdown and JSON")
    ] = None,
) -> None:
    """What a turn costs on this machine: latency by stage, threads, context, length; memory and energy."""
    repeats = (101 if quick else 301) if repeats is None else repeats
    if repeats < LEAST:
        raise InputError(f"--repeats {repeats}; {LEAST} samples or more are needed, 29 for a p90, 299 for a p99")
    if report is not None:
        page.check(report)
    console, bench = Console(), Bench([bundle], threads or default_threads(), provider, repeats, quick)
    new = new_report(bench)
    measure(new, ((name, partial(scene, bench)) for name, scene in scenes()), bench, console, report)
    raise typer.Exit(finish(new, report, console))


def new_report(bench: Bench) -> Report:
    """An empty report with the settings of a run."""
    manifest = load_bundle(bench.bundles[0]).manifest
    settings = {
        "bundle": manifest.get("name"), "precision": manifest.get("precision"), "provider": bench.runtime().provider,
        "threads": bench.threads, "repeats": bench.repeats, "quick": bench.quick,
    }  # fmt: skip
    return Report(f"hbaf-edge benchmark: {settings['bundle']}", settings)


def compare(
    before: Annotated[Path, typer.Argument(help="report.json, or the folder it lies in")],
    after: Annotated[Path, typer.Argument(help="another, measured later or elsewhere")],
    everything: Annotated[bool, typer.Option("--all", help="also what did not change")] = False,
) -> None:
    """What changed between two reports, by more than a machine's noise."""
    a, b, console = load(before), load(after), Console()
    print_section(console, as_section(a, b, everything))
    for difference in differing(a, b):
        show_line(console, f"differs: {difference}", "yellow")
    for report, path in ((a, before), (b, after)):
        if report.stopped:
            show_line(console, f"{path} is incomplete: {report.stopped}", "red")


def advise(
    latency: Annotated[str | None, typer.Option(help="of 90 % of turns, such as 30ms")] = None,
    memory: Annotated[str | None, typer.Option(help="at the peak, such as 250MB")] = None,
) -> None:
    """Which bundle and settings stay within limits on this machine, the most accurate first."""
    limits = Limits(quantity(latency, "latency"), quantity(memory, "memory"))
    stored, console = recorded(), Console()
    section, best = advised(limits, measured_here(stored["choices"]), stored)
    print_section(console, section)
    if best is None:
        console.print("nothing fits; the last column says what each lacks", style="red")
        raise typer.Exit(1)
    show_line(console, str(best["name"]), "bold")
    console.print(recipe(best), markup=False)
    console.print(NOTICE, style="dim")


def measure(
    report: Report,
    work: Iterable[tuple[str, Callable[[], Measured]]],
    bench: Bench | None,
    console: Console,
    folder: Path | None,
) -> None:
    """Section by section into the report, which is written after each: what comes later loses nothing.

    After Ctrl-C, SIGTERM or SIGHUP it stops and says so; a section that fails is named, and the next one begins.

    Args:
        report: to be filled.
        work: what is measured, and how.
        bench: whose steps move the progress bar.
        console: for tables and progress.
        folder: of the report; None where it is shown alone.
    """
    columns = TextColumn("{task.description}"), BarColumn(pulse_style="cyan"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress, _signals_interrupt():
        task = progress.add_task("", total=None)
        if bench is not None:
            bench.step = lambda: progress.update(task, advance=1)
        for name, each in work:
            progress.update(task, description=f"measuring {name}")
            try:
                result = each()
                for section in [result] if isinstance(result, Section) else result or []:
                    report.sections.append(section)
                    report.warnings += unsteady(section)
                    print_section(console, section)
            except KeyboardInterrupt:
                report.stopped = f"interrupted while {name} was measured"
            except (Exception, SystemExit) as error:  # whatever it is: the other sections are worth having
                log.debug("%s", name, exc_info=True)
                report.warnings.append(f"{name} was not measured: {type(error).__name__}: {error}")
                report.failed = True
            if folder is not None:
                page.write_json(report, folder)
            if report.stopped:
                return


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unsteady(section: Section) -> list[str]:
    """What speaks against its figures."""
    return [f"unsteady: {section.title}: {n} {why}" for n, m in section.measures.items() if (why := m.get("unsteady"))]


def finish(report: Report, folder: Path | None, console: Console) -> int:
    """Write the files, show warnings, and return the exit code: 0, 1 where a section failed, 130 interrupted."""
    for warning in report.warnings:
        show_line(console, warning, "yellow")
    if folder is not None:
        show_line(console, f"report: {page.write(report, folder)}")
    if report.stopped:
        show_line(console, f"incomplete: {report.stopped}", "red")
        return INTERRUPTED
    return int(report.failed)
