"""Write a report to files: one HTML page without external resources, PNG pictures, Markdown and JSON.

Pictures need matplotlib (extra `bench`), which is imported when one is drawn. A section's `figure` is a dictionary with
`kind`, `title`, and these keys:
    stack      parts {name: value}: one bar of several parts; optional beside [names]: parts that run in parallel with
               the part before them and are drawn below it
    bars       parts {name: value}, x_title: one bar per part
    lines      x, lines {name: values}, x_title, y_title
    scatter    points [{name, x, y, group, label}], x_title, y_title, optional front [names in order],
               optional y_span, the smallest range of y
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from hbaf_edge.bench.document import Cell, Report, Section, about, cell_text, markdown
from hbaf_edge.card import NOTICE
from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.files import write_atomically

LINEAR = 50  # bars whose lengths differ by a larger factor are drawn on a logarithmic scale
LONG = 18  # characters; longer cells may be wrapped
COLOURS = ("#3b6ea5", "#e08e45", "#5a9e6f", "#b05a7a", "#8d7cc0", "#7f7f7f", "#c2a83e")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:66rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}
.about{color:#666;font-size:.85rem}.text{color:#444;margin:.2rem 0 .8rem}
.bad{background:#fdecea;border-left:4px solid #c0392b;padding:.5rem .8rem;margin:.6rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .55rem;text-align:right;border-bottom:1px solid #e4e4e4;white-space:nowrap}
th:first-child,td:first-child{text-align:left;min-width:12rem}th{color:#555;font-weight:600;white-space:normal}
td:first-child,.long{white-space:normal}.long{text-align:left;min-width:11rem}
img{max-width:100%;margin:.5rem 0}
"""


def check_folder(folder: Path) -> None:
    """Check that a report can be written to a folder. Call it before a long measurement.

    Raises:
        InputError: the folder cannot be written.
        BackendError: matplotlib is not installed.
    """
    _new_figure(1.0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = f"no report can be written to {folder} ({error.strerror}); pass a writable folder with --report"
        raise InputError(message) from None


def write(report: Report, folder: Path) -> Path:
    """Write report.json, report.md, a PNG for each figure and report.html; return the path of the page."""
    write_json(report, folder)  # first, so that an error in a picture loses no values
    pictures = {s.name: png(s.figure) for s in report.sections if s.figure}
    files = {"report.md": markdown(report).encode(), "report.html": html(report, pictures).encode()}
    for name, content in (files | {f"{name}.png": picture for name, picture in pictures.items()}).items():
        write_atomically(folder / name, content, mode=0o644)
    return folder / "report.html"


def write_json(report: Report, folder: Path) -> None:
    """Write only report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report.to_json(), indent=1) + "\n"
    write_atomically(folder / "report.json", content.encode(), mode=0o644)


def html(report: Report, pictures: dict[str, bytes]) -> str:
    """The HTML page with its pictures embedded."""
    parts = [f"<h1>{escape(report.title)}</h1>", f'<p class="about">{escape(about(report))}</p>']
    warnings = [f"Incomplete: {report.stopped}."] if report.stopped else []
    parts += [f'<p class="bad">{escape(warning)}</p>' for warning in warnings + report.warnings]
    parts += [_section(s, pictures.get(s.name)) for s in report.sections]
    parts.append(f'<p class="about">{escape(NOTICE)}</p>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(section: Section, picture: bytes | None) -> str:
    parts = [f'<h2 id="{escape(section.name)}">{escape(section.title)}</h2>']
    if section.text:
        parts.append(f'<p class="text">{escape(section.text)}</p>')
    if picture is not None:
        encoded = base64.b64encode(picture).decode()
        parts.append(f'<img alt="{escape(section.title)}" src="data:image/png;base64,{encoded}">')
    if section.rows:
        head = "".join(f"<th>{escape(name)}</th>" for name in section.head)
        rows = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in section.rows)
        parts.append(f'<div class="wide"><table><tr>{head}</tr>\n{rows}\n</table></div>')
    return "".join(parts)


def _cell(cell: Cell) -> str:
    text = cell_text(cell)
    return f'<td class="long">{escape(text)}</td>' if len(text) > LONG else f"<td>{escape(text)}</td>"


def png(figure: dict[str, Any]) -> bytes:
    """Draw a figure as PNG.

    Raises:
        BackendError: matplotlib is not installed.
    """
    picture = _new_figure(height=2.0 if figure["kind"] == "stack" else 3.6)
    axes = picture.subplots()
    {"stack": _stack, "bars": _bars, "lines": _lines, "scatter": _scatter}[figure["kind"]](axes, figure)
    axes.set_title(figure["title"], loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()


def _new_figure(height: float) -> Any:
    """A matplotlib figure of so many inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            f"the pictures of a report need matplotlib ({error}): pip install 'hbaf-edge[bench]', or omit --report"
        ) from error
    return Figure(figsize=(8.4, height))


def _stack(axes: Any, figure: dict[str, Any]) -> None:
    parallel = figure.get("beside", ())
    left, previous = 0.0, 0.0
    total = sum(value for name, value in figure["parts"].items() if name not in parallel)
    for (name, value), colour in zip(figure["parts"].items(), COLOURS):
        row, start = (-0.9, previous) if name in parallel else (0.0, left)
        axes.barh([row], [value], left=start, color=colour, label=f"{name}  {value:.1f}")
        if value > 0.06 * total:
            axes.text(start + value / 2, row, f"{value:.1f}", ha="center", va="center", color="white", fontsize=10)
        if name not in parallel:
            previous, left = left, left + value
    axes.set(yticks=[], xlim=(0, left), ylim=(-1.4 if parallel else -0.5, 0.5))
    axes.spines["left"].set_visible(False)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False, fontsize=9)


def _bars(axes: Any, figure: dict[str, Any]) -> None:
    names, values = list(figure["parts"]), list(figure["parts"].values())
    bars = axes.barh(names, values, color=COLOURS[0], height=0.6)
    axes.bar_label(
        bars, [f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in values], padding=4, fontsize=9
    )
    axes.tick_params(axis="y", labelsize=9)
    axes.invert_yaxis()
    axes.set(xlabel=figure["x_title"])
    if max(values) > LINEAR * min(values):
        axes.set(xscale="log", xlabel=f"{figure['x_title']}, logarithmic scale")
        axes.set_xlim(right=4 * max(values))


def _lines(axes: Any, figure: dict[str, Any]) -> None:
    for (name, values), colour in zip(figure["lines"].items(), COLOURS):
        axes.plot(figure["x"], values, "o-", color=colour, label=name, markersize=4)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#ddd", linewidth=0.6)
    axes.set(xlabel=figure["x_title"], ylabel=figure["y_title"])
    axes.legend(frameon=False, fontsize=9)


def _scatter(axes: Any, figure: dict[str, Any]) -> None:
    colours = dict(zip(dict.fromkeys(point["group"] for point in figure["points"]), COLOURS))
    for group, colour in colours.items():
        points = [point for point in figure["points"] if point["group"] == group]
        axes.scatter([p["x"] for p in points], [p["y"] for p in points], color=colour, label=group, s=34, zorder=3)
    for point in figure["points"]:
        axes.annotate(point["label"], (point["x"], point["y"]), (5, 4), textcoords="offset points", fontsize=7.5)
    by_name = {p["name"]: p for p in figure["points"]}
    front = [by_name[name] for name in figure.get("front", ())]
    axes.plot([p["x"] for p in front], [p["y"] for p in front], "--", color="#999", linewidth=1, zorder=1)
    axes.grid(color="#eee", linewidth=0.6)
    axes.margins(x=0.1, y=0.15)
    low, high = axes.get_ylim()
    if high - low < figure.get("y_span", 0.0):  # differences that mean nothing should look small
        middle, half = (low + high) / 2, figure["y_span"] / 2
        axes.set_ylim(middle - half, middle + half)
    axes.set(xlabel=figure["x_title"], ylabel=figure["y_title"])
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
