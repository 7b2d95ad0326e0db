"""Compare two reports: which measures changed by more than the noise of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded

MIN_CHANGE = 0.05  # smaller changes do not count, even if they are significant
REFERENCE = "reference_workload"  # the section that shows how fast the machine itself was


class Change(NamedTuple):
    """Change of one measure.

    Attributes:
        name: the section's title and the measure's name.
        unit: unit of the medians.
        before: median of the first report.
        after: median of the second report.
        interval: bounds of `after` ÷ `before`, from the intervals of both medians; None if one has no interval.
        verdict: "better", "worse", "changed" if neither direction is better, "within noise", or "no interval".
    """

    name: str
    unit: str
    before: float
    after: float
    interval: tuple[float, float] | None
    verdict: str


def changes(a: Report, b: Report) -> Iterator[Change]:
    """Yield the change of each measure that both reports have, in the order of the first.

    A time counts as changed only if it also changed relative to the reference workload. Example: if the reference
    workload takes 1.2 times as long in the second run, a time must grow to more than 1.2 × 1.05 to be worse.

    >>> first = Report("r", {}, {}, [Section("s", "S", (), [], "", {"t": {"p50": 10.0, "low": 9.8, "high": 10.2}})])
    >>> second = Report("r", {}, {}, [Section("s", "S", (), [], "", {"t": {"p50": 8.0, "low": 7.8, "high": 8.1}})])
    >>> next(changes(first, second)).verdict
    'better'
    """
    slower = machine_speed(a, b) or 1.0
    for section in a.sections:
        other = b.section(section.name)
        if other is None or section.name == REFERENCE or other.unit != section.unit:
            continue
        expected = {"ms": slower, "turns/s": 1 / slower}.get(section.unit, 1.0)
        for name, before in section.measures.items():
            after = other.measures.get(name)
            if after is not None and before["p50"] > 0 < after["p50"]:
                interval = _interval(before, after)
                verdict = _verdict(before, after, interval, expected, before.get("better", section.better))
                yield Change(f"{section.title}: {name}", section.unit, before["p50"], after["p50"], interval, verdict)


def _interval(before: Any, after: Any) -> tuple[float, float] | None:
    """Bounds of the ratio of two medians; None if one of them has no positive interval."""
    if any(measure[key] is None or measure[key] <= 0 for measure in (before, after) for key in ("low", "high")):
        return None
    return after["low"] / before["high"], after["high"] / before["low"]


def _verdict(before: Any, after: Any, interval: tuple[float, float] | None, expected: float, better: str) -> str:
    """`expected` is the ratio that the speed of the machine alone would give."""
    if interval is None:
        return "no interval"
    ratio = after["p50"] / before["p50"]
    falls = interval[1] < min(1, expected) and ratio < (1 - MIN_CHANGE) * min(1, expected)
    rises = interval[0] > max(1, expected) and ratio > (1 + MIN_CHANGE) * max(1, expected)
    if not falls and not rises:
        return "within noise"
    if not better:
        return "changed"
    return "better" if rises == (better == "higher") else "worse"


def other_differences(a: Report, b: Report) -> list[str]:
    """Differences in machine, settings and versions, which can also explain a change.

    >>> other_differences(Report("r", {"threads": 1}, {}), Report("r", {"threads": 2}, {}))
    ['threads: 1, then 2']
    """
    first, second = ({**r.settings, **r.machine, "version": r.version} for r in (a, b))
    return [
        f"{key.replace('_', ' ')}: {first.get(key)}, then {second.get(key)}"
        for key in sorted(set(first) | set(second))
        if first.get(key) != second.get(key) and key != "load_average_1min"
    ]


def machine_speed(a: Report, b: Report) -> float | None:
    """Duration of the reference workload in the second report ÷ in the first; None if one report lacks it."""
    sections = [report.section(REFERENCE) for report in (a, b)]
    medians = [section.measures[REFERENCE]["p50"] for section in sections if section is not None]
    return float(medians[1] / medians[0]) if len(medians) == 2 else None


def changes_section(a: Report, b: Report, everything: bool = False) -> Section:
    """A table of the changed measures; with `everything`, of all measures."""
    all_changes = list(changes(a, b))
    shown = [c for c in all_changes if everything or c.verdict not in ("within noise", "no interval")]
    rows: list[list[Cell]] = [
        [c.name, rounded(c.before), rounded(c.after), c.unit, rounded(c.after / c.before),
         c.interval and f"{c.interval[0]:.2f}–{c.interval[1]:.2f}", c.verdict] for c in shown
    ]  # fmt: skip
    condition = f"its interval excludes 1, and it exceeds {100 * MIN_CHANGE:.0f} % and the change of the machine itself"
    text = f"{len(all_changes)} measures are in both reports. A change counts if {condition}. "
    if len(shown) < len(all_changes):
        text += f"{len(all_changes) - len(shown)} measures without a change are not shown. "
    speed = machine_speed(a, b)
    if speed is not None:
        text += f"The reference workload took {speed:.2f} times as long in the second run: the machine's own change."
    head = ("measure", "before", "after", "unit", "ratio", "95 % interval", "verdict")
    return Section("compare", f"{a.created} {a.commit} → {b.created} {b.commit}", head, rows, text.strip())
