"""Results that are published: reports by hbaf_edge/bench/schema.json, as benchmarks/ write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hbaf_edge.bench.document import Cell, Report, Section
from training.files import write


def save_report(
    path: Path, title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], text: str = "", bundle: str = "",
    settings: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a table as a report, with machine, versions, commit and command.

    Args:
        path: JSON file, such as benchmarks/results/voices.json; its name is the name of the table.
        title: of the report and of its table.
        head, rows: the table.
        text: explanation of the values.
        bundle: key of the bundle that was measured; empty if there is none.
        settings: anything else that the values depend on.
    """
    section = Section(path.stem.replace("-", "_"), title, head, rows, text, better="higher", unit="")
    report = Report(title, dict(settings or {}), sections=[section], bundle=bundle)
    write(path, (json.dumps(report.to_json(), indent=1) + "\n").encode())
