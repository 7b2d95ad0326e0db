"""Two reports beside each other: what changed by more than a machine's noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded

SMALL = 0.05  # a change that nobody notices, however sure it is
REFERENCE = "reference_workload"  # the section that says how fast the machine itself was


class Change(NamedTuple):
    """Of one measure.

    Attributes:
        section: its title.
        name: of the measure.
        unit: of the values.
        before, after: medians.
        ratio: after ÷ before.
        low, high: it lies between them, by both medians' intervals; None where one has none.
        verdict: "better", "worse", "changed" where neither is better, "within noise", or "not judged".
    """

    section: str
    name: str
    unit: str
    before: float
    after: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str


def changes(a: Report, b: Report) -> Iterator[Change]:
    """All that both have, in the order of the first.

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
                yield _change(section, name, before, after, expected)


def _change(section: Section, name: str, before: Any, after: Any, expected: float) -> Change:
    ratio = after["p50"] / before["p50"]
    bounds = [m[k] for m in (before, after) for k in ("low", "high")]
    if any(x is None or x <= 0 for x in bounds):
        return Change(section.title, name, section.unit, before["p50"], after["p50"], ratio, None, None, "not judged")
    low, high = after["low"] / before["high"], after["high"] / before["low"]
    falls = high < min(1, expected) and ratio < (1 - SMALL) * min(1, expected)
    rises = low > max(1, expected) and ratio > (1 + SMALL) * max(1, expected)
    better = before.get("better", section.better)
    verdict = "within noise"
    if falls or rises:
        verdict = "changed" if not better else "better" if rises == (better == "higher") else "worse"
    return Change(section.title, name, section.unit, before["p50"], after["p50"], ratio, low, high, verdict)


def differing(a: Report, b: Report) -> list[str]:
    """What else differs: machine, settings, versions; then times tell of more than of the program.

    >>> differing(Report("r", {"threads": 1}, {}), Report("r", {"threads": 2}, {}))
    ['threads: 1, then 2']
    """
    first, second = ({**r.settings, **r.machine, "version": r.version} for r in (a, b))
    keys = sorted(set(first) | set(second), key=str)
    return [
        f"{k.replace('_', ' ')}: {first.get(k)}, then {second.get(k)}"
        for k in keys
        if first.get(k) != second.get(k) and k != "load_average_1min"
    ]


def machine_speed(a: Report, b: Report) -> float | None:
    """How much slower the machine itself was in the second run, by the reference workload; None where one lacks it."""
    speeds = [s.measures.get(REFERENCE) for r in (a, b) if (s := r.section(REFERENCE)) is not None]
    if len(speeds) < 2 or speeds[0] is None or speeds[1] is None:
        return None
    return float(speeds[1]["p50"] / speeds[0]["p50"])


def as_section(a: Report, b: Report, everything: bool = False) -> Section:
    """A table of what changed; with `everything` also of what did not."""
    all_changes = list(changes(a, b))
    shown = [c for c in all_changes if everything or c.verdict not in ("within noise", "not judged")]
    rows: list[list[Cell]] = [
        [f"{c.section}: {c.name}", rounded(c.before), rounded(c.after), c.unit, rounded(c.ratio),
         None if c.low is None else f"{c.low:.2f}–{c.high:.2f}", c.verdict] for c in shown
    ]  # fmt: skip
    counts = f"intervals part, by more than {100 * SMALL:.0f} % and more than the whole machine changed"
    text = f"{len(all_changes)} measures in both; a change counts where {counts}. "
    if len(shown) < len(all_changes):
        text += f"{len(all_changes) - len(shown)} without one are left out. "
    speed = machine_speed(a, b)
    if speed is not None:
        text += f"A fixed piece of arithmetic took {speed:.2f} times as long the second time: the machine's own part."
    head = ("what", "before", "after", "unit", "÷", "95 %", "")
    return Section("compare", f"{a.created} {a.commit} → {b.created} {b.commit}", head, rows,
                   text.strip())  # fmt: skip
