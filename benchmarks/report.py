"""Options that all benchmarks share, and the end of a run: tables, JSON, a report page and saved results.

A benchmark is a list of sections (hbaf_edge/bench). It prints one table for each. `--json` prints one line of JSON
instead, `--report DIR` also writes a page with pictures, and `--save` stores the JSON of a complete run.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hbaf_edge.bench import command, page
from hbaf_edge.bench.document import Report
from hbaf_edge.bench.turns import Bench
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import HBAFError

RESULTS = Path(__file__).parent / "results"
# Results that do not depend on a bundle.
WITHOUT_BUNDLE = ("formats", "kernels", "ablation-features")
EXIT_UNUSABLE = 2  # exit code if nothing could be measured; `hbaf-edge` uses the same code

Threads = Annotated[int, typer.Option(min=1, help="CPU threads per operator")]
Repeats = Annotated[int, typer.Option(min=1, help="samples of each candidate")]
Save = Annotated[bool, typer.Option("--save", help="write benchmarks/results/NAME.json")]
AsJson = Annotated[bool, typer.Option("--json", help="print one line of JSON instead of tables")]
ReportFolder = Annotated[Path | None, typer.Option("--report", help="folder for a page, pictures, Markdown and JSON")]


def run(main: Callable[..., int | None], description: str | None) -> None:
    """Run a benchmark's command line.

    Args:
        main: the command; its signature defines the options and it returns the exit code.
        description: help text. Its line breaks are preserved.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    paragraphs = (description or "").strip().split("\n\n")

    @app.command(help="\n\n".join(f"\b\n{paragraph}" for paragraph in paragraphs))
    @functools.wraps(main)
    def with_one_line_errors(*args: Any, **kwargs: Any) -> None:
        try:
            code = main(*args, **kwargs)
        except HBAFError as error:
            print(f"error: {error}", file=sys.stderr)
            code = EXIT_UNUSABLE
        raise typer.Exit(code or 0)

    app()


def measure_and_report(
    name: str, report: Report, sections: Iterable[tuple[str, Callable[[], command.SectionResult]]],
    save: bool = False, folder: Path | None = None, bench: Bench | None = None, as_json: bool = False,
) -> int:  # fmt: skip
    """Measure the sections, print and write them, and return the exit code.

    Args:
        name: file name, without suffix, in benchmarks/results.
        report: an empty report, which is filled.
        sections: name and function of each section.
        save: write that file if the run is complete.
        folder: where the report page is written; None for no page.
        bench: moves the progress bar with each of its steps.
        as_json: print one line of JSON instead of tables.
    """
    if folder is not None:
        page.check_folder(folder)
    if name not in WITHOUT_BUNDLE:
        report.bundle = load_bundle(bench.bundles[0] if bench else None).model_key
    console = Console(quiet=as_json)
    command.measure_sections(report, sections, bench, console, folder)
    code = command.finish(report, folder, console)
    if save and not code:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if as_json:
        print(json.dumps(report.to_json()))
    return code


def verdict(value: float, sign: str, goal: float | None) -> str | None:
    """Return the goal and whether the value meets it, or None without a goal.

    >>> verdict(0.9, "≤", 1.05), verdict(15.0, "≥", 20), verdict(1.0, "≥", None)
    ('≤ 1.05: yes', '≥ 20: NO', None)
    """
    if goal is None:
        return None
    is_met = value <= goal if sign == "≤" else value >= goal
    return f"{sign} {goal:g}: {'yes' if is_met else 'NO'}"
