"""What every benchmark shares: percentiles, what the machine is, a table for people and JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 of measurements.

    >>> percentiles([1.0, 2.0, 3.0])["p50"]
    2.0
    """
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 90, 99)}


def show(title: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    """A table for people."""
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def finish(name: str, result: dict[str, Any], save: bool) -> None:
    """JSON as the last line; with `save` also benchmarks/results/NAME.json."""
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
