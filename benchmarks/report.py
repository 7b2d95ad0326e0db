"""What every benchmark shares: the options of its command line, and how it ends.

A benchmark is a list of sections (hbaf_edge/bench). It prints their tables and then one line of JSON; `--report DIR`
writes a page, pictures, Markdown and JSON instead, and `--save` puts the JSON of a whole run among the results.
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
from hbaf_edge.errors import HBAFError

RESULTS = Path(__file__).parent / "results"
UNUSABLE = 2  # exit code where nothing could be started, as hbaf-edge has it

Threads = Annotated[int, typer.Option(min=1, help="CPU threads of an operator")]
Repeats = Annotated[int, typer.Option(min=1, help="samples of each side")]
Save = Annotated[bool, typer.Option("--save", help="to benchmarks/results/NAME.json")]
ReportFolder = Annotated[Path | None, typer.Option("--report", help="folder for a page, pictures, Markdown and JSON")]


def run(main: Callable[..., int | None], description: str | None) -> None:
    """Run a benchmark's command line, made of the signature of `main`, which returns the exit code.

    Args:
        main: the command.
        description: its help, of which lines stay as they are.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    paragraphs = (description or "").strip().split("\n\n")

    @app.command(help="\n\n".join(f"\b\n{paragraph}" for paragraph in paragraphs))
    @functools.wraps(main)
    def one_line_errors(*args: Any, **kwargs: Any) -> None:
        try:
            code = main(*args, **kwargs)
        except HBAFError as error:
            print(f"error: {error}", file=sys.stderr)
            code = UNUSABLE
        raise typer.Exit(code or 0)

    app()


def conclude(name: str, report: Report, work: Iterable[tuple[str, Callable[[], command.Measured]]], save: bool = False,
             folder: Path | None = None, bench: Bench | None = None) -> int:  # fmt: skip
    """Measure the sections, show and write them, and return the exit code.

    Args:
        name: of the file in benchmarks/results.
        report: to be filled.
        work: what is measured, and how.
        save: write that file, unless the run is incomplete.
        folder: of a whole report; None for one line of JSON.
        bench: whose steps move the progress bar.
    """
    if folder is not None:
        page.check(folder)
    console = Console()
    command.measure(report, work, bench, console, folder)
    code = command.finish(report, folder, console)
    if save and not code:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if folder is None or save:
        print(json.dumps(report.to_json()))
    return code


def verdict(value: float, sign: str, goal: float | None) -> str | None:
    """A goal and whether it is met; None without a goal.

    >>> verdict(0.9, "≤", 1.05), verdict(15.0, "≥", 20), verdict(1.0, "≥", None)
    ('≤ 1.05: yes', '≥ 20: NO', None)
    """
    if goal is None:
        return None
    is_met = value <= goal if sign == "≤" else value >= goal
    return f"{sign} {goal:g}: {'yes' if is_met else 'NO'}"
