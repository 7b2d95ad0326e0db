"""A benchmark report: sections of rows, shown as JSON, tables on a terminal, Markdown and an HTML page.

`schema.json` in this folder describes the JSON.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hbaf_edge.bench.series import Series, rounded
from hbaf_edge.display import printable
from hbaf_edge.errors import InputError
from hbaf_edge.machine import machine_info
from hbaf_edge.version import __version__

FORMAT = 1
MEASURED = ("benchmarks/results", "hbaf_edge/bench/choices.json")  # files that measurements write
CHECKOUT = Path(__file__).resolve().parents[2]  # if this is not an installed package
PERCENTILES = ("p50", "p90", "p99", "max", "samples")  # columns of `percentile_rows`
Cell = str | int | float | None


@dataclass
class Section:
    """One question that the benchmark answers, with a table.

    Attributes:
        name: identifier, such as "stages".
        title: heading.
        head: names of the columns.
        rows: one cell for each column.
        text: explanation of the values.
        measures: by name, what `hbaf-edge compare` compares: `Series.to_json()`, or p50, low and high of a ratio.
        unit: unit of the measures.
        better: "lower" or "higher" values are better; "" if neither is. A measure can override it with its own key.
        figure: the picture, as described in hbaf_edge/bench/page.py, or None.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text: str = ""
    measures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unit: str = "ms"
    better: str = "lower"
    figure: dict[str, Any] | None = None


def commit_here() -> str:
    """Commit of this checkout, with "+" if files other than results are modified; empty outside a checkout."""
    if not (CHECKOUT / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CHECKOUT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()  # noqa: S603

    try:
        modified = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in MEASURED))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if modified else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def command_here() -> str:
    """The running command, such as `python -m benchmarks.natural --final`, with paths relative to the checkout.

    Of other absolute paths only the last part is named, since results are published.
    """
    program = Path(sys.argv[0])
    name = program.name
    if program.suffix == ".py":
        parts = program.with_suffix("").parts[-2:]
        name = f"python -m {'.'.join(part for part in parts if part != '__main__')}"

    def published(argument: str) -> str:
        option, equals, value = argument.partition("=")
        path = Path(value if equals else argument)
        if not path.is_absolute():
            return shlex.quote(argument)
        shown = str(path.relative_to(CHECKOUT)) if path.is_relative_to(CHECKOUT) else path.name
        return shlex.quote(option + equals + shown if equals else shown)

    return " ".join([name, *map(published, sys.argv[1:])])


@dataclass
class Report:
    """All sections, with the machine and the settings.

    Attributes:
        title: title of the page.
        settings: bundle, threads, provider and so on.
        machine: `hbaf_edge.machine.machine_info()`.
        sections: in the order of display.
        warnings: reasons to distrust values.
        stopped: why the run ended early; empty if it did not.
        failed: True if a section could not be measured; a warning names it.
        created: time in UTC.
        version: version of hbaf-edge.
        commit: `commit_here()`.
        bundle: `Bundle.model_key` of the bundle that was measured; empty if the values do not depend on one.
        command: `command_here()`, which measures the same again.
    """

    title: str
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=machine_info)
    sections: list[Section] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stopped: str = ""
    failed: bool = False
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    version: str = __version__
    commit: str = field(default_factory=commit_here)
    bundle: str = ""
    command: str = field(default_factory=command_here)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON, by `schema.json`."""
        return {"format": FORMAT, **asdict(self)}

    def section(self, name: str) -> Section | None:
        """The section with this name, or None."""
        return next((s for s in self.sections if s.name == name), None)


def load(path: str | os.PathLike[str]) -> Report:
    """Read the JSON of a report.

    Args:
        path: the file, or its folder.

    Raises:
        InputError: the file is missing or is not a report.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a report of hbaf-edge benchmark ({error}); make one with hbaf-edge benchmark --report DIR"
        ) from None


def _parse(stored: Any) -> Report:
    """Parse a report. Raise one of the errors that `load` catches if a part that `compare` reads is invalid."""
    if stored.pop("format", None) != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    report = Report(sections=[Section(**section) for section in stored.pop("sections")], **stored)
    about(report)  # fails unless settings and machine are objects
    for section in report.sections:
        for name, measure in section.measures.items():
            bounds = [measure[key] for key in ("low", "high") if measure[key] is not None]
            if not all(math.isfinite(number) for number in (measure["p50"], *bounds)):
                raise ValueError(f"{name} of {section.name} is not finite")
    return report


def percentile_rows(measured: Mapping[str, Series]) -> list[Sequence[Cell]]:
    """One row per series: name, p50, p90, p99, max, samples."""
    return [(name, *(rounded(x) for x in (s.p50, s.p90, s.p99, s.most)), s.n) for name, s in measured.items()]


def measures_of(measured: Mapping[str, Series]) -> dict[str, Mapping[str, Any]]:
    """The series as `Section.measures`."""
    return {name: s.to_json() for name, s in measured.items()}


def timing_section(
    name: str, title: str, column: str, series: Mapping[str, Series], text: str, figure: dict[str, Any] | None = None
) -> Section:
    """A section of percentiles in milliseconds; `column` is the heading of the series' names."""
    head = (column, *PERCENTILES)
    return Section(name, title, head, percentile_rows(series), text, measures_of(series), figure=figure)


def cell_text(cell: Cell) -> str:
    """Format a cell.

    >>> cell_text(3.14159), cell_text(None), cell_text(1234.5), cell_text(12), cell_text(0.01234)
    ('3.14', '–', '1,234', '12', '0.012')
    """
    if cell is None:
        return "–"
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else cell
    for minimum, spec in ((100, ",.0f"), (10, ".1f"), (1, ".2f"), (0.001, ".3f")):
        if abs(cell) >= minimum:
            return format(cell, spec)
    return f"{cell:.2g}"


def print_section(console: Console, section: Section) -> None:
    """Print a section as a table."""

    def cell(text: str) -> Text:  # no markup or control characters from a bundle's name
        return Text(printable(text))

    caption = cell(section.text) if section.text else None
    table = Table(title=cell(section.title), title_justify="left", caption=caption, caption_justify="left")
    for i, name in enumerate(section.head):
        table.add_column(cell(name), justify="left" if i == 0 else "right")
    for row in section.rows:
        table.add_row(*(cell(cell_text(value)) for value in row))
    console.print(table)


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {report.title}", *([f"**Incomplete: {report.stopped}.**"] if report.stopped else []), about(report)]
    parts += [f"> {warning}" for warning in report.warnings]
    for s in report.sections:
        parts += [f"## {s.title}", *([s.text] if s.text else []), markdown_table(s.head, s.rows)]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table.

    >>> print(markdown_table(("what", "ms"), [("a turn", 15.04)]))
    | what | ms |
    | --- | ---: |
    | a turn | 15.0 |
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([cell_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def about(report: Report) -> str:
    """Machine, versions and settings as one paragraph."""
    values = {**report.settings, **report.machine}
    settings = [f"{key.replace('_', ' ')}: {value}" for key, value in values.items() if value is not None]
    key = [f"bundle key: {report.bundle[:12]}"] if report.bundle else []
    return "; ".join([f"{report.created}, hbaf-edge {report.version} {report.commit}".strip(), *key, *settings])
