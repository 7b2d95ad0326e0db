"""Two reports beside each other: what changed by more than a machine's noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded

SMALL = 0.05  # a change that nobody notices, however sure it is
REFERENCE = "reference_workload"  # the section that says how fast the machine itself was


class Change(NamedTuple):
    """Change of one measure.

    Attributes:
        name: the section's title and the measure's name.
        unit: of the medians `before` and `after`.
        interval: `after` ÷ `before` lies in it, by both medians' intervals; None if one of them has none.
        verdict: "better", "worse", "changed" where neither is better, "within noise", or "not judged".
    """

    name: str
    unit: str
    before: float
    after: float
    interval: tuple[float, float] | None
    verdict: str


def changes(a: Report, b: Report) -> Iterator[Change]:
    """All measures that both have, in the order of the first.

    A time counts as changed where it has also changed against the reference workload: what slowed the whole machine
    is not the program's.

    >>> one = Report("r", {}, {}, [Section("s", "S", (), [], "", {"t": {"p50": 10.0, "low": 9.8, "high": 10.2}})])
    >>> two = Report("r", {}, {}, [Section("s", "S", (), [], "", {"t": {"p50": 8.0, "low": 7.8, "high": 8.1}})])
    >>> next(changes(one, two)).verdict
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
    if any(measure[key] is None or measure[key] <= 0 for measure in (before, after) for key in ("low", "high")):
        return None
    return after["low"] / before["high"], after["high"] / before["low"]


def _verdict(before: Any, after: Any, interval: tuple[float, float] | None, expected: float, better: str) -> str:
    if interval is None:
        return "not judged"
    ratio = after["p50"] / before["p50"]
    falls = interval[1] < min(1, expected) and ratio < (1 - SMALL) * min(1, expected)
    rises = interval[0] > max(1, expected) and ratio > (1 + SMALL) * max(1, expected)
    if not falls and not rises:
        return "within noise"
    if not better:
        return "changed"
    return "better" if rises == (better == "higher") else "worse"


def differing(a: Report, b: Report) -> list[str]:
    """What else differs: machine, settings, versions; then times tell of more than of the program.

    >>> differing(Report("r", {"threads": 1}, {}), Report("r", {"threads": 2}, {}))
    ['threads: 1, then 2']
    """
    first, second = ({**r.settings, **r.machine, "version": r.version} for r in (a, b))
    return [
        f"{key.replace('_', ' ')}: {first.get(key)}, then {second.get(key)}"
        for key in sorted(set(first) | set(second))
        if first.get(key) != second.get(key) and key != "load_average_1min"
    ]


def machine_speed(a: Report, b: Report) -> float | None:
    """How much slower the machine itself was in the second run, by the reference workload; None where one lacks it."""
    sections = [report.section(REFERENCE) for report in (a, b)]
    medians = [section.measures[REFERENCE]["p50"] for section in sections if section is not None]
    return float(medians[1] / medians[0]) if len(medians) == 2 else None


def as_section(a: Report, b: Report, everything: bool = False) -> Section:
    """A table of what changed; with `everything` also of what did not."""
    all_changes = list(changes(a, b))
    shown = [c for c in all_changes if everything or c.verdict not in ("within noise", "not judged")]
    rows: list[list[Cell]] = [
        [c.name, rounded(c.before), rounded(c.after), c.unit, rounded(c.after / c.before),
         c.interval and f"{c.interval[0]:.2f}–{c.interval[1]:.2f}", c.verdict] for c in shown
    ]  # fmt: skip
    counts = f"intervals part, by more than {100 * SMALL:.0f} % and more than the whole machine changed"
    text = f"{len(all_changes)} measures in both; a change counts where {counts}. "
    if len(shown) < len(all_changes):
        text += f"{len(all_changes) - len(shown)} without one are left out. "
    speed = machine_speed(a, b)
    if speed is not None:
        text += f"A fixed piece of arithmetic took {speed:.2f} times as long the second time: the machine's own part."
    head = ("what", "before", "after", "unit", "÷", "95 %", "")
    return Section("compare", f"{a.created} {a.commit} → {b.created} {b.commit}", head, rows, text.strip())
