"""A report's pictures, by matplotlib (extra `bench`), which is imported when one is drawn.

A section's `figure` is a dictionary: `kind`, `title`, and for
    stack      parts {name: value}: one bar of several parts; optional beside [names]: those run below, while the part
               before them does
    bars       parts {name: value}, optional x_title, log: a bar each
    lines      x, lines {name: values}, x_title, y_title, log
    scatter    points [{name, x, y, group, label}], x_title, y_title, log, front [names in order]
"""

from __future__ import annotations

import io
from typing import Any

from hbaf_edge.errors import BackendError

COLOURS = ("#3b6ea5", "#e08e45", "#5a9e6f", "#b05a7a", "#8d7cc0", "#7f7f7f", "#c2a83e")


def png(figure: dict[str, Any]) -> bytes:
    """A picture.

    Raises:
        BackendError: matplotlib is not installed.
    """
    axes, canvas = _canvas(tall=2.0 if figure["kind"] == "stack" else 3.6)
    {"stack": _stack, "bars": _bars, "lines": _lines, "scatter": _scatter}[figure["kind"]](axes, figure)
    axes.set_title(figure["title"], loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    canvas.savefig(file, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()


def check() -> None:
    """Raises BackendError where no picture can be drawn, before anything was measured for one."""
    _canvas(1.0)


def _canvas(tall: float) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            f"a report's pictures need matplotlib ({error}): pip install 'hbaf-edge[bench]', or leave --report out"
        ) from error
    canvas = Figure(figsize=(8.4, tall))
    FigureCanvasAgg(canvas)
    return canvas.subplots(), canvas


def _stack(axes: Any, figure: dict[str, Any]) -> None:
    beside = figure.get("beside", ())
    left, previous, whole = 0.0, 0.0, sum(value for name, value in figure["parts"].items() if name not in beside)
    for (name, value), colour in zip(figure["parts"].items(), COLOURS):
        lane, start = (-0.9, previous) if name in beside else (0.0, left)
        axes.barh([lane], [value], left=start, color=colour, label=f"{name}  {value:.1f}")
        if value > 0.06 * whole:
            axes.text(start + value / 2, lane, f"{value:.1f}", ha="center", va="center", color="white", fontsize=10)
        if name not in beside:
            previous, left = left, left + value
    axes.set(yticks=[], xlim=(0, left), ylim=(-1.4 if beside else -0.5, 0.5))
    axes.spines["left"].set_visible(False)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False, fontsize=9)


def _bars(axes: Any, figure: dict[str, Any]) -> None:
    names, values = list(figure["parts"]), list(figure["parts"].values())
    axes.barh(range(len(names)), values, color=COLOURS[0], height=0.6)
    for i, value in enumerate(values):
        axes.text(value, i, f"  {value:,.1f}" if value < 100 else f"  {value:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    if figure.get("log"):
        axes.set_xscale("log")
        axes.set_xlim(right=4 * max(values))
    else:
        axes.set_xlim(0, 1.15 * max(values))
    axes.set_xlabel(figure.get("x_title", ""))


def _lines(axes: Any, figure: dict[str, Any]) -> None:
    for (name, values), colour in zip(figure["lines"].items(), COLOURS):
        axes.plot(figure["x"], values, "o-", color=colour, label=name, markersize=4)
    if figure.get("log"):
        axes.set_xscale("log", base=2)
        axes.set_xticks(figure["x"], [f"{x:g}" for x in figure["x"]])
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#ddd", linewidth=0.6)
    axes.set(xlabel=figure["x_title"], ylabel=figure["y_title"])
    axes.legend(frameon=False, fontsize=9)


def _scatter(axes: Any, figure: dict[str, Any]) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in figure["points"]:
        groups.setdefault(point["group"], []).append(point)
    for (group, points), colour in zip(groups.items(), COLOURS):
        axes.scatter([p["x"] for p in points], [p["y"] for p in points], color=colour, label=group, s=34, zorder=3)
    for point in figure["points"]:
        axes.annotate(point["label"], (point["x"], point["y"]), (5, 4), textcoords="offset points", fontsize=7.5)
    on = {p["name"]: p for p in figure["points"]}
    front = [on[name] for name in figure.get("front", ())]
    axes.plot([p["x"] for p in front], [p["y"] for p in front], "--", color="#999", linewidth=1, zorder=1)
    if figure.get("log"):
        axes.set_xscale("log")
    axes.grid(color="#eee", linewidth=0.6)
    axes.margins(x=0.1, y=0.15)
    axes.set(xlabel=figure["x_title"], ylabel=figure["y_title"])
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
